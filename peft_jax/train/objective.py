"""What a training step minimises."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from peft_jax import choices, losses
from peft_jax.train.forward import Batch, choice_logits, network_inputs

Array = jax.Array

# Where a weighed batch carries what its tokens and examples count.
_WEIGHTS = "choice_weights"


class Objective(Protocol):
  """A loss whose parts over rows of a batch add up to that of the batch."""

  def weigh(self, batch: Batch) -> Batch:
    """Returns the batch with what each of its rows counts in the whole."""
    ...

  def total(
    self, model: Any, params: Any, batch: Batch, **options: Any
  ) -> tuple[Array, dict[str, Array]]:
    """Returns the loss of rows of a weighed batch, and metrics; all add up."""
    ...

  def divisors(self, batch: Batch) -> tuple[Array, Array]:
    """Returns what the whole gradient, and whole metrics, are divided by."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel:
  """Cross-entropy of the targets' tokens.

  Attributes:
    z_loss: see `losses.cross_entropy`; prompt tuning's is 1e-4.
    normalization: 'tokens' (mean over the batch's) or 'none' (sum, as T5X).
  """

  z_loss: float = 0.0
  normalization: losses.Normalization = "tokens"

  def weigh(self, batch: Batch) -> Batch:
    """Returns the batch: it carries its weights."""
    return batch

  def total(
    self, model: Any, params: Any, batch: Batch, **options: Any
  ) -> tuple[Array, dict[str, Array]]:
    """Returns the summed loss, and it with the number of right tokens."""
    logits = model.apply({"params": params}, **network_inputs(batch), **options)
    targets = batch["decoder_target_tokens"]
    weights = batch["decoder_loss_weights"].astype(jnp.float32)
    total, _ = losses.language_model(
      logits, targets, weights, z_loss=self.z_loss
    )
    right = losses.accuracy(logits, targets, weights)
    return total, {"loss": total, "accuracy": right}

  def divisors(self, batch: Batch) -> tuple[Array, Array]:
    """Returns the number of real tokens, for the gradient if it is a mean."""
    tokens = jnp.sum(batch["decoder_loss_weights"].astype(jnp.float32))
    real = jnp.maximum(tokens, 1.0)
    return real if self.normalization == "tokens" else jnp.float32(1), real


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerChoices:
  """T-Few's loss: the right choice's tokens, and all choices against it.

  Its metrics are the three losses and the share of examples whose right choice
  scores best. (arXiv 2205.05638, section 3.2)

  Attributes:
    language_model: weight of the right choice's language model loss.
    unlikelihood: weight of the wrong choices' unlikelihood loss.
    length_normalized: weight of the loss over length-normalised scores.
    length_norm: exponent of the length in these scores; the paper's is 1.
    formula: 'paper' or 'tfew_code', see `choices.Formula`.
  """

  language_model: float = 1.0
  unlikelihood: float = 1.0
  length_normalized: float = 1.0
  length_norm: float = 1.0
  formula: choices.Formula = "paper"

  def __post_init__(self) -> None:
    parts = (self.language_model, self.unlikelihood, self.length_normalized)
    if min(parts) < 0 or max(parts) == 0:
      raise ValueError(
        "expected weights of at least 0, and one above, for T-Few's three"
        f" losses, found {parts}."
      )

  def weigh(self, batch: Batch) -> Batch:
    """Returns the batch with the normalised weights of tokens and examples."""
    real, labels = batch["decoder_loss_weights"], batch["labels"]
    weights = choices.weigh(real, labels, formula=self.formula)
    return {**batch, _WEIGHTS: weights}

  def total(
    self, model: Any, params: Any, batch: Batch, **options: Any
  ) -> tuple[Array, dict[str, Array]]:
    """Returns the weighted sum of the losses; they and accuracy."""
    logits = choice_logits(model, params, batch, **options)
    targets, labels = batch["decoder_target_tokens"], batch["labels"]
    weights = batch[_WEIGHTS]
    found = choices.losses(
      logits,
      targets,
      labels,
      weights,
      length_norm=self.length_norm,
      formula=self.formula,
    )
    scores = choices.scores(
      logits, targets, weights.real, length_norm=self.length_norm
    )
    is_right = choices.predict(scores) == labels
    right = jnp.where(is_right, weights.example, 0.0)
    loss = (
      self.language_model * found.language_model
      + self.unlikelihood * found.unlikelihood
      + self.length_normalized * found.length_normalized
    )
    metrics = {"loss": loss, "accuracy": jnp.sum(right), **found._asdict()}
    return loss, metrics

  def divisors(self, batch: Batch) -> tuple[Array, Array]:
    """Returns 1: the weights are normalised."""
    del batch
    return jnp.float32(1), jnp.float32(1)
