"""A table of runs as Markdown, CSV and a picture."""

import csv
import io
import os
from collections.abc import Iterable, Sequence

from peft_jax.orbax_io import locate
from peft_jax.train.report import spread
from peft_jax.train.summary_table import Row, Table, differing

MARKDOWN_NAME = "summary.md"
TABLE_NAME = "summary.csv"
RUNS_NAME = "runs.csv"
PICTURE_NAME = "summary.png"


def header_of(columns: Sequence[str]) -> list[str]:
  """Returns short names of settings, unless two would be the same.

  Example:
    >>> header_of(["LEARNING_RATE", "lora/adapters.LoRA.rank"])
    ['LEARNING_RATE', 'LoRA.rank']
  """
  short = [
    ".".join(name.rsplit("/", 1)[-1].split(".")[-2:]) for name in columns
  ]
  return [
    name if short.count(brief) > 1 else brief
    for name, brief in zip(columns, short, strict=True)
  ]


def to_markdown(table: Table) -> str:
  """Returns the table for reading; values have two decimals."""
  frozen = any(row.frozen is not None for row in table.rows)
  header = [
    "task",
    "metric",
    "method",
    *header_of(table.columns),
    *(["frozen"] if frozen else []),
    "median",
    "IQR",
    "quartiles",
    "range",
    "n",
  ]
  lines = []
  for row in table.rows:
    found = row.spread
    before = "" if row.frozen is None else f"{row.frozen:.2f}"
    lines.append(
      [
        row.task,
        row.metric,
        row.method,
        *row.settings.values(),
        *([before] if frozen else []),
        f"{found.median:.2f}",
        f"{found.iqr:.2f}",
        f"{found.q1:.2f} to {found.q3:.2f}",
        f"{found.low:.2f} to {found.high:.2f}",
        str(found.count),
      ]
    )
  text = [
    f"Median and inter-quartile range of {table.runs} runs, over"
    f" {', '.join(table.over)}.",
    "",
    *_markdown_table(header, lines, numbers=5 + frozen),
  ]
  if table.notes:
    text += ["", *(f"* {note}" for note in table.notes)]
  return "\n".join(text) + "\n"


def _markdown_table(
  header: Sequence[str], lines: Sequence[Sequence[str]], *, numbers: int
) -> list[str]:
  """Returns the lines of a table whose last columns are numbers."""
  cells = [
    [cell.replace("|", r"\|") for cell in line] for line in (header, *lines)
  ]
  widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
  words = len(header) - numbers
  rule = [
    "-" * width if i < words else "-" * (width - 1) + ":"
    for i, width in enumerate(widths)
  ]
  rows = [
    [
      cell.ljust(width) if i < words else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    for line in cells
  ]
  return [f"| {' | '.join(line)} |" for line in (rows[0], rule, *rows[1:])]


def to_csv(table: Table) -> str:
  """Returns the table for programs, a line for each row, all digits."""
  lines = [
    [
      row.task,
      row.metric,
      row.method,
      *row.settings.values(),
      "" if row.frozen is None else repr(row.frozen),
      *(
        repr(value)
        for value in (
          found.median,
          found.iqr,
          found.q1,
          found.q3,
          found.low,
          found.high,
          found.count,
        )
      ),
    ]
    for row in table.rows
    for found in [row.spread]
  ]
  header = [
    *("task", "metric", "method", *table.columns, "frozen"),
    *("median", "iqr", "q1", "q3", "min", "max", "n"),
  ]
  return _csv([header, *lines])


def runs_to_csv(table: Table) -> str:
  """Returns a line for each run and metric, from which all else follows."""
  header = ["task", "metric", "method", *table.columns, "seed", "value", "run"]
  return _csv(
    [
      header,
      *(
        [
          row.task,
          row.metric,
          row.method,
          *row.settings.values(),
          seed,
          repr(value),
          row.folders[seed],
        ]
        for row in table.rows
        for seed, value in row.values.items()
      ),
    ]
  )


def _csv(lines: Iterable[Sequence[str]]) -> str:
  text = io.StringIO(newline="")
  csv.writer(text, lineterminator="\n").writerows(lines)
  return text.getvalue()


def write(table: Table, directory: str | os.PathLike[str]) -> list[str]:
  """Writes Markdown, two CSV files and a picture; returns their paths.

  Files of these names that are there are replaced.

  Args:
    table: from `collect`.
    directory: made if it is not there.
  """
  folder = locate(directory)
  folder.mkdir(parents=True, exist_ok=True)
  texts = {
    MARKDOWN_NAME: to_markdown(table),
    TABLE_NAME: to_csv(table),
    RUNS_NAME: runs_to_csv(table),
  }
  for name, text in texts.items():
    (folder / name).write_text(text)
  picture = folder / PICTURE_NAME
  picture.unlink(missing_ok=True)  # An older one would be taken for ours.
  spread.write_spread(picture, panels_of(table))
  return [
    str(folder / n) for n in (*texts, PICTURE_NAME) if (folder / n).exists()
  ]


def panels_of(table: Table) -> list[spread.Panel]:
  """Returns what the picture shows: a panel for each task and metric."""
  header = header_of(table.columns)
  panels: dict[tuple[str, str], list[Row]] = {}
  for row in table.rows:
    panels.setdefault((row.task, row.metric), []).append(row)
  return [
    spread.Panel(
      name=f"{task}/{metric}",
      lines=[_line(row, header, rows) for row in rows],
    )
    for (task, metric), rows in panels.items()
  ]


def _line(row: Row, header: Sequence[str], rows: Sequence[Row]) -> spread.Line:
  """Returns a row as drawn, named after what tells it apart in its panel."""
  same = [r.settings for r in rows if r.method == row.method]
  differ = differing(same)
  parts = [
    f"{brief} {value}"
    for brief, (name, value) in zip(header, row.settings.items(), strict=True)
    if name in differ
  ]
  found = row.spread
  return spread.Line(
    name=row.method,
    detail=", ".join(parts),
    values=list(row.values.values()),
    median=found.median,
    quartiles=(found.q1, found.q3),
    frozen=row.frozen,
  )
