"""Scripts that start quickly: in forks of a process that has imported torch, and has no threads that a fork would break."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def variables_of(more: dict[str, str]) -> dict[str, str]:
    """The environment of a script of a user."""
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}
    env.pop("PYTEST_CURRENT_TEST", None)
    return env


class Forked:
    """A script in a process of its own, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(self, command: tuple[Any, ...], variables: dict[str, str], folder: Path) -> None:
        self.output = folder / f"output-{time.monotonic_ns()}"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch._dynamo", "fulmen_ddp.strategy", "fulmen.trainer"])
        arguments = [*map(str, command)], variables_of(variables), str(folder), str(self.output)
        self.process = context.Process(target=run_script, args=arguments)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        return self.process.exitcode

    def communicate(self, timeout: float = 150) -> tuple[str, None]:
        self.process.join(timeout)
        found = self.output.read_text() if self.output.exists() else ""
        assert self.process.exitcode is not None, found
        return found, None


def run_script(command: list[str], variables: dict[str, str], folder: str, output: str) -> None:
    """Run a script as an interpreter would; this process ends with its status."""
    status = 1
    try:
        status = _run(command, variables, folder, output)
    finally:
        os._exit(status)


def _run(command: list[str], variables: dict[str, str], folder: str, output: str) -> int:
    atexit._clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
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
