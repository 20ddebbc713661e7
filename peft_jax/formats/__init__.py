"""Checkpoints and adapters of other projects, read and written."""
