"""The published T5X checkpoints by name: size, place, vocabulary.

Sources: T5X's docs/models.md and examples/t5/*.gin at the tested commit.
Nothing is read before a job starts.
"""

import dataclasses
import difflib
from typing import Any

_BUCKET = "gs://t5-data/pretrained_models/t5x"
_SIZES = ("small", "base", "large", "xl", "xxl")
_FLAN_STEPS = (1198000, 1184000, 1164000, 1138000, 1114000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
  """What belongs to one checkpoint.

  Attributes:
    network: name of the size, a key of `networks.CONFIGS`.
    checkpoint: where it is.
    vocabulary: see `tasks.vocabularies.load`.
    vocab_size: rows of the embedding; 0: as the network has.
  """

  network: str
  checkpoint: str
  vocabulary: str = "t5"
  vocab_size: int = 0


def _family(prefix: str, steps: int) -> dict[str, Published]:
  return {
    f"{prefix}_{size}": Published(
      network=f"t5_1_1_{size}",
      checkpoint=f"{_BUCKET}/{prefix}_{size}/checkpoint_{steps}",
    )
    for size in _SIZES
  }


MODELS: dict[str, Published] = {
  "tiny": Published(network="tiny", checkpoint="tiny", vocabulary="bytes"),
  **_family("t5_1_1", 1000000),
  **_family("t5_1_1_lm100k", 1100000),
  **{
    name: dataclasses.replace(found, vocabulary="mt5", vocab_size=250112)
    for name, found in _family("mt5", 1000000).items()
  },
  **{
    f"flan_t5_{size}": Published(
      network=f"t5_1_1_{size}",
      checkpoint=f"{_BUCKET}/flan_t5_{size}/checkpoint_{steps}",
    )
    for size, steps in zip(_SIZES, _FLAN_STEPS, strict=True)
  },
}


def get(name: str) -> Published:
  """Returns what belongs to a name.

  Example:
    >>> get("flan_t5_base").checkpoint.rpartition("/")[2]
    'checkpoint_1184000'

  Raises:
    ValueError: for an unknown name, with the nearest ones.
  """
  if name not in MODELS:
    nearest = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.3)
    raise ValueError(
      f"expected MODEL_NAME to be one of {sorted(MODELS)}, found {name!r}."
      f" Nearest: {', '.join(nearest) or 'none'}."
    )
  return MODELS[name]


def checkpoint(name: str) -> str:
  """Returns where the checkpoint is; for gin's INITIAL_CHECKPOINT_PATH.

  Example:
    >>> checkpoint("t5_1_1_xl")
    'gs://t5-data/pretrained_models/t5x/t5_1_1_xl/checkpoint_1000000'
  """
  return get(name).checkpoint


def vocabulary(name: str) -> str:
  """Returns the name of the vocabulary; for gin's VOCABULARY.

  Example:
    >>> vocabulary("mt5_base")
    'mt5'
  """
  return get(name).vocabulary


def is_large(name: str) -> bool:
  """Whether layers should be scanned: compiling each would take minutes.

  Example:
    >>> is_large("t5_1_1_xxl"), is_large("t5_1_1_base")
    (True, False)
  """
  return get(name).network.endswith(("_xl", "_xxl"))


def remat(name: str) -> str:
  """Returns what the backward pass computes again, in scalable_t5's words.

  Example:
    >>> remat("t5_1_1_xxl")
    'minimal'
  """
  return "minimal" if is_large(name) else "none"


def sizes(name: str) -> tuple[str, dict[str, Any]]:
  """Returns the size of the network, and what of it is replaced.

  Example:
    >>> sizes("mt5_base")
    ('t5_1_1_base', {'vocab_size': 250112})
  """
  found = get(name)
  rows = {"vocab_size": found.vocab_size} if found.vocab_size else {}
  return found.network, rows
