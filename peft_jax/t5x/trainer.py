"""T5X's trainer, which says what it trains and saves when it has to go."""

from collections.abc import Iterator
from typing import Any

import jax
from t5x import trainer

from peft_jax import partition
from peft_jax.inject import Adapted
from peft_jax.train.loop import note
from peft_jax.train.preemption import EXIT_CODE, Preemption


class Preempted(trainer.PreemptionError, SystemExit):
  """SIGTERM came; T5X saves and lets it through, and the process ends.

  As a PreemptionError T5X's loop saves a checkpoint when it sees it; as a
  SystemExit it ends the process with the status that asks for a restart.
  """

  # Of the class: gin raises a copy in its place, made without __init__.
  code = EXIT_CODE


class Trainer(trainer.Trainer):
  """T5X's trainer for a network with adapters."""

  def __init__(self, *args: Any, **kwargs: Any) -> None:
    """Prints what is trained; the arguments are those of T5X's trainer.

    Raises:
      TypeError: if the model's network is not an `Adapted` one.
    """
    super().__init__(*args, **kwargs)
    module = getattr(self._model, "module", None)
    if not isinstance(module, Adapted):
      raise TypeError(
        "expected a model whose module is inject.Adapted, found"
        f" {type(module).__name__}. Use gin_configs/models/t5x_*.gin, or T5X's"
        " own trainer."
      )
    self._newest: Any = None
    if self.train_state is not None:  # T5X's eval sets it later
      announce(module, self.train_state)
    self._preemption = Preemption()
    self._preemption.__enter__()

  def close(self) -> None:
    """Stops the trainer's threads; SIGTERM does what it did before."""
    self._preemption.__exit__()
    super().close()

  def train(
    self, batch_iter: Any, num_steps: int, start_step: int | None = None
  ) -> Any:
    """Runs some steps; as T5X's.

    Raises:
      Preempted: after SIGTERM, between two steps.
    """
    if start_step is None:
      start_step = int(self.train_state.step)
    own, self._newest = self._compiled_train_step, self.train_state
    run = own or self._partitioned_train_step

    def remembered(state: Any, batch: Any) -> Any:
      self._newest, metrics = run(state, batch)
      return self._newest, metrics

    self._compiled_train_step = remembered
    try:
      return super().train(
        self._until_preempted(batch_iter, start_step), num_steps, start_step
      )
    except Preempted:
      # The state that T5X's loop began with was overwritten in place.
      self.train_state = self._newest
      raise
    finally:
      self._compiled_train_step = own

  def _until_preempted(
    self, batch_iter: Iterator[Any], start_step: int
  ) -> Iterator[Any]:
    step = start_step
    while True:
      step += 1
      if self._preemption.reached(step):
        note(
          f"Preempted: saving step {step - 1}; exiting {EXIT_CODE} for restart."
        )
        raise Preempted
      yield next(batch_iter)


def announce(module: Adapted, state: Any) -> None:
  """Prints what will be trained, before anything is compiled."""
  counts = partition.counts(state.params, module)
  frozen, _ = partition.split(state.params, module)
  note(partition.format_rule_table(partition.rule_table(state.params, module)))
  note(
    f"trained {counts['trained_parameters']:,} of"
    f" {counts['all_parameters']:,} parameters ({100 * counts['share']:.3f} %):"
    f" adapter {counts['adapter_bytes']:,} bytes,"
    f" optimizer {partition.nbytes(state.param_states):,} bytes,"
    f" backbone {partition.nbytes(frozen):,} bytes"
  )
  devices = jax.devices()
  note(
    f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()}"
    " process(es)"
  )
