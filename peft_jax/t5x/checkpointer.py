"""T5X's checkpointer for adapters: strict, and without the backbone.

T5X hands it three kinds of paths. The pretrained checkpoint, to start from:
then exactly the adapter is new. A checkpoint of its own, to go on from. And, to
evaluate and infer with, any adapter: of a T5X job, of a run of ours, exported.
In the last two cases the backbone is read from where it was.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from t5x import partitioning
from t5x import train_state as train_states

from peft_jax import checkpoint, layout, partition, start, trees
from peft_jax import manifest as manifests
from peft_jax.adapters.fish_mask import FishMask
from peft_jax.checkpoint import AdapterError
from peft_jax.formats import hugging_face
from peft_jax.formats import t5x as t5x_files
from peft_jax.inject import Adapted
from peft_jax.manifest import Manifest
from peft_jax.t5x import networks, paths
from peft_jax.train import checkpoints, setup
from peft_jax.train.checkpoints import CheckpointError, Checkpoints
from peft_jax.train.config import ConfigError


class AdapterCheckpointer:
  """Saves and restores T5X's state of a network with adapters.

  For `checkpointer_cls` of T5X's configurations, with `use_orbax=False`: T5X's
  other way cannot go on with a checkpointer that is not its own. T5X gives the
  first arguments, gin those after `module`.
  """

  def __init__(
    self,
    train_state: train_states.TrainState,
    partitioner: partitioning.BasePartitioner,
    checkpoints_dir: str = "",
    dataset_iterator: Any = None,
    *,
    module: Adapted,
    backbone: str,
    model_name: str = "",
    backbone_dtype: Any = "float32",
    warm_start: str = "",
    start_step: str = "zero",
    random_seed: int | None = 0,
    training: Mapping[str, Any] | None = None,
    keep: int | None = None,
    directory: str = "",
    **unused: Any,
  ) -> None:
    """Reads nothing yet.

    Args:
      train_state: shapes of T5X's state.
      partitioner: T5X's, says where arrays lie.
      checkpoints_dir: the job's folder, to save to.
      dataset_iterator: the training batches, if their position is kept.
      module: the network with its rules.
      backbone: a T5X checkpoint, a backbone directory, an `.npz` file, 'tiny',
        or 'random'.
      model_name: name of the network, for the manifest.
      backbone_dtype: of the parameters that stay frozen.
      warm_start: adapter to take weights from at the start.
      start_step: 'zero', a step counter and an optimizer of the adapter's own;
        'checkpoint', the counter goes on from the pretrained checkpoint's, as
        T5X's does. The optimizer starts anew in both.
      random_seed: of what the adapter starts with.
      training: what the manifest is to say of the task; see `Config`.
      keep: number of latest checkpoints that are kept; None: all.
      directory: `checkpoints_dir` under the name T5X's export has for it.
      **unused: what T5X says besides: dtypes, periods.
    """
    if start_step not in ("zero", "checkpoint"):
      raise ConfigError(
        "expected START_STEP 'zero' or 'checkpoint', found"
        f" {start_step!r}. 'zero' counts the adapter's own steps."
      )
    self._state = train_state
    self._partitioner = partitioner
    self._folder = checkpoints_dir or directory
    self._batches = dataset_iterator
    self._module = module
    self._backbone = paths.source_of(backbone) if backbone else ""
    self._model_name = model_name
    self._backbone_dtype = backbone_dtype
    self._warm_start = warm_start
    self._start_step = start_step
    self._seed = random_seed or 0
    self._training = dict(training or {})
    self._keep = keep
    axes = partitioner.get_mesh_axes(train_state)
    self._places = _placed(axes.params, partitioner.mesh)
    self._axes = axes

  def restore(
    self,
    step: int | None = None,
    path: str | None = None,
    state_transformation_fns: Sequence[Any] = (),
    fallback_state: Any = None,
    lazy_parameters: bool = False,
  ) -> train_states.TrainState:
    """Returns T5X's state from a path of any of the three kinds.

    Args:
      step: a step of this job, in the place of a path.
      path: see above.
      state_transformation_fns: T5X's; must be empty.
      fallback_state: T5X's; must be None.
      lazy_parameters: T5X's; must be False.

    Raises:
      ConfigError: if T5X was told to mend checkpoints, or a path is missing.
      BackboneError: if the backbone is not the network's: each parameter that
        is missing, extra or misshapen is named.
      AdapterError: the same of the adapter, or it is for another backbone.
      ManifestError: if the adapter's rules are not those of ADAPTERS.
    """
    if state_transformation_fns or fallback_state is not None:
      raise ConfigError(
        "expected no assignment_map, state_transformation_fns or"
        " fallback_to_scratch, found some: they fill what is missing with"
        " noise. Exactly the adapter may be new, and is so without them."
      )
    if lazy_parameters:
      raise ConfigError("expected lazy_parameters=False, found True.")
    if step is not None:
      path = f"{self._folder}/{checkpoints.T5X_PREFIX}_{step}"
    if not path:
      raise ConfigError("expected a path to restore from, found none.")
    path = paths.located(path)
    if paths.is_adapter(path):
      return self._from_adapter(path)
    if self._trains and paths.source_of(path) == self._backbone:
      return self._from_backbone()
    if self._trains and paths.is_partial(path):
      earlier = path.rstrip("/").rpartition("/")[0]
      if steps := checkpoints.steps_of(earlier):
        return self._from_adapter(
          str(checkpoints.folder_of(earlier, steps[-1]))
        )
      return self._from_backbone()
    raise AdapterError(
      f"expected an adapter at {path} (a T5X job's or a run's folder, one of"
      " its checkpoints, or an exported adapter), found"
      f" {'something else' if paths.exists(path) else 'nothing'}."
      " CHECKPOINT_PATH is the adapter; the backbone is"
      " INITIAL_CHECKPOINT_PATH."
    )

  def restore_from_tf_checkpoint(self, path: str, *_: Any, **__: Any) -> Any:
    """Refuses T5's checkpoints of TensorFlow.

    Raises:
      ConfigError: always.
    """
    raise ConfigError(
      f"expected a checkpoint of T5X or a backbone directory, found one of"
      f" TensorFlow at {path}. T5X's convert_tf_checkpoint makes one of it."
    )

  def save(
    self,
    train_state: train_states.TrainState,
    state_transformation_fns: Sequence[Any] = (),
    **unused: Any,
  ) -> None:
    """Writes the adapter, the optimizer's state and a manifest.

    Does nothing if the step is there. Returns when all is written: after
    SIGTERM T5X does not wait.

    Raises:
      ConfigError: if T5X was told to change what it saves.
      CheckpointError: if the job trained before its first checkpoint.
    """
    if state_transformation_fns:
      raise ConfigError(
        "expected no state_transformation_fns, found some: a checkpoint holds"
        " the adapter as it is."
      )
    step = _step(train_state)
    earlier = [s for s in checkpoints.steps_of(self._folder) if s <= step]
    if step in earlier:
      return
    if earlier:
      last = checkpoints.read_manifest(self._folder, step=earlier[-1])
      backbone, first = last.backbone, last.training["first_step"]
    else:
      backbone, first = self._described(train_state.params), self._first_step()
      if step != first:
        raise CheckpointError(
          f"expected the first checkpoint before training, at step {first},"
          f" found step {step}. Set CHECKPOINT_PERIOD."
        )
    _, adapter = partition.split(train_state.params, self._module)
    adapter = self._whole(_as_stored(adapter))
    manifest = self._manifest(adapter, backbone, step, first)
    saved = Checkpoints(self._folder, keep=self._keep, of_t5x=True)
    saved.save_items(
      step, adapter, self._whole(_optimizer(train_state)), manifest
    )
    saved.close()

  @property
  def _trains(self) -> bool:
    """T5X's evaluation has a state without an optimizer."""
    return hasattr(self._state, "_optimizer")

  def _from_backbone(self) -> train_states.TrainState:
    """Returns the state before the first step."""
    _check_trainable(self._module)
    key = jax.random.key(self._seed)
    shapes = _plain(self._state.params)
    whole = self._load(self._backbone)
    added = setup.init_part(self._module, key, partition.added_of, self._places)
    params = partition.assemble(whole, added, self._module)
    # As in our own trainer, so that both start alike.
    params = start.from_backbone(
      params, self._module, jax.random.fold_in(key, 3)
    )
    frozen, adapter = partition.split(params, self._module)
    if self._warm_start:
      _, adapter = self._read(self._warm_start)
    adapter = jax.tree.map(
      setup.own_copy,
      adapter,
      partition.select(self._places, adapter),
      partition.select(shapes, adapter),
    )
    params = partition.join(frozen, adapter)
    state = self._fresh_optimizer(params)
    state["step"] = jnp.asarray(self._first_step(), jnp.int32)
    return self._state.restore_state({"target": params, "state": state})

  def _from_adapter(self, path: str) -> train_states.TrainState:
    """Returns the state of an adapter; one to train on is of a T5X job."""
    manifest, adapter = self._read(path)
    source = self._backbone or str(manifest.backbone.get("source", ""))
    whole = self._load(source)
    checkpoint.check_backbone(
      manifest, manifests.fingerprint(whole), source=path
    )
    frozen = partition.select(
      whole, partition.split(_plain(self._state.params), self._module)[0]
    )
    params = partition.join(frozen, adapter)
    step = int(manifest.training.get("step", 0))
    if not self._trains:
      state = {"step": jnp.asarray(step, jnp.int32)}
      return self._state.restore_state({"target": params, "state": state})
    folder, _, name = str(path).rstrip("/").rpartition("/")
    if name != f"{checkpoints.T5X_PREFIX}_{step}":
      raise CheckpointError(
        f"expected a checkpoint of a T5X job at {path}, found an adapter alone."
        " To begin from its weights set WARM_START, and INITIAL_CHECKPOINT_PATH"
        " to the backbone."
      )
    saved = Checkpoints(folder, keep=self._keep, of_t5x=True)
    state = saved.restore_optimizer(step, self._optimizer_spec())
    saved.close()
    if self._batches is not None:
      self._batches.restore(str(step - manifest.training["first_step"]))
    return self._state.restore_state({"target": params, "state": state})

  def _read(self, path: str) -> tuple[Manifest, dict]:
    """Returns manifest and adapter, checked and placed."""
    manifest, leaves = checkpoints.load_adapter(path)
    manifests.check_rules(manifest, self._module.rules)
    shapes = _plain(self._state.params)
    _, spec = partition.split(shapes, self._module)
    found = layout.fit(leaves, spec)
    checkpoint.check_fits(layout.to_layers(found), spec, source=str(path))
    places = partition.select(self._places, spec)
    return manifest, jax.tree.map(jax.device_put, found, places)

  def _load(self, source: str) -> Any:
    if source.startswith(hugging_face.PREFIX):
      raise ConfigError(
        f"expected a checkpoint of T5X or a backbone directory, found {source}."
        " `peft-jax import DIR --from hf --to backbone` makes one of it."
      )
    return setup.load_backbone(
      source,
      self._module,
      _plain(self._state.params),
      self._places,
      name=self._model_name,
      dtype=self._backbone_dtype,
      seed=self._seed,
    )

  def _first_step(self) -> int:
    if self._start_step == "zero":
      return 0
    return t5x_files.step_of(self._backbone.removeprefix(t5x_files.PREFIX))

  def _described(self, params: Any) -> dict[str, str]:
    """Returns where the backbone is from; nothing has trained it yet."""
    whole = partition.backbone_of(params, self._module)
    return {
      "source": self._backbone,
      "fingerprint": manifests.fingerprint(whole),
    }

  def _manifest(
    self, adapter: Any, backbone: Mapping[str, Any], step: int, first: int
  ) -> Manifest:
    return manifests.make(
      jax.tree.map(np.asarray, adapter),
      self._module.rules,
      model=networks.describe(self._module.network, self._model_name),
      backbone=backbone,
      training={
        "step": step,
        "first_step": first,
        **self._training,
        "t5x_gin": gin.config_str(),
      },
    )

  def _fresh_optimizer(self, params: Any) -> dict:
    """Returns the state of an optimizer that has seen nothing, placed."""
    tx = self._state._optimizer.optimizer_def
    places = _placed(self._axes.state_dict()["state"], self._partitioner.mesh)

    def fresh(params: Any) -> Any:
      target = jax.tree.unflatten(
        jax.tree.structure(self._state.params), jax.tree.leaves(params)
      )
      return tx.create(target).state_dict()["state"]

    return jax.jit(fresh, out_shardings=places)(params)

  def _optimizer_spec(self) -> Any:
    places = _placed(self._axes.state_dict()["state"], self._partitioner.mesh)
    return jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(
        jnp.shape(leaf), jnp.result_type(leaf), sharding=place
      ),
      self._state.state_dict()["state"],
      places,
    )

  def _whole(self, tree: Any) -> Any:
    """Returns the tree with every leaf whole on every device."""
    whole = NamedSharding(self._partitioner.mesh, PartitionSpec())
    return jax.jit(lambda tree: tree, out_shardings=whole)(tree)


def _check_trainable(module: Adapted) -> None:
  for rule in module.rules:
    if isinstance(rule.adapter, FishMask):
      raise ConfigError(
        f"expected adapters that T5X's loop can differentiate, found a FISH"
        f" mask at {rule.pattern!r}: it is chosen on training examples, and its"
        " indices are whole numbers. Train it with `peft-jax train`; T5X's eval"
        " and infer take it."
      )


def _as_stored(adapter: Any) -> dict:
  """Returns the leaves as files have them: by layer, kernels as matrices."""
  rows = trees.flatten(layout.to_layers(adapter))
  for path, leaf in rows.items():
    if path.endswith("/kernel"):
      rows[path] = layout.as_matrix(path, leaf)
  return trees.unflatten(rows)


def _optimizer(state: Any) -> Any:
  return jax.tree.map(jnp.asarray, state.state_dict()["state"])


def _step(state: Any) -> int:
  step = state.step
  if isinstance(step, jax.Array):
    step = step.addressable_data(0)
  return int(step)


def _plain(params: Any) -> dict:
  return params.unfreeze() if hasattr(params, "unfreeze") else dict(params)


def _placed(axes: Any, mesh: jax.sharding.Mesh) -> Any:
  """Returns shardings of a tree of T5X's axes; None is whole everywhere."""
  flat = trees.flatten(_plain(axes))
  return trees.unflatten(
    {
      path: NamedSharding(mesh, PartitionSpec() if spec is None else spec)
      for path, spec in flat.items()
    }
  )
