"""What all tests of this package share."""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for ddp_job.py and ddp_checks.py, which tests share


def variables_of(command: tuple[Any, ...], more: dict[str, str]) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}
    env.pop("PYTEST_CURRENT_TEST", None)  # these are scripts of a user
    return env


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program; whatever still runs at the end of the test is ended."""
    started: list[subprocess.Popen[str]] = []

    def begin(*command: Any, **variables: str) -> subprocess.Popen[str]:
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        env = variables_of(command, variables)
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=tmp_path, env=env, **output)
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


class Forked:
    """A script in a fork of this process, which has imported torch: that is what takes long."""

    def __init__(self, command: tuple[Any, ...], variables: dict[str, str], folder: Path) -> None:
        self.output = folder / f"output-{time.monotonic_ns()}"
        sys.stdout.flush()
        self.pid = os.fork()
        self.returncode: int | None = None
        if not self.pid:
            status = 1
            try:
                status = self._run([*map(str, command)], variables_of(command, variables), folder)
            finally:
                os._exit(status)

    def _run(self, command: list[str], variables: dict[str, str], folder: Path) -> int:
        atexit._clear()
        file = os.open(self.output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.clear()
        os.environ.update(variables)
        os.chdir(folder)
        sys.argv, status = command, 0
        with warnings.catch_warnings():
            warnings.resetwarnings()
            try:
                runpy.run_path(command[0], run_name="__main__")
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:  # noqa: BLE001 - as an interpreter does at the end of a script
                traceback.print_exc()
                status = 1
            atexit._run_exitfuncs()
        sys.stdout.flush(), sys.stderr.flush()
        return status

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def communicate(self, timeout: float = 150) -> tuple[str, None]:
        until = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < until, self.output.read_text()
            time.sleep(0.02)
        return self.output.read_text() if self.output.exists() else "", None


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
