"""Writes the page and the picture into a run's folder."""

import os

from etils import epath

from peft_jax.train.report.contents import CURVES_NAME, REPORT_NAME, Report
from peft_jax.train.report.curves import curves_of
from peft_jax.train.report.page import render
from peft_jax.train.report.picture import write_picture


def write_report(
  directory: os.PathLike[str] | str, report: Report
) -> epath.Path:
  """Writes ``report.html`` and ``curves.png`` into a run's folder.

  Example::

    page = write_report("runs/rte", Report(title="RTE, T5-large", ...))
    print(f"report: {page}")

  Args:
    directory: the folder; it is made if it is not there.
    report: what to show.

  Returns:
    The path of the page. The picture is only written if at least one curve has
    two points, and if matplotlib is installed (a warning says so otherwise).
  """
  folder = epath.Path(directory)
  folder.mkdir(parents=True, exist_ok=True)
  curves = curves_of(report)
  picture = folder / CURVES_NAME
  picture.unlink(missing_ok=True)  # An older run's would be taken for ours.
  if curves:
    write_picture(picture, report.title, curves)
  page = folder / REPORT_NAME
  page.write_bytes(render(report, curves).encode())
  return page
