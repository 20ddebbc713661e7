"""`peft-jax plan` on eight devices that stand for a slice.

What libtpu does is tested where it is installed; nothing else needs it.
"""

import importlib.util
import json

import jax
import pytest

from peft_jax import cli
from peft_jax.plan import compiled, hardware, search, target
from peft_jax.plan.compiled import KINDS

SMALL = (
  "--model=tiny",
  "--lengths=16,8",
  "--batch=8",
  "--gin.networks.create.num_encoder_layers=1",
  "--gin.networks.create.num_decoder_layers=1",
)
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="needs libtpu: pip install 'peft_jax[tpu]'",
)


@pytest.fixture
def processors(monkeypatch):
  """Lets this machine's eight devices stand for a slice."""

  def tpu(name, memory_bytes=None):
    chip = hardware.topology(name).chip
    return target.Target(
      name=name,
      memory_bytes=memory_bytes or chip.hbm_bytes,
      devices=jax.devices()[:8],
      chip=chip,
      shape=(2, 4),
    )

  monkeypatch.setattr(target, "tpu", tpu)
  return tpu


@pytest.fixture
def analyses(monkeypatch):
  """Returns the list of what `memory_analysis` says of each program."""
  seen = []
  memory = compiled._memory

  def spy(program, args, kinds):
    seen.append(program.memory_analysis())
    return memory(program, args, kinds)

  monkeypatch.setattr(compiled, "_memory", spy)
  return seen


def run(capsys, *argv):
  status = cli.main(["plan", *argv])
  captured = capsys.readouterr()
  return status, captured.out, captured.err


def test_a_plan(processors, analyses, capsys, tmp_path):
  file = tmp_path / "plan.json"
  status, out, err = run(
    capsys,
    *SMALL,
    "--adapter=ia3",
    "--topology=v5e:2x4",
    "--mesh=4,2",
    f"--json={file}",
  )
  assert status == 0, err
  found = json.loads(file.read_text())
  assert found["fits"] is True
  assert found["mesh"] == {"data": 4, "model": 2}
  assert found["hbm_bytes"] == int(15.75 * 2**30)
  assert found["flops_per_step"] > 0
  assert found["compile_seconds"] > 0
  assert found["suggestion"] == ""
  assert {one["kind"] for one in found["collectives"]} >= {"all-reduce"}
  # The processor's products are not read: no time is told.
  assert found["step_seconds_estimate"] is None
  for program, analysis in zip(
    (found, found["decoding"]), analyses, strict=True
  ):
    kinds = program["bytes_per_chip"]
    assert list(kinds) == list(KINDS)
    arguments = sum(kinds[k] for k in ("parameters", "adapter", "batch"))
    if program is found:
      arguments += kinds["optimizer"]
    assert arguments == analysis.argument_size_in_bytes
    assert kinds["activations"] == analysis.temp_size_in_bytes
    assert program["used_bytes"] == sum(kinds.values())
  # Two moments of each trained parameter, and two counters of steps.
  kinds = found["bytes_per_chip"]
  assert kinds["optimizer"] == 2 * kinds["adapter"] + 2 * 4
  # Four features [8 / 4, 16 or 8], the step, and a key of two words.
  assert kinds["batch"] == 4 * 2 * (16 + 3 * 8) + 4 + 8
  assert "ia3 on v5e:2x4, mesh data 4 x model 2" in out
  assert "fits" in out


def test_a_decoder_only_network_on_a_memory(capsys, tmp_path):
  file = tmp_path / "plan.json"
  status, out, err = run(
    capsys,
    "--model=llama_7b",
    "--adapter=lora",
    "--gpu_memory=24GB",
    "--batch=2",
    "--lengths=8,4",
    "--gin.networks.create.num_decoder_layers=1",
    "--gin.networks.create.emb_dim=32",
    "--gin.networks.create.num_heads=2",
    "--gin.networks.create.head_dim=16",
    "--gin.networks.create.mlp_dim=64",
    f"--json={file}",
  )
  assert status == 0, err
  found = json.loads(file.read_text())
  assert found["mesh"] == {"data": 1, "model": 1}
  assert found["collectives"] == []
  # Three features [2, 8 + 4].
  assert found["bytes_per_chip"]["batch"] == 4 * 2 * 3 * 12 + 4 + 8
  assert "1 x 24GB (cpu)" in out


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--mesh=3,2"], "expected data x model = 8 devices, found 3 x 2"),
    (["--mesh=8,1", "--batch=12"], "divisible by data axis"),
    (["--micro_batches=3"], "divides over some mesh of 8 devices"),
    (["--mesh=8"], "two numbers for --mesh, such as 4,4, found '8'"),
    (["--lengths=512"], "two numbers for --lengths"),
    (["--batch=0"], "--batch of at least 1"),
    (["--mesh=4,2", "--search"], "--mesh or --search, found both"),
    (["--model=t5_1_1_bse"], "Nearest: t5_1_1_base"),
    (["--adapter=iaa3"], "expected one of the adapters"),
    (["--topology=v5e:9x9"], "of v5e chips, found '9x9'"),
  ],
)
def test_mistakes_are_found_before_anything_is_compiled(
  argv, message, processors, capsys, monkeypatch
):
  monkeypatch.setattr(compiled, "_compile", None)
  status, _, err = run(
    capsys, *SMALL, "--adapter=ia3", "--topology=v5e:2x4", *argv
  )
  assert status == 1
  assert message in err


def programs(sizes):
  """Returns a stand-in of `plan_mesh` with a size of each mesh's programs."""

  def plan_mesh(ask, shape):
    settings = ask.settings
    size = sizes(shape, settings)
    program = compiled.Compiled(
      bytes_per_chip={**dict.fromkeys(KINDS, 0), "activations": size},
      fits=True,
      work=compiled.Work(10, 10),
      work_per_chip=None,
      collectives=[],
      seconds=1.0,
    )
    return search.Plan(
      settings=settings,
      target=ask.target.name,
      mesh=dict(zip(("data", "model"), shape, strict=True)),
      hbm_bytes=ask.target.memory_bytes,
      train=program,
      decoding=program,
      train_times=search.report.Times(compute=size, memory=0, links=shape[1]),
      decoding_times=None,
    )

  return plan_mesh


GIB = 2**30


@pytest.mark.parametrize(
  ("sizes", "status", "words"),
  [
    (lambda shape, _: 16 * GIB // shape[1], 0, "mesh data 4 x model 2"),
    (
      lambda _, settings: (8 if settings["remat"] == "full" else 20) * GIB,
      1,
      "fits with --remat full --mesh 8,1",
    ),
    (
      lambda _, settings: 40 * GIB // settings["micro_batches"],
      1,
      "fits with --remat full --micro_batches 4 --mesh 2,4",
    ),
    (lambda *_: 100 * GIB, 1, "nothing that was tried fits"),
  ],
)
def test_what_is_tried_until_it_fits(
  sizes, status, words, processors, monkeypatch, capsys
):
  monkeypatch.setattr(search, "plan_mesh", programs(sizes))
  argv = [*SMALL, "--adapter=ia3", "--topology=v5e:2x4"]
  found, out, _ = run(capsys, *argv)
  assert found == status
  assert words in out
  assert ("NO" in out) == bool(status)


def test_search_takes_the_fastest_that_fits(processors, monkeypatch, capsys):
  sizes = {1: 20 * GIB, 2: 10 * GIB, 4: 5 * GIB, 8: 6 * GIB}
  monkeypatch.setattr(
    search, "plan_mesh", programs(lambda shape, _: sizes[shape[1]])
  )
  argv = [*SMALL, "--adapter=ia3", "--topology=v5e:2x4", "--search"]
  status, out, err = run(capsys, *argv)
  assert status == 0
  assert "mesh data 2 x model 4" in out
  assert "mesh data 8 x model 1 does not fit: 20.00 GiB" in err


def test_a_program_that_libtpu_refuses(processors, monkeypatch):
  message = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
    " for HLO temporaries (37.17G) exceeds available HBM (15.75G)."
  )
  assert compiled.needed_bytes(message) == int(37.17 * 2**30)
  assert compiled.needed_bytes("INTERNAL: something else") is None


@needs_libtpu
def test_libtpu_compiles_what_the_trainer_runs(analyses, capsys, tmp_path):
  file = tmp_path / "plan.json"
  status, _, err = run(
    capsys,
    *SMALL,
    "--adapter=ia3",
    "--topology=v5e:2x2",
    "--mesh=2,2",
    f"--json={file}",
  )
  assert status == 0, err
  found = json.loads(file.read_text())
  kinds = found["bytes_per_chip"]
  # Tiles of 128 words for the step, the key and the features' rows.
  assert kinds["batch"] % 512 == 0
  total = analyses[0].argument_size_in_bytes + analyses[0].temp_size_in_bytes
  total += analyses[0].output_size_in_bytes - analyses[0].alias_size_in_bytes
  total += analyses[0].generated_code_size_in_bytes
  assert found["used_bytes"] == total
  # Each of four chips does a quarter of all products.
  share = found["flops_per_step"] / 4
  assert found["flops_per_chip"] == pytest.approx(share, rel=0.02)
  assert found["step_seconds_estimate"] > 0
