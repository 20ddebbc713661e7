"""E2E from its zip file, and BLEU."""

import zipfile

import pytest

from peft_jax.tasks import metrics, prepare, table2text
from peft_jax.tasks.sources import DataError

ROWS = [
  ("name[A]", "A is  a\nplace."),
  ("name[A]", "There is A."),
  ("name[B]", "B."),
]


@pytest.fixture
def folder(tmp_path):
  lines = ["mr,ref", *(f'"{mr}","{ref}"' for mr, ref in ROWS)]
  with zipfile.ZipFile(tmp_path / table2text.ARCHIVE, "w") as archive:
    for name in ("trainset.csv", "devset.csv", "testset_w_refs.csv"):
      archive.writestr(f"e2e-dataset/{name}", "\n".join(lines))
  return tmp_path


def test_every_text_trains_and_every_table_is_evaluated_once(folder):
  task = prepare.prepare("e2e", vocabulary="bytes", data_dir=str(folder))
  train = list(task.get_dataset(None, "train", shuffle=False))
  assert len(train) == 3
  first = train[0]
  assert first["inputs_pretokenized"].numpy() == b"describe: name[A] text:"
  assert first["targets_pretokenized"].numpy() == b"A is a place."
  rows = list(
    task.get_dataset(None, "validation", shuffle=False).as_numpy_iterator()
  )
  assert len(rows) == 2
  targets = [
    task.postprocess_fn("", example=row, is_target=True) for row in rows
  ]
  assert targets == [["A is a place.", "There is A."], ["B."]]
  assert task.postprocess_fn("said", example=rows[0], is_target=False) == "said"


def test_archive_that_is_not_there(tmp_path):
  with pytest.raises(DataError, match="Give its folder as --data_dir"):
    prepare.prepare("e2e", vocabulary="bytes", data_dir=str(tmp_path))
  (tmp_path / table2text.ARCHIVE).write_bytes(b"no zip")
  with pytest.raises(DataError, match="BadZipFile"):
    table2text.read(tmp_path / table2text.ARCHIVE)


def test_real_archive(shared_data):
  rows = table2text.read(shared_data("table2text/e2e") / table2text.ARCHIVE)
  assert {split: len(part) for split, part in rows.items()} == {
    "train": 42_061,
    "validation": 547,
    "test": 630,
  }
  texts = [
    row["references"].count(table2text.SEPARATOR) + 1
    for row in rows["validation"]
  ]
  assert sum(texts) == 4_672


def test_bleu_is_sacrebleus():
  """The value is that of Post's paper's tool, computed by hand here.

  Both words and the bigram match: precisions 2/2, 1/1 and, smoothed as
  sacreBLEU does by halving, none above; nothing is too short.
  """
  one = metrics.bleu(["the cat sat on the mat"], ["the cat sat on the mat"])
  assert one["bleu"] == pytest.approx(100.0)
  # 5-grams aside: 4/5 words, 2/4, 1/3, and 0/2 counted as 1 / (2 * 2).
  found = metrics.bleu([["a b c d e"], ["x"]], ["a b c z e", "x"])["bleu"]
  precisions = ((4 + 1) / 6, 2 / 4, 1 / 3, 1 / (2 * 2))
  expected = 100.0
  for precision in precisions:
    expected *= precision**0.25
  assert found == pytest.approx(expected, rel=1e-6)
