"""Times a training step against what its matrix products alone would take.

    PYTHONPATH=. python benchmarks/train_step.py
    PYTHONPATH=. python benchmarks/train_step.py --peer hf --peer_python PYTHON

Methods: (IA)3 on keys, values and `wo`; LoRA on queries and values; full
fine-tuning. A step is forward, backward and AdamW on one fixed batch without
padding; dropout is off. With `--peer hf`, Hugging Face transformers and PEFT do
the same in a process of their own: the two take turns, step by step, so that
what slows the machine slows both. Ratios are of medians.

Floor: the FLOPs of the step's matrix products, over the FLOP/s of the fastest
matrix product that this process finds: large squares and the step's own shapes,
in the dtype of the step. A product of m multiply-adds counts 2 m FLOPs forward
and 2 m more for each of its two operands that needs a gradient:

    FLOPs = sum over products of 2 m (1 + g),  g in {0, 1, 2}

So a frozen kernel costs one product backward (that of its input) and a trained
one two; scores and context, whose operands are both activations, cost two. In
the first layer of a stack of a frozen model, what nothing trained precedes
costs none. Everything else, such as softmax and the optimizer, counts nothing.
`peft_jax.plan.flops` counts them in the traced step.

Rows of `--json FILE`, a list: `system` is `peft_jax`, `hf` or `floor`;
`tokens_per_s` counts inputs and targets; `ratio_to_peer` is our tokens per
second over the peer's; `floor_ratio` is the step's time over the floor. A value
that does not apply is null.

Needs jax, flax, optax and numpy alone; the peer's Python torch, transformers
and peft.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import IA3, Adapted, LoRA, Rule, partition
from peft_jax.networks import EncoderDecoder, TransformerConfig
from peft_jax.optim import optimizers
from peft_jax.plan import flops
from peft_jax.train import forward
from peft_jax.train import step as train_step

METHODS = ("ia3", "lora", "full")
LEARNING_RATE = 1e-3
_WORKER = pathlib.Path(__file__).with_name("_hf_worker.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
  """What both systems are built from; the defaults are T5 1.1 small.

  Attributes:
    d_model: D.
    d_ff: F.
    num_heads: H.
    head_dim: K.
    num_layers: layers of the encoder, and of the decoder.
    vocab: V.
    batch: B.
    inputs: tokens of each input, S.
    targets: tokens of each target, T.
    rank: R of LoRA.
  """

  d_model: int = 512
  d_ff: int = 1024
  num_heads: int = 6
  head_dim: int = 64
  num_layers: int = 8
  vocab: int = 32128
  batch: int = 8
  inputs: int = 256
  targets: int = 32
  rank: int = 8

  @property
  def tokens(self) -> int:
    """Tokens of one step, inputs and targets."""
    return self.batch * (self.inputs + self.targets)


# --- The floor ---------------------------------------------------------------


def step_flops(shapes: Shapes, method: str) -> int:
  """Returns the FLOPs of the matrix products of one step; see the top.

  >>> round(step_flops(Shapes(), "ia3") / 1e9, 1)
  238.7
  """
  model = make_model(shapes, method, "float32")
  batch = make_batch(shapes)
  inputs = forward.network_inputs(batch)
  init = lambda key: model.init(key, **inputs)["params"]
  trained = jax.eval_shape(init, jax.random.key(0))
  frozen: Any = {}
  if isinstance(model, Adapted):
    frozen, trained = partition.split(trained, model)
  tx = optimizers.adamw(learning_rate=LEARNING_RATE)
  start = lambda leaves: train_step.init_state(leaves, tx, jax.random.key(1))
  step = train_step.make_train_step(model, tx, dropout=False)
  state = jax.eval_shape(start, trained)
  return flops.of_function(step, state, frozen, batch).flops


def matmul_limit(
  shapes: Shapes, dtype: str, squares: Sequence[int], repeats: int = 5
) -> float:
  """Returns the FLOP/s of the fastest of squares and the step's shapes."""
  joined = shapes.num_heads * shapes.head_dim
  rows = shapes.batch * shapes.inputs
  products = [(n, n, n) for n in squares] + [
    (rows, shapes.d_model, joined),
    (rows, shapes.d_model, shapes.d_ff),
    (rows, shapes.d_ff, shapes.d_model),
    (shapes.batch * shapes.targets, shapes.d_model, shapes.vocab),
  ]
  return max(_product_speed(*sizes, dtype, repeats) for sizes in products)


def _product_speed(n: int, k: int, m: int, dtype: str, repeats: int) -> float:
  """Returns the best FLOP/s of [n, k] @ [k, m] over some repeats."""
  generator = np.random.default_rng(0)
  a = jnp.asarray(generator.standard_normal((n, k), np.float32), dtype)
  b = jnp.asarray(generator.standard_normal((k, m), np.float32), dtype)
  multiply = jax.jit(jnp.matmul)
  multiply(a, b).block_until_ready()
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    multiply(a, b).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * n * k * m / min(seconds)


# --- The two systems ---------------------------------------------------------


def make_tokens(shapes: Shapes) -> dict[str, np.ndarray]:
  """Returns random tokens without padding, [B, S] and [B, T]."""
  generator = np.random.default_rng(0)

  def draw(length: int) -> np.ndarray:
    size = (shapes.batch, length)
    return generator.integers(2, shapes.vocab, size, np.int32)

  return {"inputs": draw(shapes.inputs), "targets": draw(shapes.targets)}


def make_batch(shapes: Shapes) -> dict[str, np.ndarray]:
  """Returns the tokens as the features of a training batch."""
  tokens = make_tokens(shapes)
  targets = tokens["targets"]
  return {
    "encoder_input_tokens": tokens["inputs"],
    "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    "decoder_target_tokens": targets,
    "decoder_loss_weights": np.ones(targets.shape, np.float32),
  }


def make_model(
  shapes: Shapes, method: str, dtype: str
) -> EncoderDecoder | Adapted:
  """Returns the network, with adapters unless it is trained whole."""
  network = EncoderDecoder(
    TransformerConfig(
      vocab_size=shapes.vocab,
      emb_dim=shapes.d_model,
      num_heads=shapes.num_heads,
      head_dim=shapes.head_dim,
      mlp_dim=shapes.d_ff,
      num_encoder_layers=shapes.num_layers,
      num_decoder_layers=shapes.num_layers,
      dtype=jnp.dtype(dtype),
    )
  )
  rules = {
    "ia3": [Rule("kv", IA3()), Rule("mlp_out", IA3(side="input"))],
    "lora": [Rule("qv", LoRA(rank=shapes.rank))],
    "full": [],
  }[method]
  return Adapted(network, rules) if rules else network


class Ours:
  """Our training step on one fixed batch.

  Attributes:
    trained: number of trained parameters.
  """

  def __init__(self, shapes: Shapes, method: str, dtype: str) -> None:
    model = make_model(shapes, method, dtype)
    self._batch = jax.device_put(make_batch(shapes))
    inputs = forward.network_inputs(self._batch)
    params = jax.jit(model.init)(jax.random.key(0), **inputs)["params"]
    self._frozen, trained = {}, params
    if isinstance(model, Adapted):
      self._frozen, trained = partition.split(params, model)
    self.trained = partition.count(trained)
    tx = optimizers.adamw(learning_rate=LEARNING_RATE)
    self._state = train_step.init_state(trained, tx, jax.random.key(1))
    self._step = jax.jit(
      train_step.make_train_step(model, tx, dropout=False), donate_argnums=0
    )

  def program(self) -> str:
    """Returns the compiled step as XLA's text."""
    lowered = self._step.lower(self._state, self._frozen, self._batch)
    return lowered.compile().as_text() or ""

  def step(self) -> float:
    """Does one step; returns its seconds."""
    start = time.perf_counter()
    done = self._step(self._state, self._frozen, self._batch)
    self._state, _ = jax.block_until_ready(done)
    return time.perf_counter() - start


class Peer:
  """The peer's training step, in a process that answers line by line."""

  def __init__(self, python: str, shapes: Shapes, dtype: str) -> None:
    env = dict(os.environ)
    if python != sys.executable:
      env.pop("PYTHONPATH", None)  # It is for our interpreter.
    self._process = subprocess.Popen(
      [python, str(_WORKER)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=env,
    )
    tokens = {name: ids.tolist() for name, ids in make_tokens(shapes).items()}
    self._ask(
      shapes=dataclasses.asdict(shapes),
      dtype=dtype,
      learning_rate=LEARNING_RATE,
      tokens=tokens,
    )
    self.idle: list[float] = []

  def build(self, method: str) -> int:
    """Makes the model of a method; returns how many parameters it trains."""
    return self._ask(method=method)["trained"]

  def step(self) -> float:
    """Does one step; returns its seconds.

    Also notes the share of a core that the peer used since its last answer.
    """
    answer = self._ask(step=1)
    self.idle.append(answer["idle_cpu"])
    return answer["seconds"]

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait(timeout=60)

  def _ask(self, **request: Any) -> dict[str, Any]:
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(
        f"expected an answer of {_WORKER.name}, found that it ended with exit"
        f" code {self._process.wait()}; its error is above. Does --peer_python"
        " have torch, transformers and peft?"
      )
    return json.loads(line)


# --- Measuring ---------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Times:
  """Seconds of the steps of one method.

  Attributes:
    ours: of our steps.
    peer: of the peer's, empty without a peer.
    idle_ours: share of a core that our process used while the peer worked.
    idle_peer: share of a core that the peer used while we worked.
  """

  ours: list[float]
  peer: list[float]
  idle_ours: float = 0.0
  idle_peer: float = 0.0


def take_turns(
  ours: Ours, peer: Peer | None, *, steps: int, warmup: int, pause: float
) -> Times:
  """Times steps of both in turn; each turn begins after a pause.

  The pause is for thread pools that spin a little after their work.
  """
  times = Times(ours=[], peer=[])
  waited = used = 0.0
  for i in range(warmup + steps):
    time.sleep(pause)
    seconds = ours.step()
    if i >= warmup:
      times.ours.append(seconds)
    if peer is None:
      continue
    time.sleep(pause)
    start, cpu = time.perf_counter(), time.process_time()
    seconds = peer.step()
    if i >= warmup:
      times.peer.append(seconds)
      waited += time.perf_counter() - start
      used += time.process_time() - cpu
  if peer is not None:
    times.idle_ours = used / waited
    times.idle_peer = statistics.median(peer.idle[-steps:])
  return times


def make_rows(
  shapes: Shapes, method: str, dtype: str, times: Times, floor: float
) -> list[dict[str, Any]]:
  """Returns the rows of one method: ours, the peer's if any, the floor's."""
  medians = {"peft_jax": statistics.median(times.ours)}
  if times.peer:
    medians["hf"] = statistics.median(times.peer)
  medians["floor"] = floor
  rows = []
  for system, seconds in medians.items():
    ratio = None
    if times.peer and system == "peft_jax":
      ratio = medians["hf"] / seconds
    rows.append(
      {
        "system": system,
        "method": method,
        "dtype": dtype,
        "median_step_s": seconds,
        "tokens_per_s": shapes.tokens / seconds,
        "ratio_to_peer": ratio,
        "floor_ratio": seconds / floor,
      }
    )
  return rows


def run(
  shapes: Shapes,
  methods: Sequence[str],
  dtype: str,
  peer: Peer | None,
  squares: Sequence[int],
  **turns: Any,
) -> list[dict[str, Any]]:
  """Measures all methods; returns their rows.

  The limit is measured before every method and at the end, and the best holds
  for all: a noisy moment must not raise the floor.
  """
  limit = 0.0
  measured = {}
  for method in methods:
    limit = max(limit, matmul_limit(shapes, dtype, squares))
    ours = Ours(shapes, method, dtype)
    if peer is not None:
      _check_same(method, ours.trained, peer.build(method))
    measured[method] = take_turns(ours, peer, **turns)
    del ours  # Its memory is the next one's.
    _say_idle(method, measured[method])
  limit = max(limit, matmul_limit(shapes, dtype, squares))
  print(f"matmul limit: {limit / 1e9:,.1f} GFLOP/s {dtype}", file=sys.stderr)
  rows = []
  for method, times in measured.items():
    floor = step_flops(shapes, method) / limit
    rows += make_rows(shapes, method, dtype, times, floor)
  return rows


def _check_same(method: str, ours: int, peers: int) -> None:
  """Raises unless both train as many parameters."""
  if ours != peers:
    raise RuntimeError(
      f"expected both systems to train the same parameters with {method},"
      f" found {ours:,} of ours and {peers:,} of the peer's."
    )


def _say_idle(method: str, times: Times) -> None:
  """Reports what each side used of a core while the other worked."""
  if times.peer:
    print(
      f"{method}: in the other's turn we used {times.idle_ours:.1%} of a core,"
      f" the peer {times.idle_peer:.1%}",
      file=sys.stderr,
    )


def format_rows(rows: list[dict[str, Any]]) -> str:
  """Returns the rows as a Markdown table."""
  lines = [
    "| system | method | dtype | step, s | tokens/s | to peer | to floor |",
    "| --- | --- | --- | ---: | ---: | ---: | ---: |",
  ]
  for row in rows:
    ratio = row["ratio_to_peer"]
    lines.append(
      f"| {row['system']} | {row['method']} | {row['dtype']}"
      f" | {row['median_step_s']:.4f} | {row['tokens_per_s']:,.0f}"
      f" | {'' if ratio is None else f'{ratio:.2f}'}"
      f" | {row['floor_ratio']:.2f} |"
    )
  return "\n".join(lines)


# --- Command line ------------------------------------------------------------


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for field in dataclasses.fields(Shapes):
    parser.add_argument(f"--{field.name}", type=int, default=field.default)
  parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), default="float32"
  )
  parser.add_argument("--steps", type=int, default=15, help="timed steps")
  parser.add_argument("--warmup", type=int, default=3, help="untimed steps")
  parser.add_argument(
    "--pause", type=float, default=0.05, help="seconds before each turn"
  )
  parser.add_argument(
    "--limit_sizes",
    type=int,
    nargs="+",
    help="squares of the limit; default 1024 to 4096, to 16384 off the CPU",
  )
  parser.add_argument("--peer", choices=("hf",))
  parser.add_argument(
    "--peer_python", default=sys.executable, help="the peer's interpreter"
  )
  parser.add_argument("--json", metavar="FILE", help="where rows are written")
  return parser.parse_args(arguments)


@contextlib.contextmanager
def _peer(args: argparse.Namespace, shapes: Shapes) -> Iterator[Peer | None]:
  """Yields the peer that was asked for, and ends it afterwards."""
  if args.peer is None:
    yield None
    return
  with contextlib.closing(Peer(args.peer_python, shapes, args.dtype)) as peer:
    yield peer


def main(arguments: list[str] | None = None) -> None:
  """Measures and prints what the command line asks for."""
  args = _parse(arguments)
  # A peer on the same GPU needs memory, too; read when JAX first uses it.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  shapes = Shapes(
    **{f.name: getattr(args, f.name) for f in dataclasses.fields(Shapes)}
  )
  squares = args.limit_sizes or [1024, 2048, 4096]
  if not args.limit_sizes and jax.default_backend() != "cpu":
    squares += [8192, 16384]
  print(f"{shapes}, {jax.devices()[0].device_kind}", file=sys.stderr)
  with _peer(args, shapes) as peer:
    rows = run(
      shapes,
      args.methods,
      args.dtype,
      peer,
      squares,
      steps=args.steps,
      warmup=args.warmup,
      pause=args.pause,
    )
  print(format_rows(rows))
  if args.json:
    text = json.dumps(rows, indent=2) + "\n"
    pathlib.Path(args.json).write_text(text, "utf-8")


if __name__ == "__main__":
  main()
