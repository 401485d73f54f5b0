"""What every end of a training leaves, and with which status a script ends: the table in docs/checkpoints.md."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fulmen import read_checkpoint

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "checkpoints.md"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

# Row of the table: event for the job, exit status as a shell shows it, step of the newest checkpoint, last words.
ENDS = {
    "Ctrl-C": ("SIGINT", 0, 3, "after fit: 3 True stopped by Ctrl-C"),
    "Ctrl-C twice": ("SIGINT+SIGINT", 130, 2, "KeyboardInterrupt"),
    "SIGTERM": ("SIGTERM", 143, 3, ""),
    "SIGTERM in a validation, and `kill -9` before its end": ("validation", 137, 3, ""),
    "SIGUSR1": ("SIGUSR1", 138, 3, ""),
    "SIGUSR2": ("SIGUSR2", 0, 8, "after fit: 8 False max_epochs=1 reached"),
    "an exception in a step or a hook": ("hook", 1, 2, "ValueError: in a hook"),
    "an exception in a worker process": ("worker", 1, 2, "ValueError: in a worker"),
    "an exception in a logger": ("logger", 0, 8, "after fit: 8 False max_epochs=1 reached"),
    "an exception in a logger that is `required`": ("required logger", 1, 2, "OSError: in a logger"),
    "`kill -9`": ("SIGKILL", 137, 2, ""),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """All jobs, two at a time: row -> (process, folder)."""

    def run(row):
        folder = tmp_path_factory.mktemp("job")
        command = [sys.executable, HERE / "exit_job.py", ENDS[row][0], folder]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300), folder

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        return dict(zip(ENDS, pool.map(run, ENDS), strict=True))


@pytest.mark.parametrize("row", ENDS)
def test_an_end(row, ended):
    (done, folder), (_, status, step, says) = ended[row], ENDS[row]
    shown = done.returncode if done.returncode >= 0 else 128 - done.returncode
    assert shown == status, done.stderr
    found = {path: read_checkpoint(path)["global_step"] for path in folder.rglob("*.ckpt")}
    assert list(found.values()) == [step], found
    last = [line for text in (done.stdout, done.stderr) for line in text.strip().splitlines()[-1:]]
    assert not says or any(says in line for line in last), last
    assert not list(folder.rglob("*.tmp"))


def test_a_failing_logger_is_said(ended):
    assert "[logger-failed] Broken: OSError: in a logger. The training goes on" in ended["an exception in a logger"][0].stderr


def test_the_table_says_the_same():
    rows = [line.split("|") for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    table = {cells[1].strip(): cells[4].strip() for cells in rows if len(cells) == 6}
    assert {row: table.get(row) for row in ENDS} == {row: str(status) for row, (_, status, _, _) in ENDS.items()}
