"""An append-only CSV file: a row costs the same whether it is the tenth or the millionth."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fulmen.durable import flush_folder, new_file_beside, remove_leftovers

ROWS_AT_ONCE = 1000


class CSVTable:
    """A file with a header and rows that are added at its end.

    Only a name that is new rewrites the file, in one pass and beside the old one, which it then replaces in one step. A
    last line without its end, as a killed process or a full disk leaves it, does not count as a row.

    Args:
        path: The file. It need not exist, and appears with the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        self.num_rows = 0
        self._size = 0  # bytes of the header and all complete rows
        remove_leftovers([path.parent])  # of a process that was killed while it rewrote the file
        self._read()

    def append(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Add rows. Where that fails, the file holds what it held before.

        Args:
            rows: Names and values. A name that a row does not have stays empty.

        Raises:
            OSError: The file cannot be written.
        """
        if not rows:
            return
        if self._size_on_disk() != self._size:  # someone else changed it, or half a row is left of a write that failed
            self._read()
            self._cut_off_half_a_row()
        known = set(self.columns)
        new = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in known]
        columns = [*self.columns, *new]
        if new and self._size:
            self._rewrite(columns, self._rows())
        lines = [line_of([row.get(name) for name in columns]) for row in rows]
        if not self._size:
            lines.insert(0, line_of(columns))
        self._write_at_end(b"".join(lines))
        self.columns, self.num_rows = columns, self.num_rows + len(rows)

    def rewind(self, num_rows: int, num_columns: int, discarded: Path) -> int:
        """Go back to the first ``num_rows`` rows and ``num_columns`` columns; what follows is moved to another table.

        Half a row at the end is moved too. Reads the whole file, and writes it where something changes.

        Returns:
            How many rows were moved.
        """
        if num_rows >= self.num_rows and num_columns >= len(self.columns) and self._size_on_disk() == self._size:
            return 0
        moved = self._copy_rows_after(num_rows, CSVTable(discarded))
        if num_rows == 0 or num_columns == 0:
            self.path.unlink()
            flush_folder(self.path.parent)
        else:
            self._rewrite(self.columns[:num_columns], (row[:num_columns] for row in self._rows(num_rows)))
        self._read()
        return moved

    def flush(self) -> None:
        """Make all rows survive a power cut."""
        with suppress(FileNotFoundError), open(self.path, "rb+") as file:
            os.fsync(file.fileno())
            flush_folder(self.path.parent)

    # ---- Reading

    def _read(self) -> None:
        """Take columns and rows from the file as it is."""
        self.columns, self.num_rows, self._size = [], 0, 0
        with suppress(FileNotFoundError), open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if self._size:
                    self.num_rows += 1
                else:
                    self.columns = cells_of(line)
                self._size += len(line)

    def _rows(self, limit: int | None = None) -> Iterator[list[str]]:
        """The complete rows, or the first ``limit`` of them."""
        with open(self.path, "rb") as file:
            next(file)
            for index, line in enumerate(file):
                if index == limit or not line.endswith(b"\n"):
                    return
                yield cells_of(line)

    def _copy_rows_after(self, num_rows: int, target: CSVTable) -> int:
        count, waiting = 0, []
        with open(self.path, "rb") as file:
            next(file, None)
            for index, line in enumerate(file):
                if index >= num_rows:
                    waiting.append(dict(zip(self.columns, cells_of(line), strict=False)))
                    count += 1
                if len(waiting) == ROWS_AT_ONCE:
                    target.append(waiting)
                    waiting = []
        target.append(waiting)
        target.flush()
        return count

    def _size_on_disk(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    # ---- Writing

    def _rewrite(self, columns: list[str], rows: Iterable[Sequence[object]]) -> None:
        """Write everything anew. Costs as much as the file is long."""
        padding = [None] * len(columns)
        with replacing(self.path) as file:
            file.write(line_of(columns))
            for row in rows:
                file.write(line_of([*row, *padding[len(row) :]]))
            size = file.tell()
        self.columns, self._size = columns, size

    def _write_at_end(self, data: bytes) -> None:
        with open(self.path, "ab", buffering=0) as file:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(self._size)
                raise
        self._size += len(data)

    def _cut_off_half_a_row(self) -> None:
        if self._size_on_disk() > self._size:
            os.truncate(self.path, self._size)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` in one step when the block ends, and does not where it raises."""
    with new_file_beside(path) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.replace(file.name, path)
    flush_folder(path.parent)


def line_of(values: Iterable[object]) -> bytes:
    """A line of the file. A row is always one line: ends of lines inside a value become spaces."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in values])
    return text.getvalue().encode(errors="backslashreplace")


def cells_of(line: bytes) -> list[str]:
    """The values in a line."""
    return next(csv.reader([line.decode(errors="replace").rstrip("\r\n")]), [])


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return float.__repr__(value)  # the shortest text that reads back as the same number
    return str(value).replace("\r", " ").replace("\n", " ")
