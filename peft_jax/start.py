"""Where adapters start that depend on the backbone's own parameters.

DoRA's magnitudes, PiSSA's factors and prompts drawn from the vocabulary are
functions of the backbone. `Adapted.init` draws a random one, so these leaves
hold NaN until `from_backbone` has seen the restored one: forgetting it shows.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from peft_jax import layout, partition, trees
from peft_jax.adapters import fish_mask, prefix
from peft_jax.inject import Adapted
from peft_jax.networks.positions import rotate

Array = jax.Array
_KEYS_AND_VALUES = (*prefix.DIRECT, "key_norm")


def from_backbone(params: Any, model: Adapted, key: Array) -> dict:
  """Returns the tree with every adapter as it starts beside this backbone.

  Adapters that do not depend on the backbone are left as they are. Call it
  once, after the backbone is restored and before training.

  Example:
    >>> import numpy as np
    >>> from peft_jax import DoRA, Rule
    >>> model = Adapted(None, [Rule("key", DoRA(rank=1))])
    >>> params = {"key": {"kernel": np.array([[3.0], [4.0]], np.float32),
    ...   "dora": {"magnitude": np.full(1, np.nan, np.float32),
    ...     "a": np.ones((2, 1)), "b": np.zeros((1, 1))}}}
    >>> started = from_backbone(params, model, jax.random.key(0))
    >>> started["key"]["dora"]["magnitude"].tolist()
    [5.0]

  Args:
    params: backbone and adapters in one tree.
    model: the network with its rules.
    key: for those that draw, such as prompts from sampled words.
  """
  if not any(rule.adapter.reads_backbone for rule in model.rules):
    return params
  frozen, adapter = partition.split(params, model)
  backbone = _Layers(trees.flatten(frozen))
  rows = trees.flatten(layout.to_layers(adapter))
  by_site: dict[tuple, dict[str, Array]] = {}
  for path, leaf in rows.items():
    owner = model.rule_of(path)
    assert owner is not None
    rule, site, name = owner
    if rule.adapter.reads_backbone:
      by_site.setdefault((rule, site), {})[name] = leaf
  for (rule, site), leaves in by_site.items():
    scope = f"{site}/{rule.name}"
    drawn = jax.random.fold_in(key, zlib.crc32(scope.encode()))
    started = rule.adapter.start(leaves, site, backbone, drawn)
    rows |= {f"{scope}/{name}": leaf for name, leaf in started.items()}
  started = layout.like(trees.unflatten(rows), adapter)
  return partition.join(frozen, started)


def from_fisher(
  params: Any,
  model: Adapted,
  loss: Callable[[Any, Any], Array],
  batches: Sequence[Any],
) -> dict:
  """Returns the tree with FISH masks on the entries that matter most.

  Other adapters are left as they are. Call it once, after `from_backbone`.

  Example:
    >>> import jax.numpy as jnp
    >>> from peft_jax import FishMask, Rule
    >>> model = Adapted(None, [Rule("w", FishMask(keep=0.3))])
    >>> scope = {"values": jnp.zeros(1), "leaf": jnp.zeros(1, jnp.int32),
    ...   "offset": jnp.zeros(1, jnp.int32)}
    >>> params = {"w": jnp.ones(3), "fish_mask_shared": {"all": scope}}
    >>> loss = lambda params, x: jnp.sum(params["w"] * x)
    >>> found = from_fisher(params, model, loss, [jnp.array([1.0, 2.0, 9.0])])
    >>> found["fish_mask_shared"]["all"]["offset"].tolist()
    [2]

  Args:
    params: backbone and adapters in one tree.
    model: the network with its rules.
    loss: (params, batch) -> loss; the paper takes one example per batch.
    batches: at least one.

  Raises:
    ValueError: if there is no batch.
  """
  flat = trees.flatten(params)
  for rule in model.rules:
    if not isinstance(rule.adapter, fish_mask.FishMask):
      continue
    targets = {path: flat[path] for path in flat if model.targets(rule, path)}
    information = fish_mask.fisher(
      lambda found, batch: loss(trees.unflatten(flat | found), batch),
      targets,
      batches,
    )
    rows = layout.to_layers(trees.unflatten(information))
    scope = f"{rule.name}_shared/all"
    k = flat[f"{scope}/values"].shape[0]
    for name, value in fish_mask.choose(trees.flatten(rows), k).items():
      flat[f"{scope}/{name}"] = jax.numpy.asarray(value)
  return trees.unflatten(flat)


def prefix_from_words(
  params: Any, model: Adapted, encoder_tokens: Array, decoder_tokens: Array
) -> dict:
  """Returns the tree with prefixes that stand for real words.

  Keys and values of every prefix become those that the backbone computes for
  the words at that attention (Li and Liang 2021, section 7.3). A prefix that a
  network makes is left to `reparametrization.drop`, or trained to it.

  Example:
    >>> from peft_jax import Prefix, Rule, networks
    >>> network = networks.create("tiny", num_encoder_layers=1,
    ...   num_decoder_layers=1)
    >>> model = Adapted(network,
    ...   [Rule(".*attention", Prefix(length=2, hidden_size=0))])
    >>> x = jax.numpy.ones((1, 3), int)
    >>> params = model.init(jax.random.key(0), x, x, x)["params"]
    >>> words = jax.numpy.array([7, 9])
    >>> started = prefix_from_words(params, model, words, words)
    >>> started["encoder"]["layers_0"]["attention"]["prefix"]["key"].shape
    (2, 128)

  Args:
    params: backbone and adapters in one tree.
    model: the network with its rules; each prefix direct (hidden_size=0) and as
      long as the words.
    encoder_tokens: [P] ids, for the prefixes over the encoder's positions:
      encoder self-attention and cross-attention.
    decoder_tokens: [P] ids, for decoder self-attention.

  Raises:
    ValueError: if a prefix has another length, or a network makes it.
  """
  rules = [r for r in model.rules if isinstance(r.adapter, prefix.Prefix)]
  for rule in rules:
    if rule.adapter.hidden_size:
      raise ValueError(
        f"expected hidden_size=0 at {rule.pattern!r}, found"
        f" {rule.adapter.hidden_size}: a network makes this prefix. Use"
        " reparametrization.drop first."
      )
  layers = _unscanned(model.network)
  backbone = layout.to_layers(partition.backbone_of(params, model))
  inputs, targets = encoder_tokens[None], decoder_tokens[None]
  shifted = jax.numpy.ones_like(targets)  # the mask hides nothing
  tokens = (inputs, targets, shifted)
  if model.slots.keys() == {"decoder"}:
    tokens = (targets,)
  _, state = layers.apply(
    {"params": backbone},
    *tokens,
    enable_dropout=False,
    capture_intermediates=lambda module, _: module.name in _KEYS_AND_VALUES,
    mutable=["intermediates"],
  )
  captured = trees.flatten(state["intermediates"])
  rows = trees.flatten(layout.to_layers(partition.added_of(params, model)))
  for path, leaf in rows.items():
    owner = model.rule_of(path)
    assert owner is not None
    rule, site, name = owner
    if rule not in rules or name not in prefix.DIRECT:
      continue
    found = _found(captured, site, name)
    config = layers.config
    if name == "key" and getattr(config, "positions", "") == "rotary":
      row = jax.numpy.arange(found.shape[1])[None]
      found = rotate(found, row, config.rotary)
    found = found[0]  # [P, H, K]
    found = found.reshape(found.shape[0], -1)
    if found.shape != leaf.shape:
      raise ValueError(
        f"expected as many words as the prefix at {site} is long,"
        f" {leaf.shape[0]}, found {found.shape[0]}. Set its length to that."
      )
    rows[path] = found.astype(leaf.dtype)
  started = layout.like(trees.unflatten(rows), params)
  return partition.overlay(params, started)


def _found(captured: Mapping[str, Any], site: str, name: str) -> Array:
  """Returns keys or values [1, P, H, K] as an attention uses them."""
  normed = f"{site}/{name}_norm/__call__"
  return captured.get(normed, captured[f"{site}/{name}/__call__"])[0]


def _unscanned(network: Any) -> Any:
  """Returns the network with one module per layer, to see inside of it."""
  if not getattr(network, "scan_layers", False):
    return network
  config = dataclasses.replace(network.config, scan_layers=False, remat="none")
  return network.clone(config=config)


class _Layers(Mapping):
  """The backbone's leaves by per-layer path, sliced when asked for."""

  def __init__(self, flat: Mapping[str, Any]) -> None:
    self._flat = flat
    self._rows = {
      layer: (path, i)
      for path, leaf in flat.items()
      for i, (layer, _) in enumerate(layout.rows_of(path, leaf))
    }

  def __getitem__(self, layer: str) -> Any:
    path, i = self._rows[layer]
    axis = layout.stack_axis(path)
    if axis is None:
      return layout.as_matrix(path, self._flat[path])
    row = self._flat[path][(slice(None),) * axis + (i,)]
    return layout.as_matrix(layer, row)

  def __iter__(self) -> Iterator[str]:
    return iter(self._rows)

  def __len__(self) -> int:
    return len(self._rows)
