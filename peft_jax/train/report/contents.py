"""What a report shows, and the names of its files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from peft_jax.partition import RuleRow

REPORT_NAME = "report.html"
CURVES_NAME = "curves.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """Everything the report shows. Empty parts are left out of the page.

  Attributes:
    title: the run in a few words.
    method: the adaptation method, for example ``"(IA)3"``.
    rules: the rule table.
    trained_parameters: how many numbers were trained.
    backbone_parameters: how many numbers the frozen backbone has.
    adapter_bytes: the size of the saved adapter.
    optimizer_bytes: the size of the optimizer's state.
    seconds: how long the run took, in seconds.
    settings: name -> value of what the run was told.
    environment: name -> value of versions, devices and the like.
    metrics: the records of ``logs.read_metrics``.
    frozen_metrics: task -> {metric -> value} of the backbone alone.
    adapted_metrics: the same with the trained adapter. Accuracies are
      percentages from 0 to 100.
    examples: dictionaries with ``input``, ``target``, ``adapted_prediction``
      and perhaps ``frozen_prediction``. A prediction counts as right if it is
      the target, spaces around it aside, unless ``adapted_correct`` or
      ``frozen_correct`` says otherwise.
  """

  title: str
  method: str
  rules: Sequence[RuleRow]
  trained_parameters: int
  backbone_parameters: int
  adapter_bytes: int
  optimizer_bytes: int
  seconds: float
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  metrics: Sequence[Mapping[str, Any]] = ()
  frozen_metrics: Mapping[str, Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )
  adapted_metrics: Mapping[str, Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )
  examples: Sequence[Mapping[str, Any]] = ()
