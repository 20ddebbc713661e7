"""TensorFlow starts without a word, and without devices."""

import subprocess
import sys

import pytest

from peft_jax.train import host_tensorflow

LIST = ["list", "tasks"]


def test_a_command_says_nothing_but_its_own():
  done = subprocess.run(
    [sys.executable, "-c", "from peft_jax.cli import main; main()", *LIST],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0
  assert "quickstart" in done.stdout.split()
  assert done.stderr == ""


def test_other_words_go_on(capfd):
  with host_tensorflow._without_notes():
    for line in ("I0000 cudart.cc:31] Could not find cuda drivers", "mine"):
      subprocess.run(["sh", "-c", f"echo '{line}' >&2"], check=True)
  assert capfd.readouterr().err == "mine\n"


def test_devices_are_hidden(monkeypatch):
  tensorflow = pytest.importorskip("tensorflow")
  config, hidden = tensorflow.config, []
  monkeypatch.setattr(config, "get_visible_devices", lambda kind: [kind])
  monkeypatch.setattr(
    config, "set_visible_devices", lambda *args: hidden.append(args)
  )
  host_tensorflow.import_tensorflow()
  assert hidden == [([], "GPU")]


def test_a_late_call_says_so(monkeypatch):
  config = pytest.importorskip("tensorflow").config
  monkeypatch.setattr(config, "get_visible_devices", lambda kind: [kind])

  def refuse(*_):
    raise RuntimeError("Visible devices cannot be modified after being")

  monkeypatch.setattr(config, "set_visible_devices", refuse)
  with pytest.raises(RuntimeError, match="expected TensorFlow without GPUs"):
    host_tensorflow.import_tensorflow()
