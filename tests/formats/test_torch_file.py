"""Files of torch.save, without PyTorch."""

import pathlib
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax.formats import torch_file
from peft_jax.formats.safetensors_io import FormatError

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "torch_file"
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_reads_what_pytorch_wrote():
  found = torch_file.read(FIXTURES / "kinds.pt")
  expected = {
    "rows": ROWS,
    "turned": ROWS.T,
    "part": ROWS[1:, 2],
    "scalar": np.float32(5),
    "empty": np.zeros((0, 3), np.float32),
    "bfloat16": ROWS.astype(jnp.bfloat16),
    "float16": ROWS.astype("f2"),
    "float64": ROWS.astype("f8"),
    "int64": ROWS.astype("i8"),
    "bool": ROWS > 5,
    "parameter": ROWS,
  }
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].dtype == array.dtype, name
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_reads_what_it_wrote(tmp_path):
  arrays = {"a.b": ROWS, "c": ROWS.T, "scalar": np.float32(2)}
  torch_file.write(tmp_path / "x.pt", arrays)
  found = torch_file.read(tmp_path / "x.pt")
  assert list(found) == list(arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].shape == array.shape


def archive(path, content):
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("x/data.pkl", content)


class Harm:
  def __reduce__(self):
    return exec, ("raise SystemExit('run')",)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda path: path.write_bytes(b"PK"), "expected a file of torch.save"),
    (
      lambda path: archive(path, pickle.dumps({"x": Harm()})),
      "found builtins.exec in the file. Nothing of it was run",
    ),
    (
      lambda path: path.write_bytes((FIXTURES / "a_module.pt").read_bytes()),
      "expected tensors alone, found torch.nn.modules.linear.Linear",
    ),
    (
      lambda path: path.write_bytes((FIXTURES / "a_number.pt").read_bytes()),
      "expected tensors by name in .*, found dict with something else",
    ),
    (
      lambda path: path.write_bytes((FIXTURES / "kinds.pt").read_bytes()[:900]),
      "found one that does not parse",
    ),
  ],
)
def test_refuses_all_else(make, message, tmp_path):
  make(tmp_path / "x.pt")
  with pytest.raises(FormatError, match=message):
    torch_file.read(tmp_path / "x.pt")


def test_a_tensor_ends_in_its_storage():
  with pytest.raises(
    FormatError, match="within its 12 values, found it to end"
  ):
    torch_file._tensor(ROWS.reshape(-1), 4, (3, 4), (4, 1))
