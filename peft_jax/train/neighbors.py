"""What a trained prompt is near to: the words, its start, rows alike."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import seqio
from etils import epath

from peft_jax import (
  interpret,
  layout,
  partition,
  reparametrization,
  sharding,
  trees,
)
from peft_jax import manifest as manifests
from peft_jax.adapters import Prompt
from peft_jax.adapters.prompt import EMBEDDING
from peft_jax.inject import Adapted
from peft_jax.interpret import Nearest
from peft_jax.manifest import Manifest
from peft_jax.orbax_io import locate
from peft_jax.tasks import vocabularies
from peft_jax.train import checkpoints, opened
from peft_jax.train.opened import Opened
from peft_jax.train.report import prompt_map
from peft_jax.train.setup import shapes_of, started

# Rows are one cluster when they share more than half of their neighbours, or
# when their own cosine similarity is at least this.
_ALIKE = 0.7


class NeighborsError(ValueError):
  """A prompt that cannot be looked at as asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
  """A prompt and what it is compared with.

  Attributes:
    prompt: [P, D].
    table: [V, D] embeddings, one row per id of the vocabulary.
    vocabulary: names them.
    start: [P, D] where training began; None if that is not known.
    note: on the start: where it comes from, or why it is not known.
  """

  prompt: np.ndarray
  table: np.ndarray
  vocabulary: seqio.Vocabulary
  start: np.ndarray | None
  note: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """What was found of a prompt of P rows.

  Attributes:
    cosine: by cosine similarity.
    l2: by Euclidean distance.
    words: id -> text of all ids that are named.
    by_neighbors: clusters of rows that share more than half of their
      neighbours (cosine).
    by_cosine: clusters of rows whose own cosine similarity is at least 0.7.
    moved: [P] Euclidean distance of each row to its start; None if unknown.
    turned: [P] cosine similarity of each row and its start; None if unknown.
    started: [P] id of the token that a row started as, -1 for none of them;
      None if unknown.
    note: see `Read`.
    labels: class label words -> their ids.
  """

  cosine: Nearest
  l2: Nearest
  words: Mapping[int, str]
  by_neighbors: Sequence[Sequence[int]]
  by_cosine: Sequence[Sequence[int]]
  moved: np.ndarray | None
  turned: np.ndarray | None
  started: np.ndarray | None
  note: str
  labels: Mapping[str, Sequence[int]]

  def label_shares(self) -> dict[str, float]:
    """Returns which share of rows is near a label word, from 0 to 1.

    Returns:
      `nearest` (cosine), `nearest_l2`, and `among_k` (cosine): the share of
      rows with one among their K neighbours. Empty without label words.
    """
    if not self.labels:
      return {}
    ids = sorted({token for word in self.labels.values() for token in word})
    near = np.isin(self.cosine.ids, ids)
    return {
      "nearest": float(near[:, 0].mean()),
      "nearest_l2": float(np.isin(self.l2.ids[:, 0], ids).mean()),
      "among_k": float(near.any(axis=1).mean()),
    }


def read(
  source: str | Path,
  *,
  embeddings: str = "",
  vocabulary: str = "",
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
) -> Read:
  """Reads a prompt, embeddings to compare it with, and where it started.

  Args:
    source: a run, an adapter directory, or an `.npy` file of Google's.
    embeddings: `.npy` file [V, D] in the place of the backbone's, which is then
      not opened.
    vocabulary: see `Config.vocabulary`; default: what the adapter says.
    bindings: see `opened.open_adapter`.
    search_paths: see `config.resolve`.

  Raises:
    NeighborsError: if there is no prompt, or something is missing.
    ValueError: as `opened.open_adapter`.
  """
  manifest = None
  if str(source).endswith(".npy"):
    prompt = _array(source, "a prompt [P, D]")
  else:
    manifest, leaves = checkpoints.load_adapter(source)
    prompt = _prompt_of(manifest, leaves, str(source))
  if embeddings:
    table = _array(embeddings, "embeddings [V, D]")
    start, note = None, "with --embeddings the backbone is not opened"
    known = manifest.training.get("vocabulary", "") if manifest else ""
    vocabulary = vocabulary or str(known)
  elif manifest is None:
    raise NeighborsError(
      f"expected --embeddings FILE.npy with {source}, a prompt alone, found"
      " none. Or import it with `peft-jax import --from prompt`."
    )
  else:
    found = opened.open_adapter(
      source, bindings=bindings, search_paths=search_paths
    )
    table = np.asarray(trees.flatten(found.params)[EMBEDDING], np.float32)
    start, note = _start(found, prompt.shape)
    vocabulary = vocabulary or found.config.vocabulary
  if not vocabulary:
    raise NeighborsError(
      "expected a vocabulary for the embeddings, found none. Pass --vocabulary."
    )
  return Read(
    prompt=prompt,
    table=table,
    vocabulary=vocabularies.resolve(vocabulary),
    start=start,
    note=note,
  )


def _array(path: str | Path, what: str) -> np.ndarray:
  try:
    with locate(path).open("rb") as file:
      array = np.load(file, allow_pickle=False)
  except Exception as error:  # numpy raises many kinds
    raise NeighborsError(
      f"expected {what} as numpy saves it at {path}, found"
      f" {type(error).__name__}: {error}."
    ) from error
  if array.ndim != 2:
    raise NeighborsError(
      f"expected {what} at {path}, found {list(array.shape)}. Take another"
      " file."
    )
  return array.astype(np.float32)


def _prompt_of(manifest: Manifest, leaves: Any, source: str) -> np.ndarray:
  """Returns the rows [P, D] of an adapter's prompt.

  Raises:
    NeighborsError: if it has none, or several.
  """
  nothing: Any = None  # rules say all that is needed
  rules = list(map(manifests.rule_from_json, manifest.rules))
  leaves, model = reparametrization.drop(leaves, Adapted(nothing, rules))
  prompts = []
  for path, leaf in trees.flatten(leaves).items():
    owner = model.rule_of(path)
    if owner and isinstance(owner[0].adapter, Prompt):
      prompts.append(np.asarray(leaf, np.float32))
  if len(prompts) != 1:
    methods = sorted({rule["method"] for rule in manifest.rules})
    raise NeighborsError(
      f"expected one prompt in {source}, found {len(prompts)}, and the methods"
      f" {methods}. Only prompts in front of the tokens have the embeddings'"
      " space."
    )
  return prompts[0]


def _start(
  found: Opened, shape: tuple[int, ...]
) -> tuple[np.ndarray | None, str]:
  """Returns where a run's prompt started, drawn again, and what to say."""
  config = found.config
  if not found.manifest.training.get("gin"):
    return None, "no run of `peft-jax train` made this adapter"
  if any(rule.adapter.position == "backbone" for rule in config.rules):
    return None, "the run changed leaves of the backbone it started from"
  if config.warm_start:
    try:
      manifest, leaves = checkpoints.load_adapter(config.warm_start)
      rows = _prompt_of(manifest, leaves, config.warm_start)
    except ValueError:
      return None, f"WARM_START {config.warm_start} is not there any more"
    if rows.shape != shape:
      return None, f"WARM_START {config.warm_start} is another prompt by now"
    return rows, f"the prompt in {config.warm_start}"
  model = Adapted(config.network, config.rules)
  with sharding.use(found.mesh):
    variables = shapes_of(model)
    places = sharding.shardings(
      variables["params"], variables["params_axes"], found.mesh
    )
    params = started(config, model, found.frozen, places)
    _, adapter = partition.split(params, model)
    adapter = jax.tree.map(np.asarray, layout.to_layers(adapter))
  rules = [manifests.rule_to_json(rule) for rule in model.rules]
  own = dataclasses.replace(found.manifest, rules=rules)
  rows = _prompt_of(own, adapter, "the run's start")
  return rows, f"drawn again from RANDOM_SEED = {config.random_seed}"


def compare(read: Read, *, count: int = 5, words: Sequence[str] = ()) -> Found:
  """Returns what a prompt is near to.

  Args:
    read: the prompt and what it is compared with.
    count: K, neighbours of each row (the paper's 5).
    words: class labels; a word of several pieces counts with each.

  Raises:
    NeighborsError: for a vocabulary or a word that the table has not.
    ValueError: for another width.
  """
  size = read.vocabulary.vocab_size
  if size > len(read.table):
    raise NeighborsError(
      f"expected embeddings of at least {size} rows, the size of the"
      f" vocabulary, found {len(read.table)}. Pass the model's own vocabulary:"
      " --vocabulary."
    )
  table = read.table[:size]  # those behind have no text
  cosine = interpret.nearest(read.prompt, table, count=count, metric="cosine")
  l2 = interpret.nearest(read.prompt, table, count=count, metric="l2")
  similar = interpret.cosine(read.prompt[:, None], read.prompt[None])
  labels = {word: read.vocabulary.encode(word) for word in words}
  for word, ids in labels.items():
    if not ids:
      raise NeighborsError(f"expected pieces of {word!r}, found none.")
  moved = turned = started_as = None
  if read.start is not None:
    moved = np.linalg.norm(read.prompt.astype(np.float64) - read.start, axis=-1)
    turned = interpret.cosine(read.prompt, read.start)
    first = interpret.nearest(read.start, table, count=1, metric="l2")
    started_as = np.where(first.values == 0, first.ids, -1)[:, 0]
  named = {*cosine.ids.flat, *l2.ids.flat}
  named |= {token for ids in labels.values() for token in ids}
  named |= set(started_as.tolist() if started_as is not None else ()) - {-1}
  return Found(
    cosine=cosine,
    l2=l2,
    words={int(i): piece(read.vocabulary, int(i)) for i in sorted(named)},
    by_neighbors=interpret.clusters(interpret.overlap(cosine.ids) > count // 2),
    by_cosine=interpret.clusters(similar >= _ALIKE),
    moved=moved,
    turned=turned,
    started=started_as,
    note=read.note,
    labels=labels,
  )


def look(
  read: Read,
  *,
  count: int = 5,
  words: Sequence[str] = (),
  picture: str = "",
  title: str = "",
) -> Found:
  """Returns what a prompt is near to, and draws it if asked.

  Args:
    read: the prompt and what it is compared with.
    count: see `compare`.
    words: see `compare`.
    picture: `.png` or `.svg` file to write; empty: none.
    title: of the picture.

  Raises:
    ValueError: as `compare` and `prompt_map.write_map`.
  """
  found = compare(read, count=count, words=words)
  if picture:
    rows = [read.prompt] if read.start is None else [read.prompt, read.start]
    prompt_map.write_map(
      epath.Path(locate(picture)),
      f"{title}: the prompt's rows and their nearest words",
      interpret.plane(np.concatenate(rows)),
      read.prompt,
      [found.words[int(i)] for i in found.cosine.ids[:, 0]],
      found.by_neighbors,
      read.start,
    )
  return found


def piece(vocabulary: seqio.Vocabulary, token: int) -> str:
  """Returns a token as it is in the vocabulary, `▁the` for ` the`.

  Example:
    >>> piece(seqio.ByteVocabulary(), 107), piece(seqio.ByteVocabulary(), 3)
    ('h', '<0x00>')
  """
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    return str(vocabulary.tokenizer.id_to_piece(token))
  if isinstance(vocabulary, seqio.ByteVocabulary):
    byte = token - 3
    if byte < 0:
      return ("<pad>", "</s>", "<unk>")[token]
    character = chr(byte)
    shown = byte < 128 and character.isprintable() and character != " "
    return character if shown else f"<0x{byte:02X}>"
  return vocabulary.decode([token]) or f"<{token}>"


def to_json(found: Found) -> dict[str, Any]:
  """Returns everything as JSON values."""

  def neighbors(near: Nearest, row: int, value: str) -> list[dict[str, Any]]:
    return [
      {"id": int(i), "text": found.words[int(i)], value: float(v)}
      for i, v in zip(near.ids[row], near.values[row], strict=True)
    ]

  rows = []
  for row in range(len(found.cosine.ids)):
    entry: dict[str, Any] = {
      "row": row,
      "cosine": neighbors(found.cosine, row, "similarity"),
      "l2": neighbors(found.l2, row, "distance"),
    }
    if found.moved is not None and found.turned is not None:
      entry["start"] = {
        "token": _start_word(found, row),
        "distance": float(found.moved[row]),
        "similarity": float(found.turned[row]),
      }
    rows.append(entry)
  return {
    "rows": rows,
    "clusters": {
      "shared_neighbors": [list(group) for group in found.by_neighbors],
      "cosine": [list(group) for group in found.by_cosine],
    },
    "start": found.note,
    "labels": {word: list(ids) for word, ids in found.labels.items()},
    "label_shares": found.label_shares(),
  }


def _start_word(found: Found, row: int) -> str | None:
  assert found.started is not None
  token = int(found.started[row])
  return None if token < 0 else found.words[token]


def format_table(found: Found) -> str:
  """Returns a Markdown table, a row per row of the prompt, and a summary."""
  known = found.moved is not None
  header = ["row", "nearest by cosine", "first", "nearest by L2", "first"]
  header += ["started as", "moved"] if known else []
  cells = [header]
  for row in range(len(found.cosine.ids)):
    line = [str(row)]
    for near in (found.cosine, found.l2):
      names = [_shown(found.words[int(i)]) for i in near.ids[row]]
      line += [" ".join(names), f"{near.values[row, 0]:.2f}"]
    if found.moved is not None:
      line += [
        _shown(_start_word(found, row) or "-"),
        f"{found.moved[row]:.2f}",
      ]
    cells.append(line)
  return f"{_markdown(cells)}\n\n{format_summary(found)}"


def format_summary(found: Found) -> str:
  """Returns clusters, the distance to the start and label words as lines."""
  rows = len(found.cosine.ids)
  lines = []
  for name, groups in (
    ("share most neighbours", found.by_neighbors),
    (f"have a cosine of at least {_ALIKE}", found.by_cosine),
  ):
    inside = sum(map(len, groups))
    lines.append(
      f"{inside} of {rows} rows {name} with another, in {len(groups)}"
      f" {'cluster' if len(groups) == 1 else 'clusters'}"
    )
  for group in found.by_neighbors[:10]:
    shared = found.cosine.ids[group[0]]
    for row in group[1:]:
      shared = shared[np.isin(shared, found.cosine.ids[row])]
    if not len(shared):  # a chain: name what its first row is nearest to
      shared = found.cosine.ids[group[0], :1]
    names = " ".join(_shown(found.words[int(i)]) for i in shared)
    lines.append(f"  rows {', '.join(map(str, group))}: {names}")
  if found.moved is None or found.turned is None:
    lines.append(f"distance to the start: not known ({found.note})")
  else:
    lines.append(
      f"distance to the start: {found.moved.min():.2f} to"
      f" {found.moved.max():.2f}, mean {found.moved.mean():.2f}; cosine mean"
      f" {found.turned.mean():.2f} ({found.note})"
    )
  shares = found.label_shares()
  if shares:
    lines.append(
      f"a label word is nearest to {100 * shares['nearest']:.1f} % of the rows"
      f" (L2: {100 * shares['nearest_l2']:.1f} %), and among the"
      f" {found.cosine.ids.shape[1]} nearest of {100 * shares['among_k']:.1f} %"
    )
  return "\n".join(lines)


def _shown(text: str) -> str:
  """Escapes what would end a cell or begin a format."""
  for character in "\\|*_`":
    text = text.replace(character, f"\\{character}")
  return text.replace("\n", "\\n")


def _markdown(cells: Sequence[Sequence[str]]) -> str:
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    "| "
    + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    + " |"
    for row in cells
  ]
  rule = "| " + " | ".join("-" * max(w, 3) for w in widths) + " |"
  return "\n".join([lines[0], rule, *lines[1:]])
