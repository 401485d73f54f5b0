"""What all tests of this package share."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for ddp_job.py and others, which tests share
from ddp_scripts import Forked, variables_of  # noqa: E402


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program; whatever still runs at the end of the test is ended."""
    started: list[subprocess.Popen[str]] = []

    def begin(*command: Any, **variables: str) -> subprocess.Popen[str]:
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        env = variables_of(variables)
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=tmp_path, env=env, **output)
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """Run a script in a process of its own, quickly; whatever still runs at the end of the test is ended."""
    started: list[Forked] = []

    def begin(*command: Any, **variables: str) -> Forked:
        started.append(Forked(command, variables, tmp_path))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
