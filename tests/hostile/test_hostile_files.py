"""No hostile file runs code, writes anything, takes much memory or time; each is refused with an error that names it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import hostile_corpus
import pytest
from hostile_child import fit

HERE = Path(__file__).parent
ENTRIES = ("read,verify", "load,fit", "show,verify_command,diff")
"""Entry points: each group in a process of its own."""
SMALL = 450_000
"""Kibibytes that reading a file may take at its peak: the largest file of the corpus has some ten megabytes."""


def environment(tmp_path: Path) -> dict[str, str]:
    helper = tmp_path / "modules" / f"{hostile_corpus.HELPER}.py"
    helper.parent.mkdir(exist_ok=True)
    helper.write_text(hostile_corpus.TOUCH)
    paths = [str(HERE), str(helper.parent)]
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
        hostile_corpus.CANARY: str(tmp_path / "canary"),
    }  # fmt: skip


def outcomes(entries: str, folder: Path, tmp_path: Path) -> list[dict]:
    """What came of each file in a folder, by entry points in a process of their own."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(HERE / "hostile_child.py"),
        entries,
        str(folder),
        str(tmp_path / "good.ckpt"),
    ]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=900, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, f"the process ended with {done.returncode} at {lines[-1:]}\n{done.stderr[-3000:]}"
    return [line for line in lines if "case" in line]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with the corpus in ``corpus``, and a good file beside it."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "corpus").mkdir()
    for name, write in hostile_corpus.UNREADABLE.items():
        write(folder / "corpus" / f"{name}.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(folder / "run").save_checkpoint(folder / "good.ckpt")
    return folder


def is_harmless(line: dict) -> bool:
    shows_well = all(ord(character) >= 32 or character == "\n" for character in line["message"])
    return line["error"] == "CheckpointError" and not line["heard"] and line["kib"] < SMALL and shows_well


@pytest.mark.parametrize("entries", ENTRIES)
def test_every_file_is_refused_by_name_and_nothing_else_happens(entries, made):
    found = outcomes(entries, made / "corpus", made)
    assert len(found) == len(hostile_corpus.UNREADABLE) * len(entries.split(","))
    wrong = [line for line in found if not is_harmless(line) or f"{line['case']}.ckpt" not in line["message"]]
    assert not wrong, json.dumps(wrong, indent=1)
    assert not (made / "canary").exists()


def test_last_passes_over_all_of_them_and_says_so(made):
    good = made / "corpus" / "good.ckpt"
    shutil.copy(made / "good.ckpt", good)
    os.utime(good, (1000, 1000))
    (line,) = outcomes("last", made / "corpus", made)
    assert is_harmless(line), [line["heard"], line["kib"], line["error"]]
    good.unlink()
    files = [path.name for path in (made / "corpus").glob("*.ckpt") if path.is_file()]
    passed = [name for name in hostile_corpus.UNREADABLE if f"{name}.ckpt" in files]
    assert len(passed) > 150
    assert [name for name in passed if f"/{name}.ckpt" not in line["message"]] == []
    assert line["message"].count("[checkpoint-skipped]") >= len(passed)
    assert not (made / "canary").exists()
