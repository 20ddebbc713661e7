"""The command line, `peft-jax`; `command.main` is where it begins."""

from peft_jax.cli.command import main as main
