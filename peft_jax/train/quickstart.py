"""The quickstart: adapt the model that ships, compare, merge, compare again."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from peft_jax.merge import merge
from peft_jax.train import config, loop, opened, run_dir
from peft_jax.train.evaluate import Evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """The figures of the quickstart, as `summary.json` has them.

  Attributes:
    frozen_accuracy: per cent of exact answers of the frozen model.
    adapted_accuracy: the same with the adapter.
    eval_examples: number of unseen examples.
    trained_parameters: size of the adapter.
    trained_share: of all parameters, from 0 to 1.
    adapter_bytes: bytes of the adapter's leaves.
    seconds: wall time of everything.
    merged_agreement: share of examples on which the merged model answers as
      the adapted one, from 0 to 1.
  """

  frozen_accuracy: float
  adapted_accuracy: float
  eval_examples: int
  trained_parameters: int
  trained_share: float
  adapter_bytes: int
  seconds: float
  merged_agreement: float


def run(model_dir: str, bindings: Sequence[str] = ()) -> int:
  """Runs the quickstart and prints its table; returns the exit status.

  Args:
    model_dir: the run's folder.
    bindings: gin bindings to change.
  """
  started = time.monotonic()
  resolved = config.resolve(
    ["recipes/quickstart.gin"], [f"MODEL_DIR = {model_dir!r}", *bindings]
  )
  summary = loop.train(resolved)
  found = opened.open_adapter(model_dir, bindings=bindings)
  [adapted] = opened.evaluate_task(found)
  merged = merge(found.params, found.model)
  [folded] = opened.evaluate_task(
    found, params=merged, network=found.model.network
  )
  result = Result(
    frozen_accuracy=summary.frozen_metrics[adapted.task]["accuracy"],
    adapted_accuracy=adapted.metrics["accuracy"],
    eval_examples=len(adapted.targets),
    trained_parameters=summary.trained_parameters,
    trained_share=summary.trained_parameters
    / (summary.trained_parameters + summary.backbone_parameters),
    adapter_bytes=summary.adapter_bytes,
    seconds=time.monotonic() - started,
    merged_agreement=agreement(adapted, folded),
  )
  path = Path(model_dir) / run_dir.SUMMARY
  values = json.loads(path.read_text()) | dataclasses.asdict(result)
  run_dir.write_json(path, values)
  print(format_table(result))
  print(f"\nreport: {Path(model_dir) / 'report.html'}")
  return 0


def agreement(one: Evaluation, other: Evaluation) -> float:
  """Returns the share of examples that two models answer alike."""
  pairs = zip(one.predictions, other.predictions, strict=True)
  return sum(a == b for a, b in pairs) / len(one.predictions)


def format_table(result: Result) -> str:
  """Returns the table that the quickstart ends with.

  Example:
    >>> print(format_table(Result(frozen_accuracy=2, adapted_accuracy=95,
    ...   eval_examples=500, trained_parameters=3840, trained_share=0.003,
    ...   adapter_bytes=15360, seconds=60, merged_agreement=1)))
                           frozen   adapted    merged
    accuracy, 500 unseen     2.0 %    95.0 %  100.0 % as adapted
    trained parameters           0     3,840  (0.300 %)
    adapter size                      15,360  bytes
    time                                60.0  seconds
  """
  r = result
  label = f"accuracy, {r.eval_examples:,} unseen"
  return "\n".join(
    [
      f"{'':22} {'frozen':>7} {'adapted':>9} {'merged':>9}",
      f"{label:22} {r.frozen_accuracy:6.1f} % {r.adapted_accuracy:7.1f} %"
      f" {100 * r.merged_agreement:6.1f} % as adapted",
      f"{'trained parameters':22} {0:6} {r.trained_parameters:9,}"
      f"  ({100 * r.trained_share:.3f} %)",
      f"{'adapter size':22} {'':6} {r.adapter_bytes:9,}  bytes",
      f"{'time':22} {'':6} {r.seconds:9.1f}  seconds",
    ]
  )
