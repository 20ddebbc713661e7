"""Several adapters of one backbone answer as one (arXiv 2104.08691, section 6).

The leaves of N adapters get a leading axis; `jax.vmap` maps over it alone, so
there is one backbone and one batch of N rows per example. What no adapter has
touched is computed once for all. It holds for every method, not prompts alone.

Axis letters: N adapters, B batch, C candidate answers, T length.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import manifest as manifests
from peft_jax import trees
from peft_jax.manifest import Manifest

Array = jax.Array
# 'majority': the answer that most adapters give. 'probability': the answer
# whose probability, averaged over the adapters, is highest.
Vote = Literal["majority", "probability"]
VOTES: tuple[Vote, ...] = ("majority", "probability")

# What a manifest says of training that answers depend on.
_ALIKE = ("task", "vocabulary", "task_feature_lengths")


class EnsembleError(ValueError):
  """Adapters that cannot answer together."""


def stack(adapters: Sequence[Any]) -> dict:
  """Returns one tree of several adapters, [N, ...] per leaf.

  Example:
    >>> one = {"key": {"ia3": {"scaling": jnp.ones(3)}}}
    >>> stack([one, one])["key"]["ia3"]["scaling"].shape
    (2, 3)

  Args:
    adapters: N trees of the same paths, shapes and dtypes.

  Raises:
    EnsembleError: for fewer than two, or trees that differ.
  """
  if len(adapters) < 2:
    raise EnsembleError(
      f"expected two adapters or more, found {len(adapters)}. Pass several."
    )
  flat = [trees.flatten(adapter) for adapter in adapters]
  specs = [
    {path: (tuple(x.shape), np.dtype(x.dtype).name) for path, x in one.items()}
    for one in flat
  ]
  for number, spec in enumerate(specs):
    differ = sorted(
      path
      for path in spec.keys() | specs[0].keys()
      if spec.get(path) != specs[0].get(path)
    )
    if differ:
      first = differ[0]
      raise EnsembleError(
        f"expected adapters of the same leaves, found {len(differ)} that differ"
        f" in adapter {number} (first {first}: {spec.get(first, 'none')}, in"
        f" adapter 0 {specs[0].get(first, 'none')}). Use adapters that were"
        " trained with one setting."
      )
  return trees.unflatten(
    {path: jnp.stack([one[path] for one in flat]) for path in flat[0]}
  )


def each(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function of one adapter as a function of stacked ones.

  Example:
    >>> add = lambda frozen, adapter, x: frozen + adapter["a"] + x
    >>> each(add)(1.0, {"a": jnp.array([10.0, 20.0])}, 0.5).tolist()
    [11.5, 21.5]

  Args:
    function: (frozen, adapter, *batch) -> arrays, such as decoding. Loops of
      `decoding` go on until all adapters have answered.

  Returns:
    (frozen, stacked, *batch) -> the same arrays, [N, ...].
  """

  def mapped(frozen: Any, stacked: Any, *batch: Any) -> Any:
    return jax.vmap(lambda adapter: function(frozen, adapter, *batch))(stacked)

  return mapped


def majority(answers: Sequence[Any]) -> int:
  """Returns which adapter gives the commonest answer of one example.

  Among answers that are equally common it is that of the adapter with the
  lowest number.

  Example:
    >>> majority(["no", "yes", "yes"]), majority(["b", "a", "a", "b"])
    (1, 0)

  Args:
    answers: [N] texts, or whatever can be compared.
  """
  counts = Counter(answers)
  return max(range(len(answers)), key=lambda i: (counts[answers[i]], -i))


def likeliest(
  ids: np.ndarray, texts: Sequence[str], probabilities: np.ndarray
) -> tuple[int, float]:
  """Returns which adapter gives the likeliest answer, and its probability.

  An answer's probability is the mean over the adapters, also over those that
  answered something else. Different ids of one text add up. Of equals it is
  that of the adapter with the lowest number.

  Example:
    >>> ids = np.array([[7, 1], [8, 1], [8, 1]])
    >>> chances = np.array([[0.9, 0.1, 0.1], [0.3, 0.4, 0.4], [0.3, 0.4, 0.4]])
    >>> winner, chance = likeliest(ids, ["yes", "no", "no"], chances)
    >>> winner, round(chance, 2)
    (0, 0.5)

  Args:
    ids: [N, T] what each adapter answered.
    texts: [N] the same as texts.
    probabilities: [N, N], in row n what adapter n thinks of every answer.
  """
  means = np.asarray(probabilities, np.float64).mean(axis=0)
  totals: dict[str, float] = {}
  seen: set[bytes] = set()
  for row, text, mean in zip(ids, texts, means, strict=True):
    if row.tobytes() not in seen:
      seen.add(row.tobytes())
      totals[text] = totals.get(text, 0.0) + float(mean)
  winner = max(range(len(texts)), key=lambda i: (totals[texts[i]], -i))
  return winner, totals[texts[winner]]


def choose(scores: np.ndarray, vote: Vote) -> np.ndarray:
  """Returns the index of the chosen answer of every example, [B].

  'majority' takes each adapter's lowest score, 'probability' the highest mean
  over adapters of softmax(-score). Ties as in `majority` and, for
  probabilities, the first choice.

  Example:
    >>> scores = np.array([[[0.0, 4.0]], [[1.1, 1.0]], [[1.1, 1.0]]])
    >>> choose(scores, "majority").tolist()
    [1]
    >>> choose(scores, "probability").tolist()
    [0]

  Args:
    scores: [N, B, C] negative log probabilities, infinity for a choice that
      is absent (see `choices.scores`).
    vote: see `Vote`.

  Raises:
    EnsembleError: for an unknown vote.
  """
  check_vote(vote)
  if vote == "probability":
    return mean_probabilities(scores).argmax(axis=-1)
  best = np.asarray(scores).argmin(axis=-1).T  # [B, N]
  return np.array([row[majority(row.tolist())] for row in best], np.int64)


def mean_probabilities(scores: np.ndarray) -> np.ndarray:
  """Returns the mean over adapters of softmax(-score), [B, C].

  Example:
    >>> mean_probabilities(np.log([[[1, 3]], [[1, 1]]])).tolist()
    [[0.625, 0.375]]

  Args:
    scores: [N, B, C], see `choose`.
  """
  scores = np.asarray(scores, np.float64)
  likely = np.exp(scores.min(axis=-1, keepdims=True) - scores)
  likely /= likely.sum(axis=-1, keepdims=True)
  return likely.mean(axis=0)


def check_vote(vote: str) -> None:
  """Raises for a vote that is none of `VOTES`.

  Raises:
    EnsembleError: with those there are.
  """
  if vote not in VOTES:
    raise EnsembleError(
      f"expected a vote of {list(VOTES)}, found {vote!r}. Use one of them."
    )


def check_alike(found: Mapping[str, Manifest]) -> None:
  """Raises unless adapters may answer together.

  They may differ in where their leaves started, and in what their manifests do
  not say.

  Args:
    found: where an adapter lies -> its manifest.

  Raises:
    EnsembleError: for an adapter that is there twice, other rules, another
      backbone, task, vocabulary or lengths.
  """
  (source, first), *others = found.items()
  seen = {_bytes_of(first): source}
  for place, other in others:
    same = seen.setdefault(_bytes_of(other), place)
    if same != place:
      raise EnsembleError(
        f"expected different adapters, found the same leaves in {same} and"
        f" {place}: it would vote twice. Leave one out."
      )
    try:
      manifests.check_rules(
        other, list(map(manifests.rule_from_json, first.rules)), any_start=True
      )
    except manifests.ManifestError as error:
      raise EnsembleError(
        f"expected the rules of {source} in {place}, found others: {error}"
      ) from error
    pairs = {
      "network": (first.model.get("config"), other.model.get("config")),
      "backbone": (
        first.backbone.get("fingerprint"),
        other.backbone.get("fingerprint"),
      ),
    } | {
      name: (first.training.get(name), other.training.get(name))
      for name in _ALIKE
    }
    for name, (one, two) in pairs.items():
      if one and two and one != two:
        raise EnsembleError(
          f"expected the {name} of {source} in {place}, found another"
          f" ({_short(two)} for {_short(one)}). Use adapters that were trained"
          " on one task and one backbone."
        )


def _bytes_of(found: Manifest) -> str:
  return " ".join(f"{p} {x['sha256']}" for p, x in sorted(found.leaves.items()))


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
