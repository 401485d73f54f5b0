"""Nothing but ``CheckpointError`` or plain data comes out of the reader, whatever goes in."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_fuzzer import check
from test_hostile_files import environment

HERE = Path(__file__).parent
FINDINGS = HERE / "findings"


@pytest.mark.parametrize("seconds", [10, pytest.param(1200, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("seed", [0])
def test_a_fuzzer_finds_nothing(tmp_path, seconds, seed):
    """A finding becomes a file of its own, which :func:`test_findings_of_the_fuzzer` reads from then on."""
    command = [sys.executable, str(HERE / "hostile_fuzzer.py"), str(seconds), str(seed), str(tmp_path)]
    done = subprocess.run(
        command, env=environment(tmp_path), capture_output=True, text=True, timeout=seconds + 120, check=False
    )  # fmt: skip
    if done.returncode:
        content = (tmp_path / "current.ckpt").read_bytes()
        finding = FINDINGS / f"{hashlib.sha256(content).hexdigest()[:12]}.ckpt"
        finding.write_bytes(content)
        pytest.fail(f"{finding}: the process ended with {done.returncode}\n{done.stderr[-3000:]}")
    assert not (tmp_path / "canary").exists()
    inputs, arcs, kept = map(int, re.findall(r"\d+", done.stdout))
    assert inputs > 50 and arcs > 300 and kept > 0, done.stdout


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*.ckpt")), ids=lambda path: path.stem)
def test_findings_of_the_fuzzer(path):
    check(path, path.stat().st_size)
