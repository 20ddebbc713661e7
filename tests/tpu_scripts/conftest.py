"""A Google Cloud that only writes down what it was asked."""

import dataclasses
import os
import pathlib
import shutil
import subprocess

import pytest

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "tpu_scripts"

# Each call is one line, its words divided by \x1f. What `describe` and the
# question for the job answer are the lines of two files, one for each call.
_FAKE = r"""#!/usr/bin/env bash
{ printf '%s' "${0##*/}" && printf '\x1f%s' "$@" && echo; } >>"$FAKE/calls"
pop() {
  head -n 1 "$FAKE/$1"
  (($(wc -l <"$FAKE/$1") < 2)) || sed -i 1d "$FAKE/$1"
}
case $* in
  *'queued-resources describe'*)
    answer=$(pop states)
    case $answer in
      NOT_FOUND) echo 'ERROR: (gcloud) NOT_FOUND: entity' >&2 && exit 1 ;;
      OFFLINE) echo 'ERROR: gcloud crashed (ConnectionError)' >&2 && exit 1 ;;
      *) echo 'Using endpoint [https://tpu]' >&2; echo "$answer" ;;
    esac ;;
  *'queued-resources create'*) [[ $(pop creates) != fail ]] ;;
  *'show --property=SubState'*)
    answer=$(pop jobs)
    [[ $answer != unreachable ]] || exit 255
    echo "$answer" ;;
  *'storage cp --recursive gs://'*) mkdir -p "${@: -1}" && touch "${@: -1}/x" ;;
esac
"""


@dataclasses.dataclass(frozen=True)
class Cloud:
  """The fake, and how to run a script against it.

  Attributes:
    folder: where calls and answers are; `bin` in it comes first on PATH.
  """

  folder: pathlib.Path

  def play(self, *, states=("ACTIVE",), jobs=("running",), creates=("ok",)):
    """Sets what is answered, call by call; the last one again and again."""
    (self.folder / "creates").write_text("\n".join(creates) + "\n")
    (self.folder / "states").write_text("\n".join(states) + "\n")
    (self.folder / "jobs").write_text("\n".join(jobs) + "\n")

  def run(self, script, *args, bash=(), **environment):
    """Runs a script of tpu_scripts to its end."""
    return subprocess.run(
      ["bash", *bash, str(SCRIPTS / script), *map(str, args)],
      env=self.environment() | environment,
      cwd=self.folder,
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )

  def environment(self):
    """Returns a clean environment with the fakes on PATH."""
    return {
      "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
      "HOME": str(self.folder),
      "FAKE": str(self.folder),
    }

  def calls(self):
    """Returns the recorded commands, each a list of words."""
    path = self.folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split("\x1f") for line in lines]

  def add(self, *names):
    """Makes fakes of more commands."""
    for name in names:
      path = self.folder / "bin" / name
      path.write_text(_FAKE)
      path.chmod(0o755)


@pytest.fixture
def cloud(tmp_path):
  """A fake gcloud and xpk, with nothing created."""
  if shutil.which("bash") is None:
    pytest.skip("needs bash")
  (tmp_path / "bin").mkdir()
  found = Cloud(tmp_path)
  found.add("gcloud", "xpk")
  found.play()
  return found
