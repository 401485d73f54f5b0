from __future__ import annotations

from fulmen.cli.text import WIDTH, bullets, duration, table, wrapped


def test_columns_are_aligned_and_lines_end_where_their_text_does():
    assert table([("name", "package", ""), ("builtin", "fulmen 0.1", "x")]) == (
        "  name     package\n"
        "  builtin  fulmen 0.1  x\n"
    )  # fmt: skip


def test_a_cell_may_have_several_lines():
    assert table([("csv", "metrics\nas files", "fulmen")]) == "  csv  metrics   fulmen\n       as files\n"


def test_one_column_is_wrapped_to_keep_within_the_width():
    text = table([("a", "word " * 40, "end"), ("b", "x", "end")], wrap=1)
    lines = text.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= WIDTH
    assert lines[0].endswith("  end")
    assert lines[-1].index("end") == lines[0].index("end")


def test_what_has_no_space_is_not_broken():
    path = "a-long/path" * 20
    assert wrapped(f"see {path} there", 30) == f"see\n{path}\nthere"
    assert wrapped("", 30) == ""


def test_an_empty_table_is_nothing():
    assert table([]) == ""


def test_bullets_and_durations():
    assert bullets(["one", "two"]) == "  - one\n  - two\n"
    assert duration(1.25) == "1.2 ms"
