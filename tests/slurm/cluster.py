"""A SLURM of two nodes on this machine, which needs to be root, and the packages slurm-wlm and munge of Debian."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel")
CONFIGURATION = """
ClusterName=fulmen
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
ReturnToService=2
SlurmdParameters=config_overrides
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
KillWait=5
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=p Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def is_possible() -> bool:
    """Whether this machine can run one."""
    return os.name == "posix" and os.geteuid() == 0 and all(map(shutil.which, PROGRAMS))


class Cluster:
    """A cluster that is running.

    Args:
        configuration: Its file.
    """

    def __init__(self, configuration: Path) -> None:
        self.environ = {**os.environ, "SLURM_CONF": str(configuration)}

    def run(self, *command: str) -> str:
        """What one of SLURM's programs prints."""
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        """What the scheduler knows about a job."""
        words = self.run("scontrol", "show", "job", job, "-o").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """Wait until a job is in one of ``states``."""
        end = time.monotonic() + seconds
        while (found := self.state(job))["JobState"] not in states:
            assert time.monotonic() < end, found
            time.sleep(0.1)
        return found

    def end_jobs(self) -> None:
        """End all jobs that are left, and wait until their processes are gone."""
        end = time.monotonic() + 30
        while (jobs := self.run("squeue", "-h", "-o", "%A").split()) and time.monotonic() < end:
            self.run("scancel", *jobs)
            time.sleep(0.5)


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Start a cluster whose files are in ``folder``, and end it."""
    folder.chmod(0o755)
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    configuration = folder / "slurm.conf"
    first = free_ports(3)
    text = CONFIGURATION.format(folder=folder, host=socket.gethostname(), ports=range(first, first + 3))
    configuration.write_text(text, encoding="utf-8")
    cluster = Cluster(configuration)
    paths = {"pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munged.seed", "key-file": "munge.key"}
    try:
        cluster.run("munged", "--force", f"--socket={folder}/munge.sock", *(f"--{k}={folder}/{v}" for k, v in paths.items()))
        cluster.run("slurmctld", "-i")
        for node in ("n1", "n2"):
            cluster.run("slurmd", "-N", node)
        end = time.monotonic() + 30
        while cluster.run("sinfo", "-h", "-o", "%T %D").strip() != "idle 2":
            assert time.monotonic() < end, (folder / "slurmctld.log").read_text()
            time.sleep(0.2)
        try:
            yield cluster
        finally:
            cluster.end_jobs()
    finally:
        for name in ("slurmd-n1.pid", "slurmd-n2.pid", "slurmctld.pid", "munged.pid"):
            if (folder / name).exists():
                subprocess.run(["kill", (folder / name).read_text().strip()], check=False)


def free_ports(count: int) -> int:
    """The first of ``count`` ports in a row that nobody uses."""
    for first in range(17000 + os.getpid() % 1000, 30000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for port, each in enumerate(sockets, first):
                each.bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            return first
        finally:
            for each in sockets:
                each.close()
    raise RuntimeError("no free ports")
