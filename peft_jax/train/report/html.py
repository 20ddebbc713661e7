"""HTML: elements, tables that a phone can show, and the frame of a page."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

from peft_jax.train.report.style import STYLE
from peft_jax.train.report.values import UNREADABLE

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


class Html(str):
  """Text that is HTML already; every other text is escaped on its way in."""

  __slots__ = ()


def element(tag: str, *children: str, **attributes: Any) -> Html:
  """``element("td", text, class_="n")`` is ``<td class="n">text</td>``."""
  written = "".join(
    f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
    for name, value in attributes.items()
    if value is not None
  )
  return Html(f"<{tag}{written}>{join(children)}</{tag}>")


def join(parts: Iterable[str]) -> Html:
  """Returns the parts one behind the other."""
  return Html(
    "".join(part if isinstance(part, Html) else escape(part) for part in parts)
  )


def escape(value: Any) -> str:
  """Returns a value as text that HTML takes for text."""
  return html.escape(UNREADABLE.sub("\N{REPLACEMENT CHARACTER}", str(value)))


def table(
  caption: str,
  columns: Sequence[tuple[str, str]],
  rows: Sequence[Sequence[str]],
) -> Html:
  """A table that a phone shows as one card a row.

  The cards need `display: block`, which takes a table's meaning away from
  screen readers: the roles give it back.
  """
  if not rows:
    return Html()
  head = [
    element("th", name, scope="col", role="columnheader", class_=kind or None)
    for name, kind in columns
  ]
  body = [
    element(
      "tr",
      *(
        element("td", cell, role="cell", class_=kind or None, data_label=name)
        for (name, kind), cell in zip(columns, row, strict=True)
      ),
      role="row",
    )
    for row in rows
  ]
  return element(
    "table",
    element("caption", caption),
    element("thead", element("tr", *head, role="row"), role="rowgroup"),
    element("tbody", *body, role="rowgroup"),
    role="table",
    class_="cards",
  )


def document(title: str, body: Html) -> str:
  """Returns a whole page."""
  return _PAGE.format(title=escape(title), style=STYLE, body=body)
