from __future__ import annotations

import csv
import errno
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.builtin.csv_table import CSVTable, replacing


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_has_no_file_before_the_first_row(tmp_path: Path) -> None:
    table = CSVTable(tmp_path / "t.csv")
    table.append([])
    table.flush()
    assert list(tmp_path.iterdir()) == []


def test_rows_are_added_at_the_end_and_nothing_before_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = CSVTable(path)
    table.append([{"step": 0, "loss": 0.1}])
    inode, before = path.stat().st_ino, path.read_bytes()
    table.append([{"step": 1, "loss": 0.2}, {"step": 2}])
    assert path.read_bytes() == before + b"1,0.2\n2,\n"
    assert path.stat().st_ino == inode
    assert (table.columns, table.num_rows) == (["step", "loss"], 3)


def test_a_new_name_rewrites_the_file_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = CSVTable(path)
    table.append([{"step": 0, "a": 1}])
    table.append([{"step": 1, "b": 2}, {"step": 2, "c": 3, "a": 4}])
    assert path.read_text() == "step,a,b,c\n0,1,,\n1,,2,\n2,4,,3\n"
    assert list(tmp_path.iterdir()) == [path]


@given(values=st.lists(st.floats(), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_floats_read_back_as_the_same_number(values: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("floats") / "t.csv"
    CSVTable(path).append([{"step": i, "v": value} for i, value in enumerate(values)])
    found = [float(row["v"]) for row in read(path)]
    assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(found, values, strict=True))


def test_a_row_is_one_line_whatever_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = CSVTable(path)
    table.append([{"step": 0, 'a,"b"\nc': "one\r\ntwo", "none": None, "bool": True, "\ud800": "x"}])
    assert path.read_bytes().count(b"\n") == 2
    assert read(path) == [{"step": "0", 'a,"b" c': "one  two", "none": "", "bool": "True", "\\ud800": "x"}]
    again = CSVTable(path)
    assert again.num_rows == 1


def test_an_existing_table_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"epoch,step,loss\r\n0,1,0.5\r\n")
    table = CSVTable(path)
    table.append([{"step": 2, "loss": 0.25, "new": 1}])
    assert read(path) == [
        {"epoch": "0", "step": "1", "loss": "0.5", "new": ""},
        {"epoch": "", "step": "2", "loss": "0.25", "new": "1"},
    ]


def test_half_a_row_is_no_row_and_the_next_one_starts_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"step,loss\n0,0.5\n1,0.2")
    table = CSVTable(path)
    assert table.num_rows == 1
    table.append([{"step": 1, "loss": 0.25}])
    assert path.read_text() == "step,loss\n0,0.5\n1,0.25\n"


def test_rewind_moves_later_rows_and_columns_to_the_other_table(tmp_path: Path) -> None:
    path, discarded = tmp_path / "t.csv", tmp_path / "t.discarded.csv"
    table = CSVTable(path)
    table.append([{"step": 0, "a": 1}, {"step": 1, "a": 2}])
    kept = path.read_bytes()
    table.append([{"step": 2, "a": 3, "b": 4}, {"step": 3, "b": 5}])
    assert table.rewind(2, 2, discarded) == 2
    assert path.read_bytes() == kept
    assert discarded.read_text() == "step,a,b\n2,3,4\n3,,5\n"
    table.append([{"step": 2, "a": 7, "c": 8}])
    assert table.rewind(2, 2, discarded) == 1
    assert read(discarded)[-1] == {"step": "2", "a": "7", "b": "", "c": "8"}
    assert path.read_bytes() == kept


def test_rewind_to_nothing_removes_the_file(tmp_path: Path) -> None:
    table = CSVTable(tmp_path / "t.csv")
    table.append([{"step": 0}])
    table.rewind(0, 0, tmp_path / "d.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["d.csv"]
    assert (table.columns, table.num_rows) == ([], 0)


def test_rewind_moves_half_a_row_too(tmp_path: Path) -> None:
    path, discarded = tmp_path / "t.csv", tmp_path / "d.csv"
    path.write_bytes(b"step,loss\n0,0.5\n1,0.2")
    table = CSVTable(path)
    assert table.rewind(1, 2, discarded) == 1
    assert path.read_text() == "step,loss\n0,0.5\n"
    assert discarded.read_text() == "step,loss\n1,0.2\n"


def test_rewind_of_many_rows_goes_in_portions(tmp_path: Path) -> None:
    table = CSVTable(tmp_path / "t.csv")
    table.append([{"step": i} for i in range(2500)])
    assert table.rewind(200, 1, tmp_path / "d.csv") == 2300
    assert [row["step"] for row in read(tmp_path / "d.csv")] == [str(i) for i in range(200, 2500)]
    assert len(read(tmp_path / "t.csv")) == 200


def test_rewind_without_anything_to_move_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = CSVTable(path)
    table.append([{"step": 0}])
    inode = path.stat().st_ino
    assert table.rewind(5, 5, tmp_path / "d.csv") == 0
    assert path.stat().st_ino == inode and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / ".t.csv.0123abcd.tmp").write_text("half")
    CSVTable(tmp_path / "t.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_someone_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = CSVTable(path)
    table.append([{"step": 0, "a": 1}])
    path.unlink()
    table.append([{"step": 1, "b": 2}])
    assert path.read_text() == "step,b\n1,2\n"
    path.write_text("step,b,mine\n1,2,3\n")
    table.append([{"step": 2, "b": 4}])
    assert path.read_text() == "step,b,mine\n1,2,3\n2,4,\n"


LIMITED = """
import resource, signal, sys
from pathlib import Path
from fulmen.builtin.csv_table import CSVTable
path, limit = Path(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
table = CSVTable(path)
try:
    table.append([{"step": i, "a": 2.5} for i in range(100)])
except OSError as error:
    print(error.errno, table.num_rows)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_write_that_fails_in_the_middle_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """A limit of file size stands for a full disk: the first bytes are written, the rest fails."""
    path = tmp_path / "t.csv"
    CSVTable(path).append([{"step": 0, "a": 1.5}])
    before = path.read_bytes()
    command = [sys.executable, "-c", LIMITED, str(path), str(len(before) + 5)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(errno.EFBIG), "1"], result.stderr
    assert path.read_bytes() == before


def test_replacing_keeps_the_old_file_where_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
