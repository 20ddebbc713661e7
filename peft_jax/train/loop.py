"""The training loop, from a configuration to a report."""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from peft_jax import layout, partition, sharding
from peft_jax import manifest as manifests
from peft_jax.orbax_io import locate
from peft_jax.train import (
  checkpoints,
  data,
  evaluate,
  features,
  fisher,
  report,
  run_dir,
  used,
)
from peft_jax.train.checkpoints import Checkpoints
from peft_jax.train.config import Config, ConfigError, Resolved
from peft_jax.train.evaluate import Evaluation, Predict
from peft_jax.train.hosts import ALONE, Hosts
from peft_jax.train.logs import RunLog, read_metrics
from peft_jax.train.preemption import EXIT_CODE, Preemption
from peft_jax.train.progress import Progress
from peft_jax.train.setup import Setup, jitted_step, setup, warm_started
from peft_jax.train.step import TrainState

# By then a schedule that warms up from 0 has moved LoRA's b, so that its a has
# a gradient.
_GRADIENT_CHECK_STEPS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """What a run came to.

  Attributes:
    steps: updates done.
    frozen_metrics: task -> metrics of the frozen model; empty if not asked.
    adapted_metrics: task -> metrics at the end.
    trained_parameters: size of the adapter.
    backbone_parameters: size of the backbone.
    adapter_bytes: bytes of the adapter's leaves.
    seconds: wall time of the run.
  """

  steps: int
  frozen_metrics: Mapping[str, Mapping[str, float]]
  adapted_metrics: Mapping[str, Mapping[str, float]]
  trained_parameters: int
  backbone_parameters: int
  adapter_bytes: int
  seconds: float


def train(resolved: Resolved, processes: Hosts = ALONE) -> Summary:
  """Trains an adapter as configured; the same call again resumes the run.

  Args:
    resolved: from `config.resolve`.
    processes: of this run, from `hosts.join`.

  Raises:
    SystemExit: with code 143 after SIGTERM, when the state is saved.
    HostsError: if the processes' settings, versions or devices differ.
    ValueError: of many kinds, all before anything is written: a setting, a
      file, a rule or a checkpoint that is not as expected.
  """
  config, started = resolved.config, time.monotonic()

  # Everything that can be wrong is looked at before anything is written.
  mesh = sharding.make_mesh(model=config.model_parallel)
  sharding.check_batch(
    config.batch_size, mesh=mesh, micro_batches=config.micro_batches
  )
  sharding.check_batch(config.eval_batch_size, mesh=mesh)
  resuming = run_dir.check(resolved)
  processes.agree(_facts(resolved, mesh))
  task = data.get_task(config)
  data.check_vocabulary(task, config.network.config.vocab_size)
  if not config.allow_cut_targets:
    data.check_targets(task, config.task_feature_lengths)
  eval_sets = []
  if config.eval_split:
    eval_sets = data.configured_sets(config, task)
  evaluate.check(config.answer_by, eval_sets)
  width = data.choices_width(config, task)
  stream = functools.partial(
    data.train_batches,
    task,
    lengths=config.task_feature_lengths,
    seed=config.random_seed,
    use=used.of(config, task),
    features=features.of(config, task),
  )

  with sharding.use(mesh):
    run = setup(config, mesh)
    if config.warm_start and not resuming:
      run = warm_started(run, config.warm_start)
    elif not resuming:
      run = fisher.masked(run, config, stream(batch_size=1))
    if is_first_process():
      run_dir.create(resolved)
    announce(config, run, mesh)
    evaluator = Evaluator(config, run, mesh, eval_sets)
    frozen: list[Evaluation] = []
    if config.eval_frozen:
      frozen = evaluator.evaluate_frozen()
      note(f"frozen model: {format_metrics(frozen)}")
    stream = functools.partial(
      stream, batch_size=config.batch_size, width=width
    )
    state, adapted = _run(resolved, run, mesh, stream, evaluator, resuming)

  summary = Summary(
    steps=int(state.step),
    frozen_metrics={e.task: e.metrics for e in frozen},
    adapted_metrics={e.task: e.metrics for e in adapted},
    trained_parameters=int(run.counts["trained_parameters"]),
    backbone_parameters=int(run.counts["backbone_parameters"]),
    adapter_bytes=int(run.counts["adapter_bytes"]),
    seconds=time.monotonic() - started,
  )
  if is_first_process():
    _write_results(resolved, run, summary, frozen, adapted)
  return summary


def _facts(resolved: Resolved, mesh: Mesh) -> dict[str, str]:
  """Returns what all processes of a run must have alike."""
  device = jax.local_devices()[0]
  model_dir = resolved.config.model_dir
  return {
    **resolved.settings,
    **{f"version of {k}": v for k, v in manifests.versions().items()},
    "devices": f"{jax.local_device_count()} x {device.device_kind}",
    "mesh": str(dict(mesh.shape)),
    # Of a folder that each has for itself, only one could go on.
    f"checkpoints in {model_dir}": str(checkpoints.steps_of(model_dir)),
  }


def _run(
  resolved: Resolved,
  run: Setup,
  mesh: Mesh,
  stream: Callable[..., Iterator[dict[str, np.ndarray]]],
  evaluator: "Evaluator",
  resuming: bool,
) -> tuple[TrainState, list[Evaluation]]:
  """Takes the steps; returns the last state and its evaluation."""
  config, state = resolved.config, run.state
  saved = Checkpoints(config.model_dir, keep=config.keep)
  log = RunLog(directory=config.model_dir, enabled=is_first_process())
  if resuming:
    state = saved.restore(state)
    log.truncate_after(int(state.step))
    note(f"resumed {config.model_dir} at step {int(state.step)}")
  first = int(state.step)
  whole = sharding.replicated(mesh)
  gather = jax.jit(lambda tree: tree, out_shardings=whole)
  step_fn = jitted_step(config, run.model, run.tx, run.state_sharding, mesh)
  batches = stream(start_step=first)
  place = sharding.batch_sharding(mesh)

  def save(state: TrainState, metrics: Mapping[str, float] | None) -> None:
    state = gather(state)
    manifest = _manifest(resolved, run, state, metrics)
    score = evaluator.score(metrics) if metrics else None
    saved.save(state, manifest, score=score)

  adapted: list[Evaluation] = []
  window: list[Any] = []
  scores = _scores(config, evaluator, until=first)
  end = first if _is_patient_no_more(config, scores) else config.train_steps
  with (
    Preemption() as preemption,
    Progress(
      total_steps=config.train_steps,
      start_step=first,
      every=config.log_period,
      enabled=is_first_process(),
    ) as progress,
    log,
  ):
    for step in range(first + 1, end + 1):
      if preemption.reached(step):
        save(state, None)
        saved.close()
        done = int(state.step)
        progress.note(
          f"Preempted: saved step {done} to {config.model_dir}; exiting"
          f" {EXIT_CODE} for restart."
        )
        sys.exit(EXIT_CODE)
      state, metrics = step_fn(
        state, run.frozen, data.to_devices(next(batches), place)
      )
      window.append(metrics)
      last = step == config.train_steps
      if step == first + _GRADIENT_CHECK_STEPS:
        trained, _ = partition.divide(state.adapter, run.model)
        warn_unreached(jax.device_get(metrics["unreached"]), trained, progress)
      if step % config.log_period == 0 or last:
        means = _means(jax.device_get(window))
        window.clear()
        progress.update(
          step=step, loss=means["loss"], tokens=int(means.pop("tokens_seen"))
        )
        log.write(step=step, kind="train", metrics=means | _rate(config, step))
        _check_finite(means, step)
      if last or (config.eval_period and step % config.eval_period == 0):
        with progress.paused("evaluating"):
          adapted = evaluator.evaluate(state.adapter)
        flat = evaluator.flat(adapted)
        log.write(step=step, kind="eval", metrics=flat)
        progress.note(f"step {step}: {format_metrics(adapted)}")
        save(state, flat)
        if config.patience:
          scores[step] = evaluator.score(flat)
        if not last and _is_patient_no_more(config, scores):
          best = max(scores, key=lambda step: scores[step])
          progress.note(
            f"stopped at step {step}: no better than {scores[best]:.2f} of step"
            f" {best} in {config.patience} evaluations"
          )
          break
      elif step % config.checkpoint_period == 0:
        save(state, None)
    if first >= end:
      adapted = evaluator.evaluate(state.adapter)
  saved.close()
  return state, adapted


def _scores(
  config: Config, evaluator: "Evaluator", *, until: int
) -> dict[int, float]:
  """Returns step -> deciding metric of the evaluations that are behind us."""
  if not config.patience or not until:
    return {}
  return {
    record["step"]: evaluator.score(
      {name: value for name, value in record.items() if "/" in name}
    )
    for record in read_metrics(config.model_dir)
    if record["kind"] == "eval" and 0 < record["step"] <= until
  }


def _is_patient_no_more(config: Config, scores: Mapping[int, float]) -> bool:
  """Whether the last evaluations were no better than one before them."""
  values = list(scores.values())
  before, recent = values[: -config.patience], values[-config.patience :]
  return bool(config.patience and before and max(recent) <= max(before))


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Evaluates adapters of one run; compiles once."""

  config: Config
  run: Setup
  mesh: Mesh
  eval_sets: list[data.EvalSet]

  @functools.cached_property
  def _predict(self) -> Callable[[Any, Any, Any], jax.Array]:
    return self._answering(self.run.model)

  def _answering(self, model: Any) -> Callable[[Any, Any, Any], jax.Array]:
    how = self.config.answer_by
    return evaluate.answering(how, model, mesh=self.mesh, sets=self.eval_sets)

  def evaluate(self, adapter: Any) -> list[Evaluation]:
    """Returns one evaluation per task."""
    return self._evaluate(
      lambda inputs: self._predict(self.run.frozen, adapter, inputs)
    )

  def evaluate_frozen(self) -> list[Evaluation]:
    """Returns one evaluation per task of the backbone without adapters.

    Before training only: later, what is trained of the backbone has changed.
    """
    if not self.eval_sets:
      return []
    predict = self._answering(self.config.network)
    params = partition.join(self.run.frozen, self.run.state.adapter)
    backbone = partition.backbone_of(params, self.run.model)
    return self._evaluate(lambda inputs: predict(backbone, {}, inputs))

  def _evaluate(self, predict: Predict) -> list[Evaluation]:
    return [
      evaluate.evaluate(
        predict,
        eval_set,
        how=self.config.answer_by,
        batch_size=self.config.eval_batch_size,
        mesh=self.mesh,
      )
      for eval_set in self.eval_sets
    ]

  def flat(self, evaluations: list[Evaluation]) -> dict[str, float]:
    """Returns task/metric -> value."""
    return {
      f"{e.task}/{name}": value
      for e in evaluations
      for name, value in e.metrics.items()
    }

  def score(self, metrics: Mapping[str, float]) -> float:
    """Returns the metric that decides which checkpoint is best.

    Raises:
      ConfigError: if no task has it.
    """
    name = self.config.best_metric or next(iter(metrics), "")
    if name not in metrics:
      raise ConfigError(
        f"expected BEST_METRIC to be one of {sorted(metrics)}, found {name!r}."
      )
    return metrics[name]


def is_first_process() -> bool:
  """Whether this process writes logs and reports."""
  return jax.process_index() == 0


def note(text: str) -> None:
  """Prints a line from the first process."""
  if is_first_process():
    print(text, file=sys.stderr, flush=True)


def announce(config: Config, run: Setup, mesh: Mesh) -> None:
  """Prints what will be trained, before anything is compiled."""
  counts, state = run.counts, run.state.opt_state
  note(partition.format_rule_table(run.rows))
  note(
    f"trained {counts['trained_parameters']:,} of"
    f" {counts['all_parameters']:,} parameters ({100 * counts['share']:.3f} %):"
    f" adapter {counts['adapter_bytes']:,} bytes,"
    f" optimizer {partition.nbytes(state):,} bytes,"
    f" backbone {partition.nbytes(run.frozen):,} bytes"
  )
  note(
    f"mesh {dict(mesh.shape)} on {jax.devices()[0].platform},"
    f" {jax.process_count()} process(es); writing to {config.model_dir}"
  )


def format_metrics(evaluations: list[Evaluation]) -> str:
  """Returns the metrics of several tasks on one line."""
  return ", ".join(
    f"{e.task} {name} {value:.2f}"
    for e in evaluations
    for name, value in e.metrics.items()
  )


def warn_unreached(
  unreached: np.ndarray, trained: Any, progress: Progress
) -> None:
  """Says which adapter leaves had no gradient: they do nothing.

  Args:
    unreached: [leaves] bool, in the order of the trained leaves.
    trained: these leaves.
    progress: where to print.
  """
  paths = [
    "/".join(str(key.key) for key in path)
    for path, _ in jax.tree_util.tree_leaves_with_path(trained)
  ]
  idle = [p for p, none in zip(paths, unreached, strict=True) if none]
  if idle:
    progress.note(
      f"warning: {len(idle)} of {len(paths)} adapter leaves have no gradient"
      f" (first {idle[0]}): they do not change anything yet."
    )


def _rate(config: Config, step: int) -> dict[str, float]:
  rate = config.learning_rate
  if rate is None:
    return {}
  # The optimizer counts from 0, and this step is behind us.
  value = rate(step - 1) if callable(rate) else rate
  return {"learning_rate": float(np.asarray(value))}


def _means(window: list[Mapping[str, Any]]) -> dict[str, float]:
  """Averages metrics over the steps since the last record, by tokens."""
  tokens = np.array([float(m["tokens"]) for m in window])
  share = tokens / max(tokens.sum(), 1.0)
  names = window[0].keys() - {"tokens", "unreached"}
  means = {
    name: float(
      sum(s * float(m[name]) for s, m in zip(share, window, strict=True))
    )
    for name in sorted(names)
  }
  return means | {"tokens_seen": float(tokens.sum())}


def _check_finite(means: Mapping[str, float], step: int) -> None:
  if not np.isfinite(means["loss"]):
    raise FloatingPointError(
      f"expected a finite loss, found {means['loss']} at step {step}. Lower the"
      " learning rate; the checkpoints before are kept."
    )


def _manifest(
  resolved: Resolved,
  run: Setup,
  state: TrainState,
  metrics: Mapping[str, float] | None,
) -> manifests.Manifest:
  config = resolved.config
  return manifests.make(
    jax.tree.map(np.asarray, layout.to_layers(state.adapter)),
    run.model.rules,
    model=run.description,
    backbone=run.source,
    training={
      "step": int(state.step),
      "task": config.task,
      "vocabulary": config.vocabulary,
      "task_feature_lengths": dict(config.task_feature_lengths),
      "metrics": dict(metrics or {}),
      "gin": resolved.gin_text,
    },
  )


def _write_results(
  resolved: Resolved,
  run: Setup,
  summary: Summary,
  frozen: list[Evaluation],
  adapted: list[Evaluation],
) -> None:
  """Writes predictions, summary and report."""
  config = resolved.config
  before = {e.task: e for e in frozen}
  rows: list[dict[str, Any]] = []
  for e in adapted:
    task_rows = [
      {"input": i, "target": t, "adapted_prediction": p}
      for i, t, p in zip(e.inputs, e.targets, e.predictions, strict=True)
    ]
    if e.scores:
      for row, scores in zip(task_rows, e.scores, strict=True):
        row["adapted_scores"] = scores
    if e.task in before:
      for row, prediction in zip(
        task_rows, before[e.task].predictions, strict=True
      ):
        row["frozen_prediction"] = prediction
    run_dir.write_predictions(config.model_dir, e.task, task_rows)
    rows.extend(task_rows)
  folder = locate(config.model_dir)
  method = " + ".join(sorted({row.adapter for row in run.rows}))
  run_dir.write_json(
    folder / run_dir.SUMMARY,
    {
      **dataclasses.asdict(summary),
      # For tables of several runs.
      "method": config.method or method,
      "random_seed": config.random_seed,
      "examples": {e.task: len(e.predictions) for e in adapted},
      "settings": dict(resolved.settings),
    },
  )
  report.write_report(
    folder,
    report.Report(
      title=f"{config.task} on {config.model_name or 'the backbone'}",
      method=method,
      rules=run.rows,
      trained_parameters=summary.trained_parameters,
      backbone_parameters=summary.backbone_parameters,
      adapter_bytes=summary.adapter_bytes,
      optimizer_bytes=partition.nbytes(run.state.opt_state),
      seconds=summary.seconds,
      settings=dict(resolved.settings),
      environment=manifests.versions()
      | {"devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}"},
      metrics=read_metrics(folder),
      frozen_metrics=summary.frozen_metrics,
      adapted_metrics=summary.adapted_metrics,
      examples=rows,
    ),
  )
