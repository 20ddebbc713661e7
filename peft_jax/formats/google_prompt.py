"""Prompts of google-research/prompt-tuning, read in."""

from pathlib import Path
from typing import Any

import numpy as np

from peft_jax.adapters import Prompt
from peft_jax.formats.safetensors_io import FormatError
from peft_jax.rules import Rule


def read(path: str | Path, network: Any) -> tuple[tuple[Rule, ...], dict]:
  """Returns the rule of a prompt, and its leaf.

  Args:
    path: a released `.npy` file, or `encoder.prompt.prompt.prompt`, which its
      trainer writes to `numpy_checkpoints/checkpoint_N`.
    network: the backbone's network.

  Raises:
    FormatError: for a file that is no array, or of another width.
  """
  try:
    with open(path, "rb") as file:
      prompt = np.load(file, allow_pickle=False)
  except Exception as error:  # numpy raises many kinds
    raise FormatError(
      f"expected a prompt as numpy saves it at {path}, found"
      f" {type(error).__name__}: {error}."
    ) from error
  width = network.config.emb_dim
  if prompt.ndim != 2 or prompt.shape[1] != width:
    raise FormatError(
      f"expected a prompt [P, {width}] for this network in {path}, found"
      f" {list(prompt.shape)}. Is it of another size?"
    )
  stack = "encoder" if network.config.num_encoder_layers else "decoder"
  rule = Rule(stack, Prompt(length=prompt.shape[0], initializer="uniform"))
  leaf = prompt.astype(np.float32)
  return (rule,), {stack: {rule.name: {"prompt": leaf}}}
