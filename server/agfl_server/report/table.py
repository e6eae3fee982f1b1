"""A table as HTML, whose every column has a header."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def table(names: Iterable[str], rows: Iterable[str], caption: str = "") -> str:
    """Return the table. names: of the columns, still to be escaped, as is the caption; rows: `<tr>` elements."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    above = f"<caption>{escape(caption)}</caption>\n" if caption else ""
    body = "\n".join(rows)
    return f"<table>{above}<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
