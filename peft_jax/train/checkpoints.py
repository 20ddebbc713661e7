"""A run's checkpoints: adapter, optimizer, step, rng and manifest.

    checkpoints/200/adapter/    the leaves, one module per layer
    checkpoints/200/optimizer/  the optimizer's state and the rng
    checkpoints/200/manifest    what it is, with a hash of every leaf

A T5X job's are the same under T5X's names, `checkpoint_200/...`.

The backbone is not in it, only its name and fingerprint. A step's folder gets
its name when it is complete, so a run killed while saving goes on from the
checkpoint before.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from peft_jax import checkpoint, layout, trees
from peft_jax import manifest as manifests
from peft_jax.manifest import Manifest
from peft_jax.orbax_io import locate
from peft_jax.train.step import TrainState

FOLDER = "checkpoints"
T5X_PREFIX = "checkpoint"


class CheckpointError(ValueError):
  """A run whose checkpoints cannot be used as asked."""


class Checkpoints:
  """Saves a run's state in the background, keeps the latest and the best."""

  def __init__(
    self, model_dir: str | Path, *, keep: int | None, of_t5x: bool = False
  ) -> None:
    """Opens or makes the folder of a run's checkpoints.

    Args:
      model_dir: the run's folder.
      keep: number of latest checkpoints that are kept, the best one besides;
        None: all.
      of_t5x: whether the folders are called as T5X's loop expects them.
    """
    kept: list[Any] = [
      policies.LatestN(keep),
      policies.BestN(
        get_metric_fn=lambda metrics: metrics["score"],
        n=1,
        keep_checkpoints_without_metrics=False,
      ),
    ]
    folder = locate(model_dir)
    self._manager = ocp.CheckpointManager(
      folder if of_t5x else folder / FOLDER,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        step_prefix=T5X_PREFIX if of_t5x else None,
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
    optimizer = _optimizer_item(state)
    self.save_items(
      int(state.step), state.adapter, optimizer, manifest, score=score
    )

  def save_items(
    self,
    step: int,
    adapter: Any,
    optimizer: Any,
    manifest: Manifest,
    *,
    score: float | None = None,
  ) -> None:
    """Starts saving the parts of a state; does nothing if the step is there.

    Args:
      step: number of updates done.
      adapter: the adapter's leaves, in either view of the layers.
      optimizer: a tree of arrays, whatever else resuming needs.
      manifest: describes the adapter.
      score: see `save`.
    """
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        adapter=ocp.args.StandardSave(layout.to_layers(adapter)),
        optimizer=ocp.args.StandardSave(optimizer),
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
    restored = self.restore_optimizer(
      step, jax.tree.map(_abstract, _optimizer_item(state))
    )
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

  def restore_optimizer(self, step: int, like: Any) -> Any:
    """Returns the item `optimizer` of a checkpoint.

    Args:
      step: which checkpoint.
      like: tree of shapes with shardings.

    Raises:
      CheckpointError: if it has other leaves.
    """
    try:
      return self._manager.restore(
        step,
        args=ocp.args.Composite(optimizer=ocp.args.StandardRestore(like)),
      )["optimizer"]
    except ValueError as error:
      raise CheckpointError(
        "expected the optimizer's state of this run in"
        f" {self._manager.directory}, step {step}, found another"
        f" ({str(error)[:200]}). Use warm_start to begin a new schedule from"
        " these weights."
      ) from error

  def wait(self) -> None:
    """Waits until everything is written."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and closes."""
    self._manager.close()


def steps_of(model_dir: str | Path) -> list[int]:
  """Returns the steps of a run's complete checkpoints, in order."""
  return sorted(_folders(model_dir))


def _folders(model_dir: str | Path) -> dict[int, Any]:
  """Returns step -> folder of a run's complete checkpoints."""
  run = locate(model_dir)
  own = run / FOLDER
  if own.is_dir():
    return {int(p.name): p for p in own.iterdir() if p.name.isdigit()}
  found = {}
  for path in run.iterdir() if run.is_dir() else ():
    prefix, _, step = path.name.rpartition("_")
    if prefix == T5X_PREFIX and step.isdigit() and is_checkpoint(path):
      found[int(step)] = path
  return found


def folder_of(model_dir: str | Path, step: int) -> Any:
  """Returns the folder of one of a run's checkpoints."""
  return _folders(model_dir)[step]


def is_checkpoint(folder: str | Path) -> bool:
  """Whether a folder is one step's, of a run or of a T5X job with adapters."""
  where = locate(folder)
  parts = (where / "manifest").is_dir() and (where / "adapter").is_dir()
  # In a bucket nothing can be renamed: there the last file says it is complete.
  return parts and ocp.utils.is_checkpoint_finalized(epath.Path(where))


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
  folders = _folders(model_dir)
  if not folders or (step is not None and step not in folders):
    raise CheckpointError(
      f"expected a checkpoint{'' if step is None else f' of step {step}'} in"
      f" {model_dir}, found {sorted(folders) or 'none'}."
    )
  return read_folder(folders[max(folders) if step is None else step])


def read_folder(folder: str | Path) -> tuple[Manifest, dict]:
  """Returns manifest and adapter of one step's folder, as numpy arrays.

  Raises:
    AdapterError: if the adapter's bytes are not those of its manifest.
  """
  where = locate(folder)
  manifest = _manifest_of(where)
  leaves = checkpoint.read_orbax(where / "adapter")
  checkpoint.verify(manifest, leaves, source=str(where))
  return manifest, trees.unflatten(leaves)


def _manifest_of(folder: Any) -> Manifest:
  values = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(
    folder / "manifest"
  )
  return manifests.from_json(values, source=str(folder))


def read_manifest(model_dir: str | Path, *, step: int) -> Manifest:
  """Returns the manifest of a run's checkpoint, not looking at its leaves."""
  return _manifest_of(folder_of(model_dir, step))


def load_adapter(directory: str | Path) -> tuple[Manifest, dict]:
  """Returns manifest and adapter of a run, or of an exported adapter.

  Args:
    directory: a run's folder, one of its checkpoints, or an adapter directory.

  Raises:
    AdapterError: if it is none of them.
  """
  if steps_of(directory):
    return read(directory)
  if is_checkpoint(directory):
    return read_folder(directory)
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
