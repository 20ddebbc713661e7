"""Drops what only training needs: the networks that make prefixes and prompts.

A prefix that a network makes is trained more stably, and used as the plain keys
and values that it gives (Li and Liang 2021, section 4.3).
"""

from typing import Any

import jax.numpy as jnp

from peft_jax import layout, trees
from peft_jax.inject import Adapted
from peft_jax.rules import Rule


def drop(adapter: Any, model: Adapted) -> tuple[dict, Adapted]:
  """Returns the adapter without such networks, and the model that takes it.

  The result acts as the adapter did; other methods are left as they are.

  Example:
    >>> import jax, numpy as np
    >>> from peft_jax import Prompt, Rule
    >>> rule = Rule("encoder", Prompt(length=2, encoder_size=3))
    >>> leaves = {"prompt": np.ones((2, 4)), "hidden": np.ones((4, 3)),
    ...   "hidden_bias": np.ones(3), "out": np.ones((3, 4)),
    ...   "out_bias": np.ones(4)}
    >>> plain, model = drop({"encoder": {"prompt": leaves}},
    ...   Adapted(None, [rule]))
    >>> list(plain["encoder"]["prompt"]), model.rules[0].adapter.encoder_size
    (['prompt'], 0)

  Args:
    adapter: the adapter's leaves, in either view of the layers.
    model: the network with its rules.
  """
  rows = trees.flatten(layout.to_layers(adapter))
  kept: dict[str, Any] = {}
  made: dict[tuple[Rule, str], dict[str, Any]] = {}
  shared: dict[tuple[Rule, str], dict[str, Any]] = {}
  for path, leaf in rows.items():
    owner = model.rule_of(path)
    assert owner is not None
    rule, site, name = owner
    if not is_reparametrized(rule):
      kept[path] = leaf
    elif site == f"{rule.name}_shared":
      group, name = name.split("/")
      shared.setdefault((rule, group), {})[name] = jnp.asarray(leaf)
    else:
      made.setdefault((rule, site), {})[name] = jnp.asarray(leaf)
  for (rule, site), leaves in made.items():
    common = shared.get((rule, rule.adapter.group(site)), {})
    flat = rule.adapter.flatten(leaves, common)  # pyright: ignore
    kept |= {f"{site}/{rule.name}/{name}": x for name, x in flat.items()}
  return trees.unflatten(kept), plain(model)


def plain(model: Adapted) -> Adapted:
  """Returns the model whose prefixes and prompts no network makes."""
  return Adapted(model.network, [_plain(rule) for rule in model.rules])


def is_reparametrized(rule: Rule) -> bool:
  """Whether a network makes what the rule's adapter puts in."""
  return getattr(rule.adapter, "reparametrized", False)


def _plain(rule: Rule) -> Rule:
  if not is_reparametrized(rule):
    return rule
  adapter = rule.adapter.plain()  # pyright: ignore
  return Rule(rule.pattern, adapter, name=rule.name)
