"""A run's checkpoints: adapter, optimizer, step, rng and manifest.

    checkpoints/200/adapter/    the leaves, one module per layer
    checkpoints/200/optimizer/  the optimizer's state and the rng
    checkpoints/200/manifest    what it is, with a hash of every leaf

The backbone is not in it, only its name and fingerprint. A step's folder gets
its name when it is complete, so a run killed while saving goes on from the
checkpoint before.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from peft_jax import checkpoint, layout, trees
from peft_jax import manifest as manifests
from peft_jax.manifest import Manifest
from peft_jax.orbax_io import locate
from peft_jax.train.step import TrainState

FOLDER = "checkpoints"


class CheckpointError(ValueError):
  """A run whose checkpoints cannot be used as asked."""


class Checkpoints:
  """Saves a run's state in the background, keeps the latest and the best."""

  def __init__(self, model_dir: str | Path, *, keep: int) -> None:
    """Opens or makes the folder of a run's checkpoints.

    Args:
      model_dir: the run's folder.
      keep: number of latest checkpoints that are kept, the best one besides.
    """
    kept: list[Any] = [
      policies.LatestN(keep),
      policies.BestN(
        get_metric_fn=lambda metrics: metrics["score"],
        n=1,
        keep_checkpoints_without_metrics=False,
      ),
    ]
    self._manager = ocp.CheckpointManager(
      locate(model_dir) / FOLDER,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        step_prefix=None,
        create=True,
      ),
      item_names=("adapter", "optimizer", "manifest"),
      item_handlers={
        "adapter": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "manifest": ocp.JsonCheckpointHandler(),
      },
    )

  def save(
    self,
    state: TrainState,
    manifest: Manifest,
    *,
    score: float | None = None,
  ) -> None:
    """Starts saving the state; returns when its values have been copied.

    Args:
      state: the state, every leaf whole on every process.
      manifest: describes the adapter.
      score: of an evaluation; the checkpoint with the highest is the best.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        adapter=ocp.args.StandardSave(layout.to_layers(state.adapter)),
        optimizer=ocp.args.StandardSave(_optimizer_item(state)),
        manifest=ocp.args.JsonSave(manifests.to_json(manifest)),
      ),
      metrics=None if score is None else {"score": score},
    )

  def latest(self) -> int | None:
    """Returns the step of the last complete checkpoint."""
    return self._manager.latest_step()

  def restore(self, state: TrainState) -> TrainState:
    """Returns the last complete checkpoint's state.

    Args:
      state: a state of this run, for the structure and the placement.

    Raises:
      CheckpointError: if there is none, or it is for other leaves.
      AdapterError: if the adapter's bytes are not those of its manifest.
    """
    step = self.latest()
    if step is None:
      raise CheckpointError(
        f"expected a checkpoint in {self._manager.directory}, found none."
      )
    _, leaves = read(str(self._manager.directory.parent), step=step)
    source = f"{self._manager.directory}/{step}"
    checkpoint.check_fits(leaves, state.adapter, source=source)
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          optimizer=ocp.args.StandardRestore(
            jax.tree.map(_abstract, _optimizer_item(state))
          )
        ),
      )["optimizer"]
    except ValueError as error:
      raise CheckpointError(
        f"expected the optimizer's state of this run in {source}, found another"
        f" ({str(error)[:200]}). Use warm_start to begin a new schedule from"
        " these weights."
      ) from error
    adapter = jax.tree.map(
      lambda leaf, like: jax.device_put(leaf, like.sharding),
      layout.like(leaves, state.adapter),
      state.adapter,
    )
    return TrainState(
      step=restored["step"],
      adapter=adapter,
      opt_state=restored["opt_state"],
      rng=jax.random.wrap_key_data(restored["rng"]),
    )

  def wait(self) -> None:
    """Waits until everything is written."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and closes."""
    self._manager.close()


def steps_of(model_dir: str | Path) -> list[int]:
  """Returns the steps of a run's complete checkpoints, in order."""
  folder = locate(model_dir) / FOLDER
  if not folder.is_dir():
    return []
  return sorted(
    int(path.name) for path in folder.iterdir() if path.name.isdigit()
  )


def read(
  model_dir: str | Path, *, step: int | None = None
) -> tuple[Manifest, dict]:
  """Returns manifest and adapter of a run's checkpoint, as numpy arrays.

  Args:
    model_dir: the run's folder.
    step: which checkpoint; default: the last.

  Raises:
    CheckpointError: if the run has no such checkpoint.
    AdapterError: if the adapter's bytes are not those of its manifest.
  """
  steps = steps_of(model_dir)
  if not steps or (step is not None and step not in steps):
    raise CheckpointError(
      f"expected a checkpoint{'' if step is None else f' of step {step}'} in"
      f" {model_dir}/{FOLDER}, found {steps or 'none'}."
    )
  folder = locate(model_dir) / FOLDER / str(step or steps[-1])
  values = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(
    folder / "manifest"
  )
  manifest = manifests.from_json(values, source=str(folder))
  leaves = checkpoint.read_orbax(folder / "adapter")
  checkpoint.verify(manifest, leaves, source=str(folder))
  return manifest, trees.unflatten(leaves)


def load_adapter(directory: str | Path) -> tuple[Manifest, dict]:
  """Returns manifest and adapter of a run, or of an exported adapter.

  Args:
    directory: a run's folder or an adapter directory.

  Raises:
    AdapterError: if it is neither.
  """
  if steps_of(directory):
    return read(directory)
  if (locate(directory) / manifests.FILE_NAME).is_file():
    return checkpoint.load(directory)
  raise checkpoint.AdapterError(
    f"expected a run with checkpoints or an exported adapter, found"
    f" {'neither' if locate(directory).is_dir() else 'nothing'} at {directory}."
  )


def _optimizer_item(state: TrainState) -> dict[str, Any]:
  return {
    "opt_state": state.opt_state,
    "rng": jax.random.key_data(state.rng),
    "step": state.step,
  }


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
