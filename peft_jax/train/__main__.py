"""`python -m peft_jax.train` is `peft-jax train`."""

import sys

from peft_jax.cli import main

if __name__ == "__main__":
  sys.exit(main(["train", *sys.argv[1:]]))
