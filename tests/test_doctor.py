"""The doctor names bad versions and wrong devices, with a remedy each."""

import ast
import json
import os
import pathlib
import sys

import pytest

from peft_jax import doctor

GOOD = {
  "python": "3.13.0",
  "jax": "0.12.0.1",
  "jaxlib": "0.12.0.1",
  "flax": "0.12.12",
  "optax": "0.2.8",
  "orbax-checkpoint": "0.12.8",
  "tensorflow": "2.21.0",
  "tensorflow-text": "2.21.1",
  "setuptools": "84.2.1",
  "t5x": "0.0.0+gcc342d419ec3e3e9c4bf1df33c82330cafdc1e16",
  "airio": "0.0.1+g69897df7d9a427b947a9f7bb4164c7782b43e601",
  "jestimator": "0.3.3+g326824a477feef6d92e6f44175000907a72899ca",
}
GOOD_311 = GOOD | {
  "python": "3.11.7",
  "jax": "0.10.2",
  "jaxlib": "0.10.2",
  "flax": "0.12.8",
}


def pretend_devices(monkeypatch, **devices):
  """Lets JAX appear to have found these devices."""
  monkeypatch.setattr(doctor, "read_devices", lambda: devices)


@pytest.mark.parametrize(
  ("text", "release"),
  [
    ("0.12.0.1", (0, 12, 0, 1)),
    ("0.11.1rc2", (0, 11, 1)),
    ("0.2.8.dev0", (0, 2, 8)),
    ("0.3.3+g326824a", (0, 3, 3)),
    ("source tree", ()),
  ],
)
def test_parse(text, release):
  assert doctor.parse(text) == release


@pytest.mark.parametrize("versions", [GOOD, GOOD_311])
def test_tested_versions_have_no_findings(versions):
  assert doctor.find_problems(versions=versions) == []


@pytest.mark.parametrize(
  ("change", "level", "problem", "remedy"),
  [
    ({"flax": "0.12.8"}, "warning", "flax 0.12.8 is too old", "flax>=0.12.10"),
    ({"flax": "0.12.9"}, "warning", "flax 0.12.9 is too old", "flax>=0.12.10"),
    (
      {"flax": "0.12.8", "jax": "0.11.1", "jaxlib": "0.11.1"},
      "warning",
      "for jax 0.11.1",
      "flax>=0.12.10",
    ),
    (
      {"jax": "0.10.2", "jaxlib": "0.10.2"},
      "error",
      "flax 0.12.12 needs jax 0.11.1 or later, found jax 0.10.2",
      "flax==0.12.8",
    ),
    (
      {"python": "3.11.7"},
      "error",
      "does not support Python 3.11.7",
      "jax==0.10.2",
    ),
    (
      {"jaxlib": "0.12.1"},
      "error",
      "jaxlib 0.12.1 is newer than jax 0.12.0.1",
      "jaxlib==0.12.0.1",
    ),
    (
      {"jax": "0.13.0", "jaxlib": "0.13.0"},
      "note",
      "jax 0.13.0 is newer than any",
      "jax<0.13",
    ),
    (
      {"tensorflow-text": "2.20.0"},
      "error",
      "does not fit tensorflow 2.21.0",
      "tensorflow-text==2.21.*",
    ),
    ({"setuptools": "59.6.0"}, "note", "59.6.0 cannot", "setuptools>=77"),
    ({"optax": "0.2.5"}, "error", "optax 0.2.5 is older", "optax>=0.2.8"),
    ({"flax": None}, "error", "flax is not installed", "flax>=0.12.8"),
    ({"t5x": "0.0.0+gabc"}, "note", "is at abc", "t5x@cc342d419ec3"),
    ({"airio": None}, "warning", "airio, which T5X", "airio@69897df7d9a4"),
    ({"jestimator": "0.3.3"}, "warning", "from PyPI", "@326824a477fe"),
  ],
)
def test_bad_versions_are_named_with_a_remedy(change, level, problem, remedy):
  (finding,) = doctor.find_problems(versions=GOOD | change)
  assert finding.level == level
  assert problem in finding.problem
  assert remedy in finding.remedy
  assert "{" not in finding.problem + finding.remedy


def test_neighbours_of_bad_pairs_are_fine():
  for jax, flax in (("0.11.0", "0.12.8"), ("0.11.1", "0.12.9")):
    versions = GOOD | {"jax": jax, "jaxlib": jax, "flax": flax}
    assert doctor.find_problems(versions=versions) == []


def test_missing_t5x_is_a_note_with_the_three_commands():
  absent = {"t5x": None, "airio": None, "jestimator": None}
  (finding,) = doctor.find_problems(versions=GOOD | absent)
  assert finding.level == "note"
  commands = finding.remedy.splitlines()
  assert commands[0] == 'pip install "peft_jax[t5x]"'
  assert [command.rpartition("/")[2] for command in commands[1:]] == [
    "t5x@cc342d419ec3e3e9c4bf1df33c82330cafdc1e16",
    "airio@69897df7d9a427b947a9f7bb4164c7782b43e601",
    "jestimator@326824a477feef6d92e6f44175000907a72899ca",
  ]
  assert all("--no-deps git+https://" in command for command in commands[1:])


def test_worst_findings_come_first():
  change = {"setuptools": "59.6.0", "airio": None, "optax": "0.2.5"}
  findings = doctor.find_problems(versions=GOOD | change)
  assert [f.level for f in findings] == ["error", "warning", "note"]


def test_this_environment_has_no_error():
  findings = doctor.find_problems(versions=doctor.read_versions())
  assert [f for f in findings if f.level == "error"] == []


def test_sources_on_the_path_count_and_a_clone_does_not(tmp_path, monkeypatch):
  (tmp_path / "sources/airio").mkdir(parents=True)
  (tmp_path / "clones/jestimator").mkdir(parents=True)
  (tmp_path / "clones/jestimator/README.md").write_text("# A clone")
  monkeypatch.syspath_prepend(str(tmp_path / "sources"))
  monkeypatch.syspath_prepend(str(tmp_path / "clones"))
  names = ("airio", "jestimator")
  monkeypatch.setattr(
    doctor.importlib.metadata, "distribution", _raise_not_found
  )
  versions = doctor.read_versions(packages=names)
  assert [versions[name] for name in names] == ["source tree", None]


def test_origin_of_a_git_install_is_part_of_the_version(tmp_path, monkeypatch):
  info = tmp_path / "t5x-0.0.0.dist-info"
  info.mkdir()
  (info / "METADATA").write_text(
    "Metadata-Version: 2.1\nName: t5x\nVersion: 0.0.0\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  for url, expected in (
    ({"vcs_info": {"vcs": "git", "commit_id": "cc342d4"}}, "0.0.0+gcc342d4"),
    ({"dir_info": {}}, "0.0.0+local"),
  ):
    (info / "direct_url.json").write_text(json.dumps(url))
    assert doctor.read_versions(packages=["t5x"])["t5x"] == expected
  (info / "direct_url.json").unlink()
  assert doctor.read_versions(packages=["t5x"])["t5x"] == "0.0.0"


def test_holders_are_other_processes_with_a_tpu_open(tmp_path):
  _make_process(tmp_path, 176028, ["/dev/accel0", "/dev/accel1", "/dev/null"])
  _make_process(tmp_path, 9, ["/dev/vfio/0", "/dev/vfio/vfio"])
  _make_process(tmp_path, 10, ["/dev/accelerometer", "/home/dev/accel0"])
  _make_process(tmp_path, os.getpid(), ["/dev/accel0"])
  (tmp_path / "11").mkdir()  # Ended, or of another user: nothing to read.
  command = "python -m t5x.train"
  assert doctor.find_holders(proc=tmp_path) == [
    doctor.Holder(pid=9, device="/dev/vfio/0", command=command),
    doctor.Holder(pid=176028, device="/dev/accel0", command=command),
    doctor.Holder(pid=176028, device="/dev/accel1", command=command),
  ]


def test_require_platform_passes_on_the_right_one(monkeypatch):
  pretend_devices(monkeypatch, backend="gpu", device_count=8)
  for name in ("gpu", "GPU", "cuda"):
    doctor.require_platform(name)


def test_require_platform_names_the_holder(monkeypatch):
  holder = doctor.Holder(
    pid=176028, device="/dev/accel0", command="python -m t5x.train"
  )
  pretend_devices(monkeypatch, backend="cpu", device_count=1)
  monkeypatch.setattr(doctor, "find_holders", lambda: [holder])
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  with pytest.raises(doctor.DeviceError) as caught:
    doctor.require_platform("tpu")
  assert str(caught.value) == (
    "expected TPU, got CPU (1 device). /dev/accel0 is held by pid 176028"
    " (python -m t5x.train). Wait for it or stop it yourself; nothing was"
    " stopped here."
  )


@pytest.mark.parametrize(
  ("device_files", "hint"),
  [
    (["/dev/accel0"], "run with sudo to see other users' processes"),
    (["/dev/vfio/vfio"], "this is not a TPU VM"),
  ],
)
def test_require_platform_says_why_there_is_no_tpu(
  monkeypatch, device_files, hint
):
  pretend_devices(monkeypatch, backend="cpu", device_count=2)
  monkeypatch.setattr(doctor, "find_holders", list)
  monkeypatch.setattr(doctor, "_device_files", lambda: device_files)
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  with pytest.raises(doctor.DeviceError) as caught:
    doctor.require_platform("tpu")
  assert "got CPU (2 devices)" in str(caught.value)
  assert "JAX_PLATFORMS=cpu chose this" in str(caught.value)
  assert hint in str(caught.value)


def test_require_platform_passes_on_what_jax_said(monkeypatch):
  pretend_devices(monkeypatch, error="RuntimeError: no backend 'cuda'")
  with pytest.raises(doctor.DeviceError, match="got none: RuntimeError: no b"):
    doctor.require_platform("gpu")


def test_require_platform_refuses_unknown_names():
  with pytest.raises(ValueError, match="cpu, gpu and tpu, found 'npu'"):
    doctor.require_platform("npu")


def test_command_line_prints_json(capsys):
  assert doctor.main(["--json"]) == 0
  content = json.loads(capsys.readouterr().out)
  assert set(content) == {"versions", "findings", "devices", "holders"}
  assert content["devices"]["process_count"] == 1
  assert content["versions"]["jax"]


def test_command_line_prints_lines_and_fails_on_the_wrong_platform(
  capsys, monkeypatch
):
  pretend_devices(monkeypatch, backend="cpu", device_count=1)
  assert doctor.main([]) == 0
  assert doctor.main(["--require", "cpu"]) == 0
  capsys.readouterr()
  assert doctor.main(["--require", "tpu"]) == 1
  printed = capsys.readouterr()
  assert "backend               cpu\n" in printed.out
  assert printed.err.startswith("DeviceError: expected TPU, got CPU")


def test_versions_are_printed_before_jax_can_hang(capsys, monkeypatch):
  def hang():
    assert "jax" in capsys.readouterr().out
    return {"error": "RuntimeError: TPU backend initialization failed"}

  monkeypatch.setattr(doctor, "read_devices", hang)
  assert doctor.doctor() == 1


def test_a_bad_version_fails_the_command(monkeypatch):
  monkeypatch.setattr(
    doctor, "read_versions", lambda: GOOD | {"optax": "0.2.5"}
  )
  assert doctor.doctor() == 1


def test_module_needs_only_the_standard_library_to_import():
  tree = ast.parse(pathlib.Path(doctor.__file__).read_text("utf-8"))
  names = {
    name
    for node in ast.walk(tree)
    if isinstance(node, ast.Import | ast.ImportFrom)
    for name in _imported(node)
  }
  assert names - sys.stdlib_module_names == {"jax"}
  top_level = {n for node in tree.body for n in _imported(node)}
  assert "jax" not in top_level


def _imported(node: ast.AST) -> list[str]:
  """Returns the roots of what an import statement names."""
  if isinstance(node, ast.Import):
    return [alias.name.partition(".")[0] for alias in node.names]
  if isinstance(node, ast.ImportFrom):
    return [(node.module or "").partition(".")[0]]
  return []


def _make_process(proc: pathlib.Path, pid: int, files: list[str]) -> None:
  """Makes a folder like those of /proc."""
  folder = proc / str(pid) / "fd"
  folder.mkdir(parents=True)
  (proc / str(pid) / "cmdline").write_bytes(b"python\0-m\0t5x.train\0")
  for number, target in enumerate(files):
    (folder / str(number)).symlink_to(target)


def _raise_not_found(name: str) -> None:
  raise doctor.importlib.metadata.PackageNotFoundError(name)
