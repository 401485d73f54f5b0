"""Programs in several processes, and how what they report is compared."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
AGENT, JOB = HERE / "fleet_agent.py", HERE / "fleet_job.py"


class Fleet:
    """Starts programs and ends whatever still runs."""

    def __init__(self, folder):
        self.folder, self.started = folder, []

    def start(self, *command, **variables):
        env = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        env.pop("PYTEST_CURRENT_TEST", None)  # these are programs of a user
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [sys.executable, *map(str, command)]
        process = subprocess.Popen(command, cwd=self.folder, env=env, start_new_session=True, **output)
        self.started.append(process)
        return process

    def settings(self, name, **given):
        folder = self.folder / name
        folder.mkdir()
        return folder, json.dumps({"folder": str(folder), "devices": 2, **given})

    def agent(self, name, restarts, **given):
        """A run of two ranks on one node; its folder, exit status and output."""
        folder, settings = self.settings(name, **given)
        process = self.start(AGENT, restarts, settings)
        return folder, *finished(process)

    def end(self):
        for process in self.started:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        for path in self.folder.rglob("pid.*"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(path.read_text()), signal.SIGKILL)


def finished(process, timeout=240):
    output = process.communicate(timeout=timeout)[0]
    return process.returncode, output


def reports(folder):
    return [torch.load(folder / f"report.{rank}", weights_only=True) for rank in range(2)]


def assert_same(found, expected):
    """Weights, random states, metrics and position, bit for bit."""
    for one, other in zip(found, expected, strict=True):
        for key, value in other["weights"].items():
            assert torch.equal(one["weights"][key], value), key
        assert torch.equal(one["random"], other["random"])
        assert (one["batches"], one["loss"]) == (other["batches"], other["loss"])


def wait_for(path, seconds=120):
    until = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.05)
    return path.read_text()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for_port(port, seconds=120):
    until = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < until, f"nobody listens at port {port}"
        time.sleep(0.1)
