"""Compiles a run's training step and decoding from shapes alone, and looks."""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from peft_jax import partition, sharding
from peft_jax.inject import Adapted
from peft_jax.plan import flops
from peft_jax.plan.flops import Work
from peft_jax.plan.program import Collective, Program
from peft_jax.train import setup
from peft_jax.train.config import Config
from peft_jax.train.predict import ROWS, make_predict
from peft_jax.train.step import init_state

# In the order of the table. `parameters` are the frozen ones; `adapter`, what
# is trained and what a method stores besides; `batch`, tokens and counters;
# `outputs`, what does not take the place of an argument; `program`, the code.
KINDS = (
  "parameters",
  "adapter",
  "optimizer",
  "batch",
  "activations",
  "outputs",
  "program",
)
# Any id that is not padding: nothing is computed.
_EOS = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """What is known of one compiled program.

  Attributes:
    bytes_per_chip: kind -> bytes. If it does not fit, arguments are without
      what a tiled layout adds, and activations are the rest.
    fits: whether the compiler found room for it.
    work: of its products, over all chips, as traced.
    work_per_chip: of its products, on one chip, as compiled; None: unknown.
    collectives: between chips.
    seconds: that compiling took.
  """

  bytes_per_chip: Mapping[str, int]
  fits: bool
  work: Work
  work_per_chip: Work | None
  collectives: list[Collective]
  seconds: float

  @property
  def used_bytes(self) -> int:
    """All kinds together."""
    return sum(self.bytes_per_chip.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
  """A run as shapes on a mesh; nothing is allocated.

  Attributes:
    config: of the run.
    model: the network with its adapters.
    mesh: on the target's devices.
    frozen: the backbone's leaves.
    state: adapter, optimizer, step, rng.
    placed: shardings of the state.
  """

  config: Config
  model: Adapted
  mesh: Mesh
  frozen: Any
  state: Any
  placed: Any


def shapes(config: Config, mesh: Mesh) -> Shapes:
  """Returns the shapes of a run, as `train.setup` would place its arrays."""
  model = Adapted(config.network, config.rules)
  variables = setup.shapes_of(model)
  places = sharding.shardings(
    variables["params"], variables["params_axes"], mesh
  )
  frozen, adapter = partition.split(variables["params"], model)
  frozen = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, config.backbone_dtype), frozen
  )
  tx = setup.optimizer_of(config)
  state = jax.eval_shape(
    lambda leaves: init_state(leaves, tx, jax.random.key(0), model), adapter
  )
  placed = setup.state_sharding(state, partition.select(places, adapter), mesh)
  return Shapes(
    config=config,
    model=model,
    mesh=mesh,
    frozen=_put(frozen, partition.select(places, frozen)),
    state=_put(state, placed),
    placed=placed,
  )


def _put(tree: Any, places: Any) -> Any:
  """Returns shapes with their shardings."""
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    tree,
    places,
  )


def train_step(run: Shapes) -> Compiled:
  """Compiles the training step, the same function as the trainer's."""
  config, mesh = run.config, run.mesh
  tx = setup.optimizer_of(config)
  step = setup.jitted_step(config, run.model, tx, run.placed, mesh)
  batch = _batch(config, mesh)
  kinds = {
    "parameters": run.frozen,
    "adapter": run.state.adapter,
    "optimizer": run.state.opt_state,
  }
  return _compile(step, (run.state, run.frozen, batch), kinds, mesh)


def decoding(run: Shapes) -> Compiled:
  """Compiles greedy decoding of a batch, the same function as evaluation's.

  The optimizer's state is no part of it but keeps its memory.
  """
  config, mesh = run.config, run.mesh
  predict = make_predict(
    run.model,
    mesh=mesh,
    max_decode_length=config.task_feature_lengths["targets"],
    eos_id=_EOS,
  )
  inputs = _inputs(config, mesh)
  kinds = {"parameters": run.frozen, "adapter": run.state.adapter}
  found = _compile(
    predict, (run.frozen, run.state.adapter, inputs), kinds, mesh
  )
  held = sum(map(shard_bytes, jax.tree.leaves(run.state.opt_state)))
  kinds = {**found.bytes_per_chip, "optimizer": held}
  return dataclasses.replace(
    found, bytes_per_chip={kind: kinds[kind] for kind in KINDS}
  )


def argument_bytes(run: Shapes) -> int:
  """Returns what backbone, adapter and optimizer take on one chip, at least."""
  return sum(map(shard_bytes, jax.tree.leaves((run.frozen, run.state))))


def _batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns a batch [B, T] of each feature, see `train.features`."""
  lengths = config.task_feature_lengths
  inputs, targets = lengths["inputs"], lengths["targets"]
  decoder = ["input_tokens", "target_tokens", "loss_weights"]
  packed = ["segment_ids", "positions"] if config.pack else []
  found = {}
  if config.network.config.num_encoder_layers:
    for name in ["input_tokens", *packed]:
      found[f"encoder_{name}"] = inputs
  else:
    targets += inputs
    if config.prefix_lm:
      decoder.append("causal_attention")
  found |= {f"decoder_{name}": targets for name in [*decoder, *packed]}
  place = sharding.batch_sharding(mesh)
  return {
    name: _tokens((config.batch_size, length), place)
    for name, length in found.items()
  }


def _inputs(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns what decoding is given, see `train.features`."""
  rows, length = config.eval_batch_size, config.task_feature_lengths["inputs"]
  place = sharding.batch_sharding(mesh)
  found = {ROWS: _tokens((rows,), place)}
  if config.network.config.num_encoder_layers:
    return found | {"inputs": _tokens((rows, length), place)}
  tokens = _tokens((rows, 1 + length), place)
  return found | {"inputs": tokens, "inputs_mask": tokens}


def _tokens(shape: tuple[int, ...], place: NamedSharding) -> Any:
  return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place)


def _compile(
  function: Any, args: Any, kinds: Mapping[str, Any], mesh: Mesh
) -> Compiled:
  start = time.monotonic()
  with sharding.use(mesh):
    traced = function.trace(*args)
    work = flops.of_jaxpr(traced.jaxpr.jaxpr)
    lowered = traced.lower()
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      needed = needed_bytes(str(error))
      if needed is None:
        raise
      return Compiled(
        bytes_per_chip=_unfitting(args, kinds, needed),
        fits=False,
        work=work,
        work_per_chip=None,
        collectives=[],
        seconds=time.monotonic() - start,
      )
  seconds = time.monotonic() - start
  program = Program(compiled.as_text() or "")
  per_chip = None
  if mesh.devices.flat[0].platform == "tpu":
    per_chip = program.products()
  return Compiled(
    bytes_per_chip=_memory(compiled, args, kinds),
    fits=True,
    work=work,
    work_per_chip=per_chip,
    collectives=program.collectives(),
    seconds=seconds,
  )


def needed_bytes(message: str) -> int | None:
  """Returns how much memory a program wanted; None for another error.

  Example:
    >>> needed_bytes("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total"
    ...   " memory required for HLO temporaries (2.00G) exceeds available HBM"
    ...   " (1.00G).") == 2 * 2**30
    True
  """
  if "RESOURCE_EXHAUSTED" not in message and "out of memory" not in message:
    return None
  found = re.search(
    r"(?:temporaries \(|Used |Program hbm requirement )([\d.]+)([KMGT]?)",
    message,
  )
  if not found:
    return None
  unit = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2]]
  return int(float(found[1]) * 2**unit)


def _unfitting(
  args: Any, kinds: Mapping[str, Any], needed: int
) -> dict[str, int]:
  """Returns kind -> bytes of a program that was not compiled."""
  found: dict[str, int] = dict.fromkeys(KINDS, 0)
  for kind, tree in kinds.items():
    found[kind] = sum(map(shard_bytes, jax.tree.leaves(tree)))
  whole = sum(map(shard_bytes, jax.tree.leaves(args)))
  found["batch"] = whole - sum(found.values())
  found["activations"] = max(0, needed - whole)
  return found


def _memory(
  compiled: Any, args: Any, kinds: Mapping[str, Any]
) -> dict[str, int]:
  """Returns kind -> bytes; their sum is what `memory_analysis` says."""
  analysis = compiled.memory_analysis()
  layouts = jax.tree.leaves(
    compiled.input_formats[0], is_leaf=lambda leaf: leaf is None
  )
  sizes = {
    id(leaf): _laid_out_bytes(leaf, getattr(found, "layout", None))
    for leaf, found in zip(jax.tree.leaves(args), layouts, strict=True)
  }
  found: dict[str, int] = dict.fromkeys(KINDS, 0)
  for kind, tree in kinds.items():
    found[kind] = sum(sizes[id(leaf)] for leaf in jax.tree.leaves(tree))
  taken = sum(found.values())
  found["batch"] = analysis.argument_size_in_bytes - taken
  found["activations"] = analysis.temp_size_in_bytes
  found["outputs"] = (
    analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  )
  found["program"] = analysis.generated_code_size_in_bytes
  return found


def shard_bytes(leaf: Any) -> int:
  """Returns the bytes of one chip's part of a placed shape."""
  shape, dtype = _physical(leaf)
  return int(np.prod(shape)) * dtype.itemsize


def _physical(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
  """Returns the shape of one chip's part and its dtype."""
  shape = leaf.sharding.shard_shape(leaf.shape)
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    data = jax.eval_shape(
      jax.random.key_data, jax.ShapeDtypeStruct((), leaf.dtype)
    )
    return (*shape, *data.shape), np.dtype(data.dtype)
  return shape, np.dtype(leaf.dtype)


def _laid_out_bytes(leaf: Any, layout: Any) -> int:
  """Returns the bytes of one chip's part, with what its tiles add.

  0 for an argument that the program does not read: JAX leaves it out.
  """
  shape, dtype = _physical(leaf)
  if layout is None:
    return 0
  tiles = getattr(layout, "tiling", None)
  if not tiles:
    return int(np.prod(shape)) * dtype.itemsize
  dims = [shape[axis] for axis in layout.major_to_minor]
  tile = tiles[0]
  dims = [1] * (len(tile) - len(dims)) + dims
  for i in range(1, len(tile) + 1):
    dims[-i] = -(-dims[-i] // tile[-i]) * tile[-i]
  return int(np.prod(dims)) * dtype.itemsize
