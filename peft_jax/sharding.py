"""Logical axis names, the rules that map them to a mesh, and meshes.

Every parameter and the main activations carry logical axis names; a rule table
says which mesh axis each of them is split over. The names are T5X's, so that
the same network runs under T5X's partitioner and under ours.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from flax import linen as nn
from flax.linen import partitioning as flax_partitioning
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from peft_jax import trees

Rules = Sequence[tuple[str, str | None]]

# Adapters are small, so their own axis (the rank) stays replicated, while the
# axes they share with the backbone follow the backbone's split: no collective
# is needed to add their output to the backbone's.
DEFAULT_RULES: Rules = (
  ("batch", "data"),
  ("vocab", "model"),
  ("mlp", "model"),
  ("heads", "model"),
  ("joined_kv", "model"),
  ("embed", None),
  ("kv", None),
  ("length", None),
  ("layers", None),
  ("relpos_buckets", None),
  ("abspos_buckets", None),
  ("lora_rank", None),
  ("bottleneck", None),
  ("prompt", None),
  ("gate", None),
  ("prefix_kv", None),
  ("adapter", None),
  ("phm", None),
  ("phm_in", None),
  ("phm_out", None),
)

# A parameter or activation with its logical axes, as T5X reads them.
param_with_axes = flax_partitioning.param_with_axes
constrain = flax_partitioning.with_sharding_constraint  # pyright: ignore


class ShardingError(ValueError):
  """A mesh or a batch that does not fit the devices or the data."""


def make_mesh(
  *,
  data: int | None = None,
  model: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """Returns a mesh with the axes `data` and `model`.

  Example:
    >>> make_mesh(data=1, devices=jax.devices()[:1]).axis_names
    ('data', 'model')

  Args:
    data: number of data-parallel groups; default: all devices / `model`.
    model: number of devices that share one copy of the model.
    devices: devices to use; default: all devices of all processes.

  Raises:
    ShardingError: if data * model is not the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  if data is None:
    data = max(1, len(devices) // max(1, model))
  if data * model != len(devices):
    raise ShardingError(
      f"expected data x model = {len(devices)} devices, found {data} x"
      f" {model} = {data * model}. Choose the two so that their product is"
      f" {len(devices)}, or pass the devices to use."
    )
  return jax.make_mesh(
    (data, model),
    ("data", "model"),
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=devices,
  )


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Iterator[None]:
  """Makes `mesh` and `rules` the ones that `constrain` resolves names with.

  Example:
    >>> with use(make_mesh()):
    ...   pass
  """
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    yield


def axis_names(params_axes: Any) -> dict[str, tuple[str | None, ...]]:
  """Returns leaf path -> logical axis names from a `params_axes` collection.

  Example:
    >>> from flax.linen.partitioning import AxisMetadata
    >>> axis_names({"query": {"kernel_axes": AxisMetadata(("embed", "kv"))}})
    {'query/kernel': ('embed', 'kv')}
  """
  flat = trees.flatten(dict(params_axes))
  return {
    path.removesuffix("_axes"): tuple(metadata.names)
    for path, metadata in flat.items()
  }


def spec(axes: Sequence[str | None], rules: Rules = DEFAULT_RULES) -> Any:
  """Returns the `PartitionSpec` of logical `axes`; each mesh axis used once.

  Example:
    >>> tuple(spec(("embed", "mlp")))
    (None, 'model')
  """
  table = dict(rules)
  used: set[str | None] = {None}
  entries = []
  for axis in axes:
    mesh_axis = table.get(axis) if axis is not None else None
    entries.append(None if mesh_axis in used else mesh_axis)
    used.add(mesh_axis)
  return PartitionSpec(*entries)


def shardings(
  params: Any, params_axes: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES
) -> Any:
  """Returns the tree of `NamedSharding`s for `params`.

  An axis whose length the mesh axis does not divide stays whole: six heads on
  a model axis of four are replicated, not an error.

  Args:
    params: tree of arrays or `jax.ShapeDtypeStruct`s.
    params_axes: the `params_axes` collection that `init` returned with them.
    mesh: the mesh to place them on.
    rules: logical axis -> mesh axis.

  Raises:
    ShardingError: if a leaf of `params` has no logical axes.
  """
  names = axis_names(params_axes)
  flat = trees.flatten(params)
  missing = sorted(set(flat) - set(names))
  if missing:
    raise ShardingError(
      f"expected logical axes for every parameter, found none for"
      f" {len(missing)} of {len(flat)}, first {missing[0]!r}. Create the"
      " parameter with sharding.param_with_axes."
    )

  def place(path: str, leaf: Any) -> NamedSharding:
    entries = spec(names[path], rules)
    fitting = [
      axis if axis is None or size % mesh.shape[axis] == 0 else None
      for axis, size in zip(entries, leaf.shape, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*fitting))

  return trees.unflatten(
    {path: place(path, leaf) for path, leaf in flat.items()}
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch [B, ...]: B split over the data axis."""
  return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(batch_size: int, *, mesh: Mesh, micro_batches: int = 1) -> None:
  """Raises unless B splits evenly over micro-batches and the data axis.

  Raises:
    ShardingError: naming the nearest batch size that fits.
  """
  data = mesh.shape["data"]
  unit = data * micro_batches
  if batch_size % unit:
    below = batch_size - batch_size % unit
    fitting = [str(size) for size in (below, below + unit) if size]
    raise ShardingError(
      f"expected a batch size divisible by data axis x micro-batches = {data} x"
      f" {micro_batches} = {unit}, found {batch_size}. Use"
      f" {' or '.join(fitting)}."
    )
