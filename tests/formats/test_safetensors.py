"""safetensors files: every dtype, sharded or not, and broken ones."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax.formats import safetensors_io
from peft_jax.formats.safetensors_io import FormatError, Tensors

ARRAYS = {
  "wide": np.arange(6, dtype=np.float32).reshape(2, 3),
  "half": np.asarray([1.5, -2], jnp.bfloat16),
  "number": np.float32(3.0),
  "nothing": np.zeros((0, 4), np.float16),
  "flags": np.asarray([True, False]),
  "whole": np.asarray([7, -7], np.int64),
}


@pytest.fixture
def path(tmp_path):
  safetensors_io.write(tmp_path / "model.safetensors", ARRAYS)
  return tmp_path / "model.safetensors"


def test_written_and_read(path):
  found = Tensors([path])
  assert list(found) == list(ARRAYS)
  for name, array in ARRAYS.items():
    assert found[name].dtype == array.dtype
    assert found[name].shape == array.shape
    assert found[name].tobytes() == array.tobytes()


def test_several_files(path, tmp_path):
  path.rename(tmp_path / "a.safetensors")
  safetensors_io.write(tmp_path / "b.safetensors", {"more": np.ones(2)})
  weights = dict.fromkeys(ARRAYS, "a.safetensors") | {"more": "b.safetensors"}
  index = tmp_path / safetensors_io.INDEX
  index.write_text(json.dumps({"weight_map": weights}))
  assert set(safetensors_io.open_directory(tmp_path)) == {*ARRAYS, "more"}
  (tmp_path / "b.safetensors").unlink()
  with pytest.raises(FormatError, match=r"b\.safetensors missing"):
    safetensors_io.open_directory(tmp_path)


def test_no_file(tmp_path):
  with pytest.raises(FormatError, match="found neither"):
    safetensors_io.open_directory(tmp_path)
  (tmp_path / "pytorch_model.bin").write_bytes(b"")
  with pytest.raises(FormatError, match="save it as safetensors"):
    safetensors_io.open_directory(tmp_path)


def test_cut_off(path):
  content = path.read_bytes()
  path.write_bytes(content[:-1])
  with pytest.raises(FormatError, match="whole to end within"):
    Tensors([path])
  path.write_bytes(content[:20])
  with pytest.raises(FormatError, match="header would end behind it"):
    Tensors([path])


def test_another_format(path):
  path.write_bytes((2).to_bytes(8, "little") + b"no")
  with pytest.raises(FormatError, match="without a JSON header"):
    Tensors([path])
  header = json.dumps(
    {"x": {"dtype": "F4", "shape": [1], "data_offsets": [0, 0]}}
  ).encode()
  path.write_bytes(len(header).to_bytes(8, "little") + header)
  with pytest.raises(FormatError, match="found F4 at x"):
    Tensors([path])
