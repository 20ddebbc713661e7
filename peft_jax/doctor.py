"""What is installed, which device JAX found, and which pairs are known bad.

Example:
  $ peft-jax doctor                  # or: python -m peft_jax.doctor
  $ peft-jax doctor --require tpu    # exit status 1 where there is no TPU
  $ peft-jax doctor --json

Versions come from installed metadata: nothing but JAX is imported, and JAX only
after the versions are printed, so that a broken or hanging installation can
still be read. Where even `import peft_jax` fails, run this file itself:
`python -P peft_jax/doctor.py`; `-P` keeps its neighbours off the path.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# None where a package is not installed.
Versions = Mapping[str, str | None]

PACKAGES = (
  "peft_jax",
  "jax",
  "jaxlib",
  "libtpu",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
  "seqio",
  "tensorflow",
  "tensorflow-text",
  "tensorflow-datasets",
  "gin-config",
  "clu",
  "setuptools",
  "t5x",
  "airio",
  "jestimator",
)

# What `setup.py` asks for, for environments that pip did not resolve.
MINIMUM = {
  "jax": "0.10.2",
  "flax": "0.12.8",
  "optax": "0.2.8",
  "orbax-checkpoint": "0.12",
}

# Not on PyPI, or there in a version that does not import; each works at this
# commit, with everything else from PyPI (`pip install "peft_jax[t5x]"`).
T5X_SOURCES = {
  "t5x": (
    "https://github.com/google-research/t5x",
    "cc342d419ec3e3e9c4bf1df33c82330cafdc1e16",
  ),
  "airio": (
    "https://github.com/google/airio",
    "69897df7d9a427b947a9f7bb4164c7782b43e601",
  ),
  "jestimator": (
    "https://github.com/google-research/jestimator",
    "326824a477feef6d92e6f44175000907a72899ca",
  ),
}

# A package found on PYTHONPATH as plain sources has no metadata to read.
_NO_METADATA = "source tree"

_DEVICE_FILES = re.compile(r"/dev/(accel\d+|vfio/\d+)")


class DeviceError(RuntimeError):
  """The platform that was asked for is not the one JAX runs on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """One thing to know about this installation.

  Attributes:
    level: `error` where it cannot work, `warning` where part of it cannot, and
      `note` for what is merely absent or untested.
    problem: What was found.
    remedy: What to do, as commands where there are any.
  """

  level: str
  problem: str
  remedy: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
  """A process that has a TPU device file open.

  Example: `Holder(pid=176028, device="/dev/accel0", command="python train.py")`
  """

  pid: int
  device: str
  command: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownBad:
  """A row of the table of versions that do not work together.

  Attributes:
    level: See `Finding`.
    applies: Says whether the installed versions are such a case.
    problem: The finding's text; `{flax}` stands for the version of flax.
    remedy: What to do.
  """

  level: str
  applies: Callable[[Versions], bool]
  problem: str
  remedy: str


def parse(version: str) -> tuple[int, ...]:
  """Returns the release numbers: `"0.12.0.1rc2+cpu"` -> `(0, 12, 0, 1)`."""
  release = re.match(r"\d+(\.\d+)*", version)
  return tuple(map(int, release[0].split("."))) if release else ()


def at_least(versions: Versions, name: str, bound: str) -> bool:
  """Whether `name` is installed, at `bound` or later."""
  version = parse(versions.get(name) or "")
  return bool(version) and version >= parse(bound)


def below(versions: Versions, name: str, bound: str) -> bool:
  """Whether `name` is installed, before `bound`."""
  version = parse(versions.get(name) or "")
  return bool(version) and version < parse(bound)


def same_minor(versions: Versions, one: str, other: str) -> bool:
  """Whether both share major.minor, or one of them is not installed."""
  first, second = (parse(versions.get(name) or "") for name in (one, other))
  return not first or not second or first[:2] == second[:2]


KNOWN_BAD = (
  KnownBad(
    level="warning",
    applies=lambda v: (
      (below(v, "flax", "0.12.9") and at_least(v, "jax", "0.11.1"))
      or (below(v, "flax", "0.12.10") and at_least(v, "jax", "0.11.2"))
    ),
    problem="flax {flax} is too old for jax {jax}: flax.nnx fails on import "
    "(`jax.experimental.hijax has no attribute ...`)",
    remedy='pip install --upgrade "flax>=0.12.10"   or   '
    'pip install "jax==0.10.2"',
  ),
  KnownBad(
    level="error",
    applies=lambda v: (
      at_least(v, "flax", "0.12.9") and below(v, "jax", "0.11.1")
    ),
    problem="flax {flax} needs jax 0.11.1 or later, found jax {jax}",
    remedy='pip install --upgrade jax   or   pip install "flax==0.12.8"',
  ),
  KnownBad(
    level="error",
    applies=lambda v: at_least(v, "jax", "0.11") and below(v, "python", "3.12"),
    problem="jax {jax} does not support Python {python}: jax 0.11 dropped 3.11",
    remedy='pip install "jax==0.10.2" "flax==0.12.8"   or   use Python 3.12',
  ),
  KnownBad(
    level="error",
    applies=lambda v: (
      bool(v.get("jaxlib"))
      and at_least(v, "jaxlib", v.get("jax") or "9999")
      and v["jaxlib"] != v["jax"]
    ),
    problem="jaxlib {jaxlib} is newer than jax {jax}, which jax refuses",
    remedy='pip install "jaxlib=={jax}"',
  ),
  KnownBad(
    level="note",
    applies=lambda v: at_least(v, "jax", "0.13"),
    problem="jax {jax} is newer than any that peft_jax was tested with",
    remedy='if something fails: pip install "jax<0.13"',
  ),
  KnownBad(
    level="error",
    applies=lambda v: not same_minor(v, "tensorflow", "tensorflow-text"),
    problem="tensorflow-text {tensorflow-text} does not fit tensorflow "
    "{tensorflow}: its compiled parts load only in the same minor version",
    remedy='pip install "tensorflow-text=={tensorflow:minor}.*"',
  ),
  KnownBad(
    level="note",
    applies=lambda v: below(v, "setuptools", "64"),
    problem="setuptools {setuptools} cannot make editable installs: peft_jax "
    "maps its folder tasks/ to peft_jax.tasks",
    remedy='pip install --upgrade "setuptools>=77"',
  ),
)


def read_versions(
  *, packages: Sequence[str] = PACKAGES
) -> dict[str, str | None]:
  """Returns installed versions without importing, Python's own first.

  Example: `{"python": "3.13.0", "jax": "0.12.0.1", "t5x": None}`
  """
  versions: dict[str, str | None] = {"python": platform.python_version()}
  return versions | {name: _read_version(name) for name in packages}


def find_problems(*, versions: Versions) -> list[Finding]:
  """Holds the versions against what is known, worst first.

  Example:
    find_problems(versions=read_versions())
    # [Finding(level="note", problem="T5X is not installed ...", remedy=...)]
  """
  found = [*_find_too_old(versions), *_find_known_bad(versions)]
  found += _find_t5x_problems(versions)
  return sorted(
    found, key=lambda f: ("error", "warning", "note").index(f.level)
  )


def read_devices() -> dict[str, Any]:
  """Starts JAX's backend and says what it found.

  Returns:
    `backend`, `device_kind`, the counts of devices and processes, and this
    process's index; or `error` alone where JAX or its backend does not start.
  """
  try:
    import jax

    return {
      "backend": jax.default_backend(),
      "device_kind": jax.devices()[0].device_kind,
      "device_count": jax.device_count(),
      "local_device_count": jax.local_device_count(),
      "process_count": jax.process_count(),
      "process_index": jax.process_index(),
    }
  except Exception as error:  # Whatever is broken, the report must come out.
    return {"error": f"{type(error).__name__}: {error}"}


def find_holders(*, proc: str | os.PathLike[str] = "/proc") -> list[Holder]:
  """Lists other processes that have a TPU open; it never stops one.

  A TPU serves one process at a time. Processes of other users show only to
  root, so an empty list is no proof that the TPU is free.
  """
  folders = pathlib.Path(proc).glob("[0-9]*")
  others = (folder for folder in folders if folder.name != str(os.getpid()))
  return [
    Holder(pid=int(folder.name), device=device, command=_read_command(folder))
    for folder in sorted(others, key=lambda folder: int(folder.name))
    for device in sorted(set(_open_devices(folder)))
  ]


def has_tpu() -> bool:
  """Whether this machine has a TPU's device files; JAX is not started."""
  return any(map(_DEVICE_FILES.fullmatch, _device_files()))


def report() -> dict[str, Any]:
  """Returns everything that `peft-jax doctor --json` prints.

  Returns:
    `versions`, `findings`, `devices` and `holders`, of plain JSON types.
  """
  return dict(_read_sections())


def require_platform(name: str) -> None:
  """Raises `DeviceError` unless JAX runs on the platform asked for.

  JAX falls back to the CPU with a mere warning where a TPU is taken or its
  library missing, and a job then runs a hundred times slower without a word.

  Example:
    require_platform("tpu")
    # DeviceError: expected TPU, got CPU (1 device). /dev/accel0 is held by pid
    # 176028 (python -m t5x.train). ...

  Args:
    name: `tpu`, `gpu` or `cpu`; `cuda` and `rocm` count as `gpu`.
  """
  wanted = {"cuda": "gpu", "rocm": "gpu"}.get(name.lower(), name.lower())
  if wanted not in ("cpu", "gpu", "tpu"):
    raise ValueError(
      f"Expected a platform of cpu, gpu and tpu, found {name!r}. Use one of"
      " these, or none to take what JAX finds."
    )
  devices = read_devices()
  if devices.get("backend") != wanted:
    raise DeviceError(_explain_platform(wanted, devices))


def doctor(*, require: str | None = None, as_json: bool = False) -> int:
  """Prints the report; the body of `peft-jax doctor`.

  Args:
    require: A platform that must be there, as for `require_platform`.
    as_json: Print one JSON object instead of lines.

  Returns:
    The exit status: 1 after an error, be it a version or the platform.
  """
  content = {}
  for name, section in _read_sections():
    content[name] = section
    if not as_json:
      _print_section(name, section)
  if as_json:
    print(json.dumps(content, indent=2))
  failed = "error" in content["devices"] or any(
    finding["level"] == "error" for finding in content["findings"]
  )
  if require:
    try:
      require_platform(require)
    except DeviceError as error:
      print(f"DeviceError: {error}", file=sys.stderr)
      failed = True
  return int(failed)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the doctor from the command line, without the rest of peft_jax."""
  parser = argparse.ArgumentParser(
    prog="python -m peft_jax.doctor", description=(__doc__ or "").split("\n")[0]
  )
  parser.add_argument("--json", action="store_true", help="print JSON")
  parser.add_argument(
    "--require",
    choices=("cpu", "gpu", "tpu"),
    help="exit with 1 unless JAX runs on this platform",
  )
  args = parser.parse_args(argv)
  return doctor(require=args.require, as_json=args.json)


def _read_version(name: str) -> str | None:
  """Returns the version of a package, of T5X's sources with their origin."""
  try:
    distribution = importlib.metadata.distribution(name)
  except importlib.metadata.PackageNotFoundError:
    return _NO_METADATA if _is_source_tree(name) else None
  suffix = _read_origin(distribution) if name in T5X_SOURCES else ""
  return distribution.version + suffix


def _read_origin(distribution: importlib.metadata.Distribution) -> str:
  """Returns `+g<commit>` from git, `+local` from a folder, or "" from PyPI."""
  direct_url = distribution.read_text("direct_url.json")
  if not direct_url:
    return ""
  commit = json.loads(direct_url).get("vcs_info", {}).get("commit_id")
  return f"+g{commit}" if commit else "+local"


def _is_source_tree(name: str) -> bool:
  """Whether one of T5X's packages lies on PYTHONPATH as plain sources.

  A clone is a folder called `t5x` too, and Python takes it for a namespace
  package where it lies in the working directory; the package is one below.
  """
  spec = importlib.util.find_spec(name) if name in T5X_SOURCES else None
  places = (spec and spec.submodule_search_locations) or ()
  return any(not (pathlib.Path(p) / "README.md").exists() for p in places)


def _find_too_old(versions: Versions) -> Iterator[Finding]:
  """Compares with the lower bounds of `setup.py`."""
  for name, bound in MINIMUM.items():
    if versions.get(name) is None:
      problem = f"{name} is not installed; peft_jax needs {bound} or later"
    elif below(versions, name, bound):
      problem = f"{name} {versions[name]} is older than {bound}"
    else:
      continue
    remedy = f'pip install --upgrade "{name}>={bound}"'
    yield Finding(level="error", problem=problem, remedy=remedy)


def _find_known_bad(versions: Versions) -> Iterator[Finding]:
  """Goes through the table of known-bad pairs."""
  for row in KNOWN_BAD:
    if row.applies(versions):
      yield Finding(
        level=row.level,
        problem=_fill(row.problem, versions),
        remedy=_fill(row.remedy, versions),
      )


def _find_t5x_problems(versions: Versions) -> Iterator[Finding]:
  """Looks whether T5X and its two companions are there, at tested commits."""
  if versions.get("t5x") is None:
    commands = [_t5x_command(name) for name in T5X_SOURCES]
    yield Finding(
      level="note",
      problem="T5X is not installed (only peft_jax.t5x needs it; not on PyPI)",
      remedy="\n".join(['pip install "peft_jax[t5x]"', *commands]),
    )
    return
  for name in T5X_SOURCES:
    problem = _find_source_problem(name, versions.get(name))
    if problem:
      level, text = problem
      yield Finding(level=level, problem=text, remedy=_t5x_command(name))


def _find_source_problem(
  name: str, version: str | None
) -> tuple[str, str] | None:
  """Returns the level and the text, where one of T5X's sources is amiss."""
  if version is None:
    return "warning", f"{name}, which T5X imports, is not installed"
  if name == "jestimator" and re.fullmatch(r"[\d.]+", version):
    return "warning", f"jestimator {version} from PyPI does not import"
  release, _, commit = version.partition("+g")
  tested = T5X_SOURCES[name][1]
  if commit and commit != tested:
    return "note", f"{name} {release} is at {commit}, tested is {tested}"
  return None


def _t5x_command(name: str) -> str:
  """Returns the command that installs one of T5X's sources."""
  url, commit = T5X_SOURCES[name]
  return f"pip install --no-deps git+{url}@{commit}"


def _fill(text: str, versions: Versions) -> str:
  """Puts versions in: `{jax}` -> `0.12.0.1`, `{jax:minor}` -> `0.12`."""

  def replace(match: re.Match[str]) -> str:
    version = versions.get(match[1]) or "?"
    minor = ".".join(map(str, parse(version)[:2]))
    return minor if match[2] else version

  return re.sub(r"\{([a-z0-9_-]+)(:minor)?\}", replace, text)


def _read_command(folder: pathlib.Path) -> str:
  """Returns a process's command line, e.g. `python -m t5x.train`."""
  try:
    raw = (folder / "cmdline").read_bytes()
  except OSError:  # It ended meanwhile, or belongs to another user.
    return "?"
  return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def _open_devices(folder: pathlib.Path) -> Iterator[str]:
  """Yields the TPU device files that a process of /proc has open."""
  try:
    for entry in (folder / "fd").iterdir():
      target = os.readlink(entry)
      if _DEVICE_FILES.fullmatch(target):
        yield target
  except OSError:  # It ended meanwhile, or belongs to another user.
    return


def _explain_platform(wanted: str, devices: Mapping[str, Any]) -> str:
  """Says what was expected, what was found and what to do."""
  if "error" in devices:
    found = f"none: {devices['error']}"
  else:
    count = devices["device_count"]
    plural = "s" if count > 1 else ""
    found = f"{devices['backend'].upper()} ({count} device{plural})"
  remedies = _platform_remedies(wanted, devices)
  return f"expected {wanted.upper()}, got {found}. {' '.join(remedies)}"


def _platform_remedies(
  wanted: str, devices: Mapping[str, Any]
) -> Iterator[str]:
  """Yields what may stand between JAX and the platform, likeliest first."""
  chosen = os.environ.get("JAX_PLATFORMS", "")
  if "error" not in devices and chosen:
    yield f"JAX_PLATFORMS={chosen} chose this: unset it or set it to {wanted}."
  if wanted == "gpu":
    yield (
      'Check that nvidia-smi sees the GPU, and install "jax[cuda13]" or'
      ' "jax[cuda12]", whichever fits the driver.'
    )
  if wanted == "tpu":
    yield from _tpu_remedies()


def _tpu_remedies() -> Iterator[str]:
  """Names who holds the TPU; else what is missing."""
  holders = find_holders()
  for holder in holders:
    yield f"{holder.device} is held by pid {holder.pid} ({holder.command})."
  if holders:
    yield "Wait for it or stop it yourself; nothing was stopped here."
    return
  if _read_version("libtpu") is None:
    yield 'libtpu is not installed: pip install "jax[tpu]".'
  if has_tpu():
    yield "No holder was found; run with sudo to see other users' processes."
  else:
    yield "There is no /dev/accel* or /dev/vfio/*: this is not a TPU VM."


def _device_files() -> list[str]:
  """Lists candidates for TPU device files, e.g. `["/dev/accel0"]`."""
  dev = pathlib.Path("/dev")
  return [str(path) for path in (*dev.glob("accel*"), *dev.glob("vfio/*"))]


def _read_sections() -> Iterator[tuple[str, Any]]:
  """Yields the parts of the report, those that may hang last."""
  versions = read_versions()
  yield "versions", versions
  findings = find_problems(versions=versions)
  yield "findings", [dataclasses.asdict(finding) for finding in findings]
  yield "devices", read_devices()
  yield "holders", [dataclasses.asdict(holder) for holder in find_holders()]


def _print_section(name: str, section: Any) -> None:
  """Prints one part of the report as lines, and a blank one after it."""
  if name == "findings":
    for finding in section:
      print(f"{finding['level']}: {finding['problem']}")
      print("  " + finding["remedy"].replace("\n", "\n  "))
  elif name == "holders":
    for holder in section:
      line = f"held by pid {holder['pid']} ({holder['command']})"
      print(f"{holder['device']:<22}{line}")
  else:
    for key, value in section.items():
      print(f"{key:<22}{'-' if value is None else value}")
  if section:
    print(flush=True)  # A backend that hangs must not hide what came before.


if __name__ == "__main__":
  sys.exit(main())
