"""What the SuperGLUE tasks are made of; `superglue` registers them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import seqio

from peft_jax.tasks import (
  metrics,
  postprocessors,
  preprocessors,
  qa_metrics,
  sources,
  superglue_rows,
  superglue_text,
)

_TRUTH: Mapping[str, bool] = {"False": False, "True": True}
_ENTAILMENT = {name: name for name in ("entailment", "not_entailment")}
_CB = {name: name for name in ("entailment", "contradiction", "neutral")}


# Split -> its official file. The other files of a folder (FewGLUE's
# dev32.jsonl) are not read.
_FILES: Mapping[str, str] = {
  "train": "train.jsonl",
  "validation": "val.jsonl",
  "test": "test.jsonl",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """What one SuperGLUE task is made of.

  Attributes:
    name: the name TFDS and T5 give it; the task is `superglue_<name>`.
    folder: its folder in the official data.
    files: split -> its file in the folder.
    num_train: examples of the full training set as T5 counts them, the rate of
      the task in a mixture over TFDS (t5/data/glue_utils.py).
    num_test: what a submission answers: examples, or ReCoRD's queries.
    labels: text of each class -> its value in the official files, in TFDS's
      order of classes. Empty: the answer is free text.
    text_fields: the fields of the input, in the order of T5's text.
    fields: what else is read from local rows. Default: the number `idx`.
    idx: names of the numbers that `idx` is made of; see
      `preprocessors.example_idx`.
    write: makes text of rows. Default: `preprocessors.t5_text`.
    expand: makes rows like TFDS's of an object of an official file. Default:
      the object is the row.
    tfds_name: its configuration of TFDS. Default: `name`.
    tfds_source: reads it. Default: SeqIO's.
    tfds_steps: what makes rows like the local ones of TFDS's. Default: nothing.
    postprocess_fn: makes what the metrics compare. Default: the text.
    metric_fns: SuperGLUE's metrics for it. Default: accuracy.
  """

  name: str
  folder: str
  files: Mapping[str, str] = dataclasses.field(default_factory=lambda: _FILES)
  num_train: int
  num_test: int
  labels: Mapping[str, str | int | bool] = dataclasses.field(
    default_factory=dict
  )
  text_fields: tuple[str, ...] = ()
  fields: Mapping[str, sources.FieldType] = dataclasses.field(
    default_factory=lambda: {"idx": int}
  )
  idx: tuple[str, ...] = ()
  write: preprocessors.Preprocessor | None = None
  expand: sources.Expand | None = None
  tfds_name: str = ""
  tfds_source: type[seqio.TfdsDataSource] = seqio.TfdsDataSource
  tfds_steps: tuple[preprocessors.Preprocessor, ...] = ()
  postprocess_fn: Callable[..., Any] | None = None
  metric_fns: tuple[Callable[..., Mapping[str, float]], ...] = (
    metrics.accuracy,
  )

  @property
  def task_name(self) -> str:
    """The name in SeqIO's registry."""
    return f"superglue_{self.name}"


_SPANS = {
  "text": str,
  "span1_text": str,
  "span1_index": int,
  "span2_text": str,
  "span2_index": int,
  "idx": int,
}

SPECS: Mapping[str, Spec] = {
  spec.name: spec
  for spec in (
    Spec(
      name="boolq",
      folder="BoolQ",
      text_fields=("passage", "question"),
      labels=_TRUTH,
      num_train=9_427,
      num_test=3_245,
    ),
    Spec(
      name="cb",
      folder="CB",
      text_fields=("hypothesis", "premise"),
      labels=_CB,
      num_train=250,
      num_test=250,
      metric_fns=(functools.partial(metrics.macro_f1, labels=tuple(_CB)),),
    ),
    Spec(
      name="copa",
      folder="COPA",
      text_fields=("choice1", "choice2", "premise", "question"),
      labels={"choice1": 0, "choice2": 1},
      num_train=400,
      num_test=500,
    ),
    Spec(
      name="multirc",
      folder="MultiRC",
      text_fields=("question", "answer", "paragraph"),
      labels={"False": 0, "True": 1},
      fields={"idx/paragraph": int, "idx/question": int, "idx/answer": int},
      idx=("paragraph", "question", "answer"),
      expand=superglue_rows.multirc,
      num_train=27_243,
      num_test=9_693,
      postprocess_fn=postprocessors.multirc,
      metric_fns=(qa_metrics.multirc,),
    ),
    Spec(
      name="record",
      folder="ReCoRD",
      fields={
        "query": str,
        "entities": list,
        "passage": str,
        "answers": list,
        "answer": str,
        "idx/passage": int,
        "idx/query": int,
      },
      idx=("passage", "query"),
      write=superglue_text.record,
      expand=superglue_rows.record,
      tfds_steps=(superglue_text.one_per_answer,),
      num_train=138_854,
      num_test=10_000,
      postprocess_fn=postprocessors.record,
      metric_fns=(qa_metrics.record,),
    ),
    Spec(
      name="rte",
      folder="RTE",
      text_fields=("hypothesis", "premise"),
      labels=_ENTAILMENT,
      num_train=2_490,
      num_test=3_000,
    ),
    Spec(
      name="wic",
      folder="WiC",
      # T5 leaves out where the word stands in the sentences.
      text_fields=("sentence1", "sentence2", "word"),
      labels=_TRUTH,
      num_train=5_428,
      num_test=1_400,
    ),
    # Free text, as T5 trains and evaluates it: what does the pronoun mean?
    Spec(
      name="wsc",
      folder="WSC",
      fields={**_SPANS, "label": sources.Label(values=(False, True))},
      write=superglue_text.wsc,
      expand=superglue_rows.wsc,
      tfds_name="wsc.fixed",
      tfds_source=superglue_text.RightNouns,
      num_train=259,
      num_test=146,
      postprocess_fn=postprocessors.wsc,
    ),
    # The same rows as a choice: does the pronoun mean this noun?
    Spec(
      name="wsc.fixed",
      folder="WSC",
      labels=_TRUTH,
      fields=_SPANS,
      write=superglue_text.wsc_fixed,
      expand=superglue_rows.wsc_fixed,
      num_train=554,
      num_test=146,
    ),
    # The diagnostics, a test set each, asked for as RTE is.
    Spec(
      name="axb",
      folder="AX-b",
      files={"test": "AX-b.jsonl"},
      labels=_ENTAILMENT,
      fields={"sentence1": str, "sentence2": str, "idx": int},
      write=superglue_text.axb,
      num_train=0,
      num_test=1_104,
      metric_fns=(metrics.matthews,),
    ),
    Spec(
      name="axg",
      folder="AX-g",
      files={"test": "AX-g.jsonl"},
      labels=_ENTAILMENT,
      fields={"premise": str, "hypothesis": str, "idx": int},
      write=superglue_text.as_rte,
      num_train=0,
      num_test=356,
    ),
  )
}

DIAGNOSTICS = tuple(n for n, spec in SPECS.items() if "train" not in spec.files)
