"""Puts a run together: network, backbone, adapter, optimizer, placement."""

import dataclasses
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from peft_jax import (
  backbone,
  checkpoint,
  layout,
  manifest,
  optim,
  partition,
  sharding,
  start,
  trees,
)
from peft_jax.formats import hugging_face, t5x
from peft_jax.inject import Adapted
from peft_jax.partition import RuleRow
from peft_jax.train import checkpoints
from peft_jax.train.config import Config, ConfigError
from peft_jax.train.step import TrainState, init_state, make_train_step

# Backbones that ship with the package.
SHIPPED = {"tiny": "assets/tiny.npz"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
  """A run, ready for its first step.

  Attributes:
    model: the network with its adapters.
    tx: the optimizer, with clipping.
    frozen: the backbone's parameters, placed on the mesh.
    state: adapter, optimizer state, step 0, rng, placed on the mesh.
    state_sharding: where the state's leaves are placed.
    rows: the rule table.
    description: the network's name and configuration.
    source: where the backbone came from, and its fingerprint.
    counts: see `partition.counts`.
  """

  model: Adapted
  tx: optax.GradientTransformation
  frozen: Any
  state: TrainState
  state_sharding: Any
  rows: list[RuleRow]
  description: Mapping[str, Any]
  source: Mapping[str, Any]
  counts: Mapping[str, int | float]


def shapes_of(model: Adapted | Any) -> dict[str, Any]:
  """Returns the variables' shapes; computes and allocates nothing."""
  blank = np.ones((1, 2), np.int32)
  return jax.eval_shape(model.init, jax.random.key(0), blank, blank, blank)


def setup(config: Config, mesh: Mesh) -> Setup:
  """Restores the backbone and initialises the adapter, each once.

  Args:
    config: the run's configuration.
    mesh: the mesh; call inside `sharding.use`.

  Raises:
    ConfigError: if no backbone is named.
    BackboneError: if the checkpoint is not the network's.
    TargetError: if a rule matches nothing, or two claim a site.
  """
  model = Adapted(config.network, config.rules)
  if not model.rules:
    raise ConfigError(
      "expected at least one rule in ADAPTERS, found none: nothing would be"
      " trained. Pass --adapter NAME."
    )
  variables = shapes_of(model)
  places = sharding.shardings(
    variables["params"], variables["params_axes"], mesh
  )
  shapes = variables["params"]
  key = jax.random.key(config.random_seed)
  whole = configured_backbone(config, model, shapes, places)
  params = started(config, model, whole, places)
  frozen, adapter = partition.split(params, model)
  adapter_places = partition.select(places, adapter)
  adapter = jax.tree.map(
    own_copy, adapter, adapter_places, partition.select(shapes, adapter)
  )
  tx = optimizer_of(config)
  state = init_state(adapter, tx, jax.random.fold_in(key, 1), model)
  placed = state_sharding(state, adapter_places, mesh)
  state = jax.tree.map(jax.device_put, state, placed)
  return Setup(
    model=model,
    tx=tx,
    frozen=frozen,
    state=state,
    state_sharding=placed,
    rows=partition.rule_table(shapes, model),
    description=backbone.describe(config.network, config.model_name),
    source={
      "source": config.backbone,
      "fingerprint": manifest.fingerprint(whole),
    },
    counts=partition.counts(shapes, model),
  )


def started(config: Config, model: Adapted, whole: Any, places: Any) -> dict:
  """Returns backbone and adapters as a run starts, of its seed alone.

  Args:
    config: the run's configuration.
    model: the network with its adapters.
    whole: the backbone's parameters, see `configured_backbone`.
    places: shardings of all leaves.
  """
  key = jax.random.key(config.random_seed)
  added = init_part(model, key, partition.added_of, places)
  params = partition.assemble(whole, added, model)
  return start.from_backbone(params, model, jax.random.fold_in(key, 3))


def optimizer_of(config: Config) -> optax.GradientTransformation:
  """Returns the run's optimizer, with clipping."""
  tx = config.optimizer
  if config.lora_plus_ratio:
    tx = optim.lora_plus(tx, ratio=config.lora_plus_ratio)
  if config.gradient_clip:
    tx = optim.with_clipping(tx, max_norm=config.gradient_clip)
  return tx


def jitted_step(
  config: Config,
  model: Any,
  tx: optax.GradientTransformation,
  placed: Any,
  mesh: Mesh,
) -> Any:
  """Returns the run's training step, to be compiled when first called.

  Args:
    config: the run's configuration.
    model: the network with its adapters.
    tx: the optimizer, see `optimizer_of`.
    placed: shardings of the state, see `state_sharding`.
    mesh: the mesh; call inside `sharding.use`.
  """
  return jax.jit(
    make_train_step(
      model,
      tx,
      micro_batches=config.micro_batches,
      dropout=config.dropout,
      objective=config.objective,
    ),
    donate_argnums=0,
    out_shardings=(placed, sharding.replicated(mesh)),
  )


def own_copy(leaf: Any, place: Any, like: Any) -> Any:
  """Returns the leaf where it belongs; a step may overwrite it in place."""
  return jnp.array(jax.device_put(leaf, place), like.dtype, copy=True)


def warm_started(setup: Setup, directory: str) -> Setup:
  """Returns the setup with the weights of another run, at step 0.

  Raises:
    AdapterError: if the adapter does not fit.
    ManifestError: if its rules or their hyper-parameters differ.
  """
  found, leaves = checkpoints.load_adapter(directory)
  # Where leaves would have started does not matter: here they are.
  manifest.check_rules(found, setup.model.rules, any_start=True)
  checkpoint.check_fits(leaves, setup.state.adapter, source=directory)
  adapter = jax.tree.map(
    lambda leaf, like: jax.device_put(leaf, like.sharding),
    layout.like(leaves, setup.state.adapter),
    setup.state.adapter,
  )
  return dataclasses.replace(setup, state=setup.state._replace(adapter=adapter))


def configured_backbone(
  config: Config, model: Adapted, shapes: Any, places: Any
) -> Any:
  """Returns the backbone that a run is configured with; see `load_backbone`."""
  return load_backbone(
    config.backbone,
    model,
    shapes,
    places,
    name=config.model_name,
    dtype=config.backbone_dtype,
    seed=config.random_seed,
  )


def load_backbone(
  source: str,
  model: Adapted,
  shapes: Any,
  places: Any,
  *,
  name: str = "",
  dtype: Any = jnp.float32,
  seed: int = 0,
) -> Any:
  """Returns the backbone's parameters, placed.

  What an adapter trains is float32, whatever the frozen leaves are.

  Args:
    source: names the backbone; see `Config.backbone`.
    model: the network with its adapters.
    shapes: shapes of all leaves, adapters included.
    places: their shardings.
    name: of the model, for errors.
    dtype: of what is frozen.
    seed: of a random backbone.

  Raises:
    ConfigError: if no backbone is named.
    BackboneError: if the checkpoint is not the network's.
    FormatError: the same of Hugging Face's and T5X's.
  """
  if not source:
    raise ConfigError(
      f"expected a backbone for {name or 'the model'}, found none."
      " Pass --backbone DIR with its checkpoint, or --backbone random to train"
      " on random weights."
    )
  spec = partition.backbone_of(shapes, model)
  frozen = trees.flatten(partition.split(shapes, model)[0])
  dtypes = trees.unflatten(
    {
      path: dtype if path in frozen else jnp.float32
      for path in trees.flatten(spec)
    }
  )
  if source == "random":
    key = jax.random.fold_in(jax.random.key(seed), 2)
    part = lambda params, model: layout.cast(
      partition.backbone_of(params, model), dtypes
    )
    return init_part(model, key, part, places)
  kept = {"dtype": dtypes, "shardings": partition.select(places, spec)}
  if source.startswith(hugging_face.PREFIX):
    return hugging_face.load(source, model.network, **kept)
  if source.startswith(t5x.PREFIX):
    return t5x.load(source.removeprefix(t5x.PREFIX), spec, **kept)
  path = source
  if source in SHIPPED:
    path = str(resources.files("peft_jax") / SHIPPED[source])
  return backbone.restore(path, spec, **kept)


def init_part(
  model: Adapted, key: jax.Array, part: Callable[..., Any], places: Any
) -> Any:
  """Initialises one part of the tree; XLA drops the rest."""
  blank = np.ones((1, 2), np.int32)

  def init(key: jax.Array) -> Any:
    return part(model.init(key, blank, blank, blank)["params"], model)

  wanted = jax.eval_shape(init, key)
  if not jax.tree.leaves(wanted):
    return {}
  return jax.jit(init, out_shardings=partition.select(places, wanted))(key)


def state_sharding(state: TrainState, adapter_places: Any, mesh: Mesh) -> Any:
  """Returns where a state lies.

  Slots of the optimizer lie where their leaf lies, the rest everywhere.
  """
  whole: Any = sharding.replicated(mesh)
  flat = trees.flatten(state.adapter)
  shapes = {path: leaf.shape for path, leaf in flat.items()}
  places = trees.flatten(adapter_places)

  def place(path: tuple, leaf: jax.Array) -> Any:
    keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    name = "/".join(map(str, keys))
    return places[name] if shapes.get(name) == leaf.shape else whole

  opt_state = jax.tree_util.tree_map_with_path(place, state.opt_state)
  return TrainState(whole, adapter_places, opt_state, whole)
