"""Where a process stands among the others, by the variables that torchrun, SLURM or our own launcher set."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

from fulmen import ClusterEnvironment, ConfigurationError
from fulmen.errors import warn

LAUNCHED = "FULMEN_LAUNCHED"
"""Set in processes that strategy ``ddp`` has started, and in the one that started them."""
HOSTED = "FULMEN_LAUNCHED_HOSTED"
"""``1`` where the process that started them keeps the store at which they meet."""
TORCHRUN = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS")
FIRST_PORT, NUM_PORTS = 15000, 20000


def number(name: str, default: int | None = None, environ: Mapping[str, str] | None = None) -> int:
    """The whole number in an environment variable.

    Raises:
        ConfigurationError: It is not set and there is no default, or it holds something else.
    """
    text = (os.environ if environ is None else environ).get(name)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"\s*\d+\s*", text):
        found = "is not set" if text is None else f"is {text!r}"
        raise ConfigurationError(f"the environment variable {name} {found}; it must be a whole number from 0")
    return int(text)


class RankVariables(ClusterEnvironment):
    """``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``GROUP_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``, as torchrun sets them."""

    @property
    def creates_processes_externally(self) -> bool:
        """They exist already."""
        return True

    @property
    def main_address(self) -> str:
        """``MASTER_ADDR``."""
        if not os.environ.get("MASTER_ADDR"):
            raise ConfigurationError("the environment variable MASTER_ADDR is not set; it must name the host of rank 0")
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        """``MASTER_PORT``."""
        return number("MASTER_PORT")

    def world_size(self) -> int:
        """``WORLD_SIZE``."""
        return number("WORLD_SIZE")

    def global_rank(self) -> int:
        """``RANK``."""
        return number("RANK")

    def local_rank(self) -> int:
        """``LOCAL_RANK``."""
        return number("LOCAL_RANK")

    def node_rank(self) -> int:
        """``GROUP_RANK``, or ``NODE_RANK``."""
        return number("GROUP_RANK", number("NODE_RANK", 0))


class TorchrunEnvironment(RankVariables):
    """A process that ``torchrun`` has started, on one node or several."""

    @staticmethod
    def detect() -> bool:
        """Whether torchrun's variables are set."""
        return all(name in os.environ for name in TORCHRUN)


class LaunchedEnvironment(RankVariables):
    """A process that strategy ``ddp`` has started, or the one that did."""

    @staticmethod
    def detect() -> bool:
        """Whether our own launcher's variable is set."""
        return LAUNCHED in os.environ


class SlurmEnvironment(ClusterEnvironment):
    """A task that ``srun`` has started, one per device.

    ``MASTER_ADDR`` and ``MASTER_PORT`` win where they are set. Otherwise rank 0 is on the first host of the job, at a port
    that follows from the job's number. A shell of ``salloc`` and the interactive job ``bash`` are no tasks of a training.
    """

    @staticmethod
    def detect() -> bool:
        """Whether this is a task of a job step with one task or more, and no interactive shell."""
        interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive") or "SLURM_STEP_ID" not in os.environ
        return all(name in os.environ for name in SLURM) and not interactive

    @property
    def creates_processes_externally(self) -> bool:
        """They exist already."""
        return True

    @property
    def main_address(self) -> str:
        """``MASTER_ADDR``, or the first host of the job."""
        if os.environ.get("MASTER_ADDR"):
            return os.environ["MASTER_ADDR"]
        hosts = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or ""
        return first_host(hosts) if hosts else "127.0.0.1"

    @property
    def main_port(self) -> int:
        """``MASTER_PORT``, or one by the number of the job and of the step."""
        if os.environ.get("MASTER_PORT"):
            return number("MASTER_PORT")
        return FIRST_PORT + (number("SLURM_JOB_ID") * 31 + number("SLURM_STEP_ID", 0)) % NUM_PORTS

    def world_size(self) -> int:
        """The tasks of the step."""
        return number("SLURM_STEP_NUM_TASKS", number("SLURM_NTASKS"))

    def global_rank(self) -> int:
        """``SLURM_PROCID``."""
        return number("SLURM_PROCID")

    def local_rank(self) -> int:
        """``SLURM_LOCALID``."""
        return number("SLURM_LOCALID", 0)

    def node_rank(self) -> int:
        """``SLURM_NODEID``."""
        return number("SLURM_NODEID", 0)

    def requeue(self) -> bool:
        """``scontrol requeue`` for this job, or for this task of an array."""
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        command = ["scontrol", "requeue", f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            failure = "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"
        except OSError as error:
            failure = str(error)
        if failure:
            warn("slurm-requeue", f"{' '.join(command)} failed: {failure}. The state is saved; submit the job again")
        return not failure


def first_host(nodes: str) -> str:
    """The first host of a list as SLURM writes it.

    >>> first_host("gpu[07-09,12],cpu1"), first_host("a1,a2"), first_host("rack[1-2]n[03,05]"), first_host("n-[2,4]-x")
    ('gpu07', 'a1', 'rack1n03', 'n-2-x')
    """
    depth, end = 0, len(nodes)
    for index, character in enumerate(nodes):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and not depth:
            end = index
            break
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", nodes[:end])
