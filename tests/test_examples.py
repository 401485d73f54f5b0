"""The example of each package is a real job: it runs, checks its own result and leaves the files that it names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if path.stem != "digits"]  # that has tests of its own
PACKAGES = sorted(path.parent.name.removeprefix("fulmen-") for path in ROOT.glob("packages/*/pyproject.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_leaves_its_files(path, tmp_path):
    command = [sys.executable, str(path), "--quick", "--folder", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if (reason := re.match(r"skipped: (.+)", done.stdout)) is not None:
        pytest.skip(reason[1])
    written = [tmp_path / name for name in re.findall(r"^wrote (.+)$", done.stdout, re.MULTILINE)]
    assert written, done.stdout
    assert [file for file in written if not file.is_file() or not file.stat().st_size] == []
    assert [file for file in tmp_path.iterdir() if file.name != "out"] == [], "it writes outside its folder"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_an_example(package):
    assert [path for path in EXAMPLES if path.stem.startswith(package.replace("-", "_"))]
