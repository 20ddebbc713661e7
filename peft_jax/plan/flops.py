"""Counts the work of a traced program: FLOPs and bytes of its products.

A product of m multiply-adds has 2 m FLOPs, and moves its two operands and its
result. What a loop repeats counts as often as it does, and what the backward
pass computes again counts again. All else, such as softmax, norms and the
optimizer, counts nothing: XLA fuses it into the products around it, and on a
TPU other units do it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
from jax.interpreters import partial_eval


@dataclasses.dataclass(frozen=True)
class Work:
  """What products do.

  Attributes:
    flops: floating-point operations.
    bytes: bytes of all operands and results.
  """

  flops: int = 0
  bytes: int = 0

  def __add__(self, other: "Work") -> "Work":
    return Work(self.flops + other.flops, self.bytes + other.bytes)

  def __mul__(self, times: int) -> "Work":
    return Work(self.flops * times, self.bytes * times)


def of_function(function: Callable[..., Any], *args: Any) -> Work:
  """Returns the work of a function of arrays or shapes; computes nothing.

  Example:
    >>> of_function(jnp.dot, jnp.ones((2, 3)), jnp.ones((3, 4)))
    Work(flops=48, bytes=104)
  """
  return of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def of_jaxpr(jaxpr: Any) -> Work:
  """Returns the work of a traced program, without what nothing reads.

  A loop without a fixed number of turns (`while`) counts once.
  """
  used, _ = partial_eval.dce_jaxpr(
    jaxpr, [True] * len(jaxpr.outvars), instantiate=True
  )
  return _count(used)


def _count(jaxpr: Any) -> Work:
  total = Work()
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      total += _product(equation)
    times = 1
    if equation.primitive.name == "scan":
      times = equation.params["length"]
    inner = map(_count, jax.extend.core.jaxprs_in_params(equation.params))
    if equation.primitive.name == "cond":  # one branch is taken
      total += max(inner, key=lambda work: work.flops, default=Work())
    else:
      total += sum(inner, Work()) * times
  return total


def _product(equation: Any) -> Work:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left, right = (x.aval for x in equation.invars)
  out = equation.outvars[0].aval
  reduced = math.prod(left.shape[i] for i in contracted)
  moved = sum(x.size * x.dtype.itemsize for x in (left, right, out))
  return Work(2 * reduced * out.size, moved)
