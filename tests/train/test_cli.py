"""What a person types, and what comes back."""

import json
import re
import shlex
from pathlib import Path

import pytest

from peft_jax import cli
from peft_jax.cli import settings
from peft_jax.cli.command import parser_of

README = Path(__file__).parents[2] / "README.md"


def run(capsys, *argv):
  status = cli.main(argv)
  captured = capsys.readouterr()
  return status, captured.out, captured.err


def test_list_counts_from_shapes_alone(capsys):
  status, out, _ = run(
    capsys, "list", "--model", "t5_1_1_xl", "--adapter", "ia3", "--json"
  )
  counts = json.loads(out)
  assert status == 0
  # T-Few's released vectors for T0-3B, which has this shape.
  assert counts["trained_parameters"] == 540_672
  assert counts["adapter_bytes"] == 4 * 540_672
  assert counts.keys() >= {"backbone_parameters", "share"}


def test_list_shows_everything_there_is(capsys):
  status, out, _ = run(capsys, "list")
  assert status == 0
  for name in ("ia3", "lora", "t5_1_1_xxl", "quickstart", "superglue_rte"):
    assert name in out


def test_check_resolves_without_training(capsys, tmp_path):
  status, out, _ = run(
    capsys,
    "check",
    "--model=tiny",
    "--adapter=ia3",
    "--task=quickstart",
    f"--model_dir={tmp_path / 'run'}",
  )
  assert status == 0
  assert "3,840 of 1,284,224" in out
  assert "0 of 128 examples cut (0.0 %)" in out
  assert out.splitlines()[-1] == "ok"
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("recipe", "name", "full"),
  [
    ("tfew", "rte", "tfew_rte"),
    ("tfew_lora", "hellaswag", "tfew_hellaswag"),
    ("tfew", "boolq", "superglue_boolq"),
    ("prompt_tuning", "rte", "superglue_rte"),
    ("tfew", "superglue_rte", "superglue_rte"),
    ("tfew", "mine", "mine"),
    (None, "rte", "rte"),
  ],
)
def test_short_names_of_a_recipes_tasks(recipe, name, full, tmp_path):
  argv = ["check", "--model=tiny", f"--task={name}", f"--model_dir={tmp_path}"]
  argv.append(f"--recipe={recipe}" if recipe else "--adapter=ia3")
  args = parser_of().parse_args(argv)
  args.bindings = []
  assert settings.resolve(args).config.task == full


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--model=tiny", "--adapter=ia3"], "found none for MIXTURE_OR_TASK_NAME"),
    (["--model=t5_1_1_bse", "--adapter=ia3"], "Nearest: t5_1_1_base"),
    (["--model=tiny", "--adapter=iaa3"], "expected one of the adapters"),
    (["--recipe=nothing"], "expected one of the recipes"),
    (
      ["--model=tiny", "--adapter=ia3", "--task=quickstrat"],
      "Nearest: quickstart",
    ),
  ],
)
def test_mistakes_are_one_line_and_exit_with_1(argv, message, capsys):
  status, _, err = run(capsys, "check", *argv)
  assert status == 1
  assert message in err
  assert "Traceback" not in err


def test_infer_names_the_bad_line(capsys, tmp_path):
  rows = tmp_path / "rows.jsonl"
  rows.write_text('{"inputs": "a"}\n{"text": "b"}\n')
  status, _, err = run(
    capsys, "infer", str(tmp_path), "--input", str(rows), "--output", "x"
  )
  assert status == 1
  assert f"{rows}:2: expected a JSON object with a text 'inputs'" in err


def test_an_adapter_that_is_not_there(capsys, tmp_path):
  status, _, err = run(capsys, "eval", str(tmp_path / "nothing"))
  assert status == 1
  assert "expected a run with checkpoints or an exported adapter" in err


def test_readme_commands_parse():
  commands = re.findall(r"(?m)^peft-jax ((?:.*\\\n)*.*)", README.read_text())
  assert commands
  for command in commands:
    argv = shlex.split(command.replace("\\\n", " "), comments=True)
    if argv[0] != "doctor":
      plain = [a for a in argv if not a.startswith("--gin.")]
      assert parser_of().parse_args(plain).run
