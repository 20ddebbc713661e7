"""Starts the processes of a run: what takes long to import is imported once.

    python tests/helpers/processes.py < jobs > results

A job is a line {"argv": ..., "folder": ..., "signal": ...}: arguments by
process, a folder for what each prints, and who is sent which signal before
which of its steps. A result is the list of exit statuses; a signal's is
negative.
"""

import json
import os
import pathlib
import sys
import time


def be(process, job):
  """Runs one process of a job; returns its exit status."""
  from peft_jax import cli
  from peft_jax.train import data

  log = pathlib.Path(job["folder"], f"{process}.log")
  with log.open("wb") as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  who, number, step = job.get("signal") or (None, None, None)
  real, calls = data.to_devices, iter(range(1, 1_000_000))

  def counted(batch, place):
    # Evaluation's batches have no targets.
    if "decoder_target_tokens" in batch and who is not None:
      if next(calls) == step and process == who:
        os.kill(os.getpid(), number)
      time.sleep(job["pause"])
    return real(batch, place)

  data.to_devices = counted
  return cli.main(job["argv"][process])


def main():
  """Runs the jobs of standard input, one after the other."""
  from peft_jax.train import host_tensorflow

  host_tensorflow.import_tensorflow()
  from peft_jax.train import loop  # its imports are what takes long

  del loop
  for line in sys.stdin:
    job, children = json.loads(line), []
    for process in range(len(job["argv"])):
      child = os.fork()
      if not child:
        # As at the end of a program: JAX meets the others once more.
        sys.exit(be(process, job))
      children.append(child)
    codes = [
      os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children
    ]
    print(json.dumps(codes), flush=True)


if __name__ == "__main__":
  main()
