"""Adapter directories: what is saved comes back, or an error says why not."""

import json
import shutil
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers import tiny

import peft_jax
from peft_jax import (
  IA3,
  Adapted,
  LoRA,
  Rule,
  backbone,
  checkpoint,
  layout,
  manifest,
)
from peft_jax.adapters import METHODS
from peft_jax.checkpoint import AdapterError
from peft_jax.manifest import ManifestError
from peft_jax.partition import split

RULES = (Rule("mlp_out", IA3(side="input")), Rule("qv", LoRA(rank=2, alpha=4)))
MODEL = Adapted(tiny.t5(), RULES)
KEY = (Rule("key", IA3()),)
FINGERPRINT = "0123456789abcdef"
A_LEAF = "decoder/layers_0/self_attention/query/lora/a"


def spec(model=MODEL):
  return split(tiny.shapes(model), model)[1]


def adapter(model=MODEL):
  return tiny.randomize(split(tiny.params(model), model)[1])


def save(directory, leaves=None, rules=RULES):
  return checkpoint.save(
    directory,
    adapter() if leaves is None else leaves,
    rules,
    model=backbone.describe(MODEL.network, "small"),
    backbone={"source": "hf:t5", "fingerprint": FINGERPRINT},
    training={"step": 3},
  )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """An adapter directory that no test may change."""
  directory = tmp_path_factory.mktemp("saved") / "adapter"
  save(directory)
  return directory


@pytest.fixture
def copy(saved, tmp_path):
  """A copy of it to be damaged."""
  return shutil.copytree(saved, tmp_path / "adapter")


def edit_manifest(directory, edit):
  path = directory / "manifest.json"
  values = json.loads(path.read_text())
  edit(values)
  path.write_text(json.dumps(values))


def test_round_trip(saved):
  read, leaves = checkpoint.load(saved)
  tiny.assert_same(leaves, adapter())
  tiny.assert_same(checkpoint.restore(saved, MODEL, spec()), adapter())
  assert {type(x) for x in flatten_dict(leaves).values()} == {np.ndarray}
  assert read.leaves.keys() == flatten_dict(adapter(), sep="/").keys()
  assert read.model["name"] == "small"
  assert read.model["config"]["emb_dim"] == 16
  assert read.training == {"step": 3}
  assert read.versions["peft_jax"] == peft_jax.__version__
  assert not list(saved.parent.glob("*.partial"))
  assert sorted(p.name for p in saved.iterdir()) == [
    "adapter.npz",
    "manifest.json",
    "orbax",
  ]


def test_the_package_exports_the_three():
  assert peft_jax.save is checkpoint.save
  assert peft_jax.load is checkpoint.load
  assert peft_jax.restore is checkpoint.restore


def test_leaves_are_stored_in_float32(tmp_path):
  """Numpy alone has no bfloat16; widening loses nothing."""
  values = jnp.arange(4, dtype=jnp.bfloat16) / jnp.bfloat16(3)
  save(tmp_path / "a", {"key": {"ia3": {"scaling": values}}}, KEY)
  _, found = checkpoint.load(tmp_path / "a")
  expected = {"key": {"ia3": {"scaling": values.astype(jnp.float32)}}}
  tiny.assert_same(found, expected)


def test_either_view_writes_the_same_files(saved, tmp_path):
  """One module per layer on disk, whatever the network that trained."""
  scanned = Adapted(tiny.t5(scan_layers=True), RULES)
  leaves = layout.to_scanned(adapter())
  written = save(tmp_path / "adapter", leaves)
  assert written.leaves == manifest.read(saved).leaves
  found = checkpoint.restore(saved, scanned, spec(scanned))
  tiny.assert_same(found, leaves)


def test_numpy_alone_can_read_it(saved):
  """No JAX, no accelerator: also the hashes can be checked."""
  program = f"""
import sys
for name in ("jax", "jaxlib", "flax", "orbax", "tensorstore", "ml_dtypes"):
  sys.modules[name] = None  # importing one is an error
import hashlib, json, numpy as np
manifest = json.load(open({str(saved / "manifest.json")!r}))
with np.load({str(saved / "adapter.npz")!r}, allow_pickle=False) as file:
  leaves = dict(file)
assert leaves.keys() == manifest["leaves"].keys()
for path, leaf in leaves.items():
  entry = manifest["leaves"][path]
  assert list(leaf.shape) == entry["shape"] and leaf.dtype == entry["dtype"]
  assert hashlib.sha256(leaf.tobytes()).hexdigest() == entry["sha256"]
print(sum(leaf.size for leaf in leaves.values()))
"""
  done = subprocess.run(
    [sys.executable, "-I", "-c", program], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  sizes = [x.size for x in flatten_dict(adapter()).values()]
  assert int(done.stdout) == sum(sizes)


# Writing.


def test_a_directory_that_is_taken(tmp_path):
  (tmp_path / "mine.txt").write_text("precious")
  with pytest.raises(AdapterError) as error:
    save(tmp_path)
  message = str(error.value)
  assert "expected a new or empty directory" in message
  assert "['mine.txt']. Nothing was written" in message
  assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_directory_is_used(tmp_path):
  (tmp_path / "adapter").mkdir()
  save(tmp_path / "adapter")
  assert (tmp_path / "adapter" / "manifest.json").is_file()


def test_no_leaves(tmp_path):
  with pytest.raises(AdapterError) as error:
    save(tmp_path / "adapter", {})
  message = str(error.value)
  assert "expected adapter leaves, found none; nothing was written" in message
  assert not list(tmp_path.iterdir())


def test_what_a_broken_save_left_is_replaced(tmp_path):
  partial = tmp_path / "adapter.partial"
  partial.mkdir()
  (partial / "adapter.npz").write_text("half")
  save(tmp_path / "adapter")
  assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_save_that_cannot_be_read_back_leaves_nothing(tmp_path, monkeypatch):
  """A directory of the final name is always whole."""
  monkeypatch.setattr(checkpoint, "read_npz", lambda path: {})
  with pytest.raises(AdapterError, match="missing"):
    save(tmp_path / "adapter")
  assert not (tmp_path / "adapter").exists()


# Reading what is damaged.


def test_no_manifest(tmp_path):
  for directory in (tmp_path, tmp_path / "absent"):
    with pytest.raises(ManifestError) as error:
      checkpoint.load(directory)
    assert "adapter directory with manifest.json, found none" in str(
      error.value
    )


@pytest.mark.parametrize(
  "content", [b"", b"{", b"not json", b"\xff\xfe\x00", b'{"format": 1,}']
)
def test_a_broken_manifest(copy, content):
  (copy / "manifest.json").write_bytes(content)
  with pytest.raises(ManifestError) as error:
    checkpoint.load(copy)
  message = str(error.value)
  assert "expected JSON in" in message
  assert "found a broken file" in message
  assert "Copy the adapter again" in message


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"rules": []}'])
def test_a_file_that_is_no_manifest(copy, content):
  (copy / "manifest.json").write_text(content)
  with pytest.raises(ManifestError, match="not an adapter's manifest"):
    checkpoint.load(copy)


@pytest.mark.parametrize("name", ["model", "backbone"])
def test_a_manifest_without_a_required_field(copy, name):
  edit_manifest(copy, lambda values: values.pop(name))
  with pytest.raises(ManifestError, match="expected a manifest with"):
    checkpoint.load(copy)


def test_an_unknown_format(copy):
  edit_manifest(copy, lambda values: values.update(format=99))
  with pytest.raises(ManifestError) as error:
    checkpoint.load(copy)
  message = str(error.value)
  assert "expected manifest format 1 in" in message
  assert "found 99" in message
  assert peft_jax.__version__ in message


def test_fields_of_a_later_minor_version_are_passed_over(copy):
  edit_manifest(copy, lambda values: values.update(something_new={"a": 1}))
  read, _ = checkpoint.load(copy)
  assert read.model["name"] == "small"


def test_an_unknown_method(copy):
  def edit(values):
    values["rules"][0]["method"] = "ia4"

  edit_manifest(copy, edit)
  read = manifest.read(copy)
  with pytest.raises(ManifestError) as error:
    manifest.rule_from_json(read.rules[0])
  message = str(error.value)
  assert f"expected a method of {sorted(METHODS)}, found 'ia4'" in message
  assert "another version" in message


def data_files(directory):
  """Returns the files of the Orbax checkpoint, the largest first."""
  files = [p for p in (directory / "orbax").rglob("*") if p.is_file()]
  return sorted(files, key=lambda p: -p.stat().st_size)


def test_a_truncated_file(copy):
  largest = data_files(copy)[0]
  content = largest.read_bytes()
  largest.write_bytes(content[: len(content) // 2])
  with pytest.raises(AdapterError, match=r"Nothing was loaded; copy"):
    checkpoint.load(copy)


def test_a_missing_file(copy):
  for path in data_files(copy):
    path.unlink()
  with pytest.raises(AdapterError) as error:
    checkpoint.load(copy)
  assert "expected an Orbax checkpoint at" in str(error.value)
  shutil.rmtree(copy / "orbax")
  with pytest.raises(AdapterError, match="expected an Orbax checkpoint at"):
    checkpoint.load(copy)


def test_a_flipped_byte_of_the_values(copy):
  """Orbax checks no values by itself: the hashes of the manifest do."""
  largest = data_files(copy)[0]
  content = bytearray(largest.read_bytes())
  found = 0
  for position in range(0, len(content), max(1, len(content) // 12)):
    damaged = content.copy()
    damaged[position] ^= 0x10
    largest.write_bytes(damaged)
    try:
      _, leaves = checkpoint.load(copy)
    except AdapterError as error:
      assert "Nothing was loaded; copy the adapter again" in str(error)
      found += 1
    else:  # a byte that means nothing: what was loaded is right all the same
      tiny.assert_same(leaves, adapter())
  assert found > 6


def test_a_leaf_with_other_values_is_named(copy):
  def edit(values):
    values["leaves"][A_LEAF]["sha256"] = "0" * 64

  edit_manifest(copy, edit)
  with pytest.raises(AdapterError) as error:
    checkpoint.load(copy)
  message = str(error.value)
  assert f"expected leaf {A_LEAF} of" in message
  assert "the file is damaged. Nothing was loaded" in message


def test_a_leaf_missing_from_the_files(copy):
  def edit(values):
    values["leaves"]["zzz/lora/a"] = values["leaves"][A_LEAF]

  edit_manifest(copy, edit)
  with pytest.raises(AdapterError) as error:
    checkpoint.load(copy)
  assert "found 1 missing and 0 extra (first zzz/lora/a)" in str(error.value)


def test_a_leaf_missing_from_the_manifest(copy):
  edit_manifest(copy, lambda values: values["leaves"].pop(A_LEAF))
  with pytest.raises(AdapterError) as error:
    checkpoint.load(copy)
  assert f"found 0 missing and 1 extra (first {A_LEAF})" in str(error.value)


def test_every_damage_of_an_npz_is_found(tmp_path):
  """Every byte flipped, every length cut: an error of ours, or no harm."""
  leaves = {"key/ia3/scaling": np.arange(5, dtype=np.float32)}
  read = manifest.make(
    {"key": {"ia3": {"scaling": leaves["key/ia3/scaling"]}}},
    KEY,
    model={},
    backbone={},
  )
  path = tmp_path / "adapter.npz"
  np.savez(path, **leaves)
  whole = path.read_bytes()

  def check(content, name):
    path.write_bytes(content)
    try:
      found = checkpoint.read_npz(path)
      checkpoint.verify(read, found, source="here")
    except AdapterError as error:
      assert "Nothing was loaded" in str(error), name
      return True
    except Exception as error:
      pytest.fail(f"{name}: {type(error).__name__}: {error}")
    tiny.assert_same({"x": found}, {"x": leaves})
    return False

  caught = 0
  for position in range(len(whole)):
    damaged = bytearray(whole)
    damaged[position] ^= 0xFF
    caught += check(bytes(damaged), f"byte {position}")
  assert caught > len(whole) // 2
  for length in range(0, len(whole), 7):
    assert check(whole[:length], f"length {length}")


def test_a_pickle_is_not_opened(tmp_path):
  np.savez(tmp_path / "a.npz", leaf=np.array([{"a": 1}], object))
  with pytest.raises(AdapterError, match=r"whole \.npz file"):
    checkpoint.read_npz(tmp_path / "a.npz")
  (tmp_path / "b.npz").write_bytes(b"PK\x05\x06 not a zip")
  with pytest.raises(AdapterError, match=r"whole \.npz file"):
    checkpoint.read_npz(tmp_path / "b.npz")
  with pytest.raises(AdapterError):
    checkpoint.read_npz(tmp_path / "absent.npz")


def test_the_npz_is_a_plain_zip(saved):
  with zipfile.ZipFile(saved / "adapter.npz") as file:
    assert file.testzip() is None
    assert f"{A_LEAF}.npy" in file.namelist()


# Reading for another network, other rules, another backbone.


def test_another_depth(saved):
  deeper = Adapted(tiny.t5(num_decoder_layers=3), RULES)
  with pytest.raises(AdapterError) as error:
    checkpoint.restore(saved, deeper, spec(deeper))
  message = str(error.value)
  # Per decoder layer: 1 vector, and 2 attentions x 2 projections x (a, b).
  assert "0 of 23 adapter leaves are not in this network" in message
  assert "9 of its 32 are not in" in message
  assert "(first decoder/layers_2/" in message
  assert "for 3 layers, this network has 4" in message
  assert "Nothing was loaded" in message


def test_a_shallower_network(saved):
  shallow = Adapted(tiny.t5(num_decoder_layers=1, scan_layers=True), RULES)
  with pytest.raises(AdapterError, match="9 of 23 adapter leaves are not in"):
    checkpoint.restore(saved, shallow, spec(shallow))


def test_another_width(saved):
  wider = Adapted(tiny.t5(emb_dim=24), RULES)
  with pytest.raises(AdapterError) as error:
    checkpoint.restore(saved, wider, spec(wider))
  assert "of shape (24, 2), found (16, 2)" in str(error.value)


@pytest.mark.parametrize(
  ("rule", "message"),
  [
    (Rule("qv", LoRA(rank=4, alpha=4)), "rank=4 given, the adapter has rank=2"),
    (Rule("qv", LoRA(rank=2)), "alpha=None given, the adapter has alpha=4"),
    (
      Rule("qv", LoRA(rank=2, alpha=4, dropout_rate=0.1)),
      "dropout_rate=0.1 given, the adapter has dropout_rate=0.0",
    ),
    (
      Rule("qv", LoRA(rank=2, alpha=4, initializer="gemma")),
      "initializer=gemma given, the adapter has initializer=hugging_face",
    ),
  ],
)
def test_a_setting_that_disagrees(saved, rule, message):
  other = Adapted(tiny.t5(), [RULES[0], rule])
  with pytest.raises(ManifestError) as error:
    checkpoint.restore(saved, other, spec())
  assert message in str(error.value)
  field = message.split("=")[0]
  assert f"Set {field}=" in str(error.value)


@pytest.mark.parametrize(
  "rules",
  [
    RULES[:1],
    (*RULES, Rule("key", IA3())),
    (RULES[0], Rule("qkv", LoRA(rank=2, alpha=4))),
    (RULES[0], Rule("qv", LoRA(rank=2, alpha=4), name="other")),
    (RULES[0], Rule("qv", IA3())),
  ],
)
def test_other_rules(saved, rules):
  with pytest.raises(ManifestError) as error:
    checkpoint.restore(saved, Adapted(tiny.t5(), rules), spec())
  assert "expected the adapter's rules" in str(error.value)


def test_the_order_of_the_rules_is_free_in_restoring_other_sites(saved):
  reordered = Adapted(tiny.t5(), RULES[::-1])
  tiny.assert_same(checkpoint.restore(saved, reordered, spec()), adapter())


def test_a_preset_and_its_pattern_are_one(saved):
  pattern = RULES[1].regex
  spelled = Adapted(tiny.t5(), [RULES[0], Rule(pattern, RULES[1].adapter)])
  tiny.assert_same(checkpoint.restore(saved, spelled, spec()), adapter())


def test_another_backbone(saved):
  found = checkpoint.restore(saved, MODEL, spec(), fingerprint=FINGERPRINT)
  tiny.assert_same(found, adapter())
  with pytest.raises(AdapterError) as error:
    checkpoint.restore(saved, MODEL, spec(), fingerprint="f" * 64)
  message = str(error.value)
  assert "trained on backbone 'hf:t5' (0123456789ab)" in message
  assert "found one with fingerprint ffffffffffff" in message


# The manifest itself.


def test_manifest_holds_all_hyper_parameters(saved):
  read = manifest.read(saved)
  assert read.rules == [
    {
      "pattern": ".*mlp/wo",
      "name": "ia3",
      "method": "ia3",
      "hyperparameters": {"side": "input"},
    },
    {
      "pattern": ".*attention/(query|value)",
      "name": "lora",
      "method": "lora",
      "hyperparameters": {
        "rank": 2,
        "alpha": 4,
        "rank_stabilized": False,
        "dropout_rate": 0.0,
        "initializer": "hugging_face",
        "gated": False,
      },
    },
  ]
  assert [manifest.rule_from_json(r).adapter for r in read.rules] == [
    rule.adapter for rule in RULES
  ]
  again = manifest.from_json(manifest.to_json(read), source="here")
  assert again == read


def test_fingerprint_is_one_for_views_and_precisions():
  params = tiny.params(tiny.t5())
  expected = manifest.fingerprint(params)
  assert len(expected) == 64
  views = layout.to_scanned(params), jax.tree.map(np.asarray, params)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  for tree in (*views, half):
    assert manifest.fingerprint(tree) == expected


def test_fingerprint_differs_between_backbones():
  params = tiny.params(tiny.t5())
  flat = flatten_dict(params, sep="/")
  changed = tiny.randomize(params)
  found = {manifest.fingerprint(params), manifest.fingerprint(changed)}
  path = "decoder/layers_1/mlp/wo/kernel"
  one = flat | {path: flat[path].at[0, 0].add(1.0)}
  moved = dict(flat)
  moved[path.replace("wo", "w_out")] = moved.pop(path)
  transposed = flat | {path: flat[path].T}
  for other in (one, moved, transposed):
    found.add(manifest.fingerprint(unflatten_dict(other, sep="/")))
  assert len(found) == 5
