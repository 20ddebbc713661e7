"""SuperGLUE's official files: from nested objects to the rows TFDS makes.

Each function takes an object of a file and the name of its split, and yields
rows; see `sources.Expand`. Their fields are checked afterwards, so a field that
an object lacks is handed on as None.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from peft_jax.tasks.metrics import UNLABELED
from peft_jax.tasks.sources import RowError, part

Row = dict[str, Any]


def multirc(passage: Mapping[str, Any], split: str) -> Iterator[Row]:
  """Yields a row for each answer of each question of a passage.

  Example:
    >>> answers = [{"text": "Ann", "idx": 5, "label": 1}]
    >>> questions = [{"question": "Who?", "idx": 2, "answers": answers}]
    >>> text = {"text": "Ann ran.", "questions": questions}
    >>> [row] = multirc({"idx": 1, "passage": text}, "train")
    >>> row["answer"], row["idx/question"], row["label"]
    ('Ann', 2, 1)
  """
  del split
  text = part(passage, "passage", dict)
  for question in part(text, "questions", list):
    for answer in part(question, "answers", list):
      yield {
        "paragraph": text.get("text"),
        "question": question.get("question"),
        "answer": answer.get("text"),
        "label": answer.get("label"),
        "idx/paragraph": passage.get("idx"),
        "idx/question": question.get("idx"),
        "idx/answer": answer.get("idx"),
      }


def record(passage: Mapping[str, Any], split: str) -> Iterator[Row]:
  """Yields a row for each right answer to each query, as T5 counts them.

  Different texts count once, in alphabetical order, as in TFDS. A query of the
  test split has no answers and one row.
  """
  found = part(passage, "passage", dict)
  text = part(found, "text", str)
  entities = sorted(
    {_marked(text, entity) for entity in part(found, "entities", list)}
  )
  for query in part(passage, "qas", list):
    answers: list[str] = []
    if split != "test" or query.get("answers"):
      answers = sorted(
        {part(answer, "text", str) for answer in part(query, "answers", list)}
      )
      if not answers:
        raise RowError(
          'field "answers": expected the answers of every query, found none.'
          " Correct the row."
        )
    for answer in answers or [UNLABELED]:
      yield {
        "passage": text,
        "query": query.get("query"),
        "entities": entities,
        "answers": answers,
        "answer": answer,
        "idx/passage": passage.get("idx"),
        "idx/query": query.get("idx"),
      }


def _marked(text: str, entity: Mapping[str, Any]) -> str:
  """Returns an entity; its end is its last letter, not the one behind."""
  start, end = part(entity, "start", int), part(entity, "end", int)
  if not 0 <= start <= end < len(text):
    raise RowError(
      f'field "entities": expected places in a text of {len(text)} letters,'
      f" found {start} to {end}. Correct the row."
    )
  return text[start : end + 1]


def wsc(row: Mapping[str, Any], split: str) -> Iterator[Row]:
  """Yields a WSC row if T5 uses it: it trains on the right nouns alone."""
  if split != "train" or row.get("label") is not False:
    yield from wsc_fixed(row, split)


def wsc_fixed(row: Mapping[str, Any], split: str) -> Iterator[Row]:
  """Yields a WSC row with its spans as they stand in the text.

  Some official spans differ from the text in the case of their first letter,
  a full stop or a line break; TFDS's `wsc.fixed` has them put right.

  Example:
    >>> span = {"span1_index": 3, "span1_text": "The lake"}
    >>> span |= {"span2_index": 7, "span2_text": "it"}
    >>> text = "We saw that the lake was so blue it shone."
    >>> row = {"text": text, "target": span, "idx": 0, "label": True}
    >>> [fixed] = wsc_fixed(row, "train")
    >>> fixed["span1_text"]
    'the lake'
  """
  del split
  text, target = part(row, "text", str), part(row, "target", dict)
  words = text.split()
  fixed: Row = {"text": text, "label": row.get("label"), "idx": row.get("idx")}
  for name in ("span1", "span2"):
    span = part(target, f"{name}_text", str)
    index = part(target, f"{name}_index", int)
    if not 0 <= index < len(words):
      raise RowError(
        f'field "{name}_index": expected the number of one of {len(words)}'
        f" words, found {index}. Correct the row."
      )
    fixed[f"{name}_text"] = _as_in(text, span, words[index])
    fixed[f"{name}_index"] = index
  if fixed["span2_text"] not in text:
    raise RowError(
      f'field "span2_text": expected a pronoun of the text, found'
      f" {fixed['span2_text']!r}. Correct the row."
    )
  return iter([fixed])


def _as_in(text: str, span: str, first_word: str) -> str:
  """Returns a span as the text has it, or as it is if that cannot be found."""
  if not span or span in text:
    return span
  first = span[0].lower() if first_word[0].islower() else span[0].upper()
  fixed = (first + span[1:]).rstrip(".").replace("\n", " ")
  return fixed if fixed in text else span
