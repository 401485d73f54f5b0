"""Plain text in columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 100
"""Characters in a line; a cell that cannot be broken may make a line longer."""


def table(rows: Iterable[Sequence[str]], *, wrap: int = -1, gap: str = "  ") -> str:
    """Rows as lines, with aligned columns.

    Args:
        rows: Cells; all rows have the same number of them, and a cell may have several lines.
        wrap: The column that is wrapped to keep within :data:`WIDTH`.
        gap: Between two columns.
    """
    return "".join(aligned(rows, wrap=wrap, gap=gap))


def aligned(rows: Iterable[Sequence[str]], *, wrap: int = -1, gap: str = "  ", indent: str = "  ") -> list[str]:
    """The lines of each row of a :func:`table`, to put something between them."""
    cells = [list(row) for row in rows]
    if not cells:
        return []
    columns = range(len(cells[0]))
    wrap %= len(columns)
    others = sum(_width(cells, column) for column in columns if column != wrap)
    for row in cells:
        row[wrap] = wrapped(row[wrap], max(WIDTH - others - len(indent) - len(gap) * (len(columns) - 1), 20))
    widths = [_width(cells, column) for column in columns]
    return [_row(row, widths, indent, gap) for row in cells]


def _width(cells: Sequence[Sequence[str]], column: int) -> int:
    return max(len(line) for row in cells for line in row[column].split("\n"))


def _row(row: Sequence[str], widths: Sequence[int], indent: str, gap: str) -> str:
    columns = [cell.split("\n") for cell in row]
    text = ""
    for number in range(max(map(len, columns))):
        parts = (lines[number] if number < len(lines) else "" for lines in columns)
        line = gap.join(part.ljust(width) for part, width in zip(parts, widths, strict=True))
        text += f"{indent}{line}".rstrip() + "\n"
    return text


def wrapped(text: str, width: int) -> str:
    """``text`` in lines of at most ``width`` characters, broken at spaces only."""
    lines = [textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""] for line in text.split("\n")]
    return "\n".join(part for line in lines for part in line)


def bullets(items: Iterable[str]) -> str:
    """Each item as a paragraph that starts with a dash."""
    return "".join(table([["-", item]], gap=" ") for item in items)


def duration(milliseconds: float) -> str:
    """A duration for people."""
    return f"{milliseconds:.1f} ms"
