"""What the tests of this package check in common."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import torch
from ddp_job import one_process

JOB = Path(__file__).with_name("ddp_job.py")
AGENT = Path(__file__).with_name("ddp_agent.py")
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "r", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "GROUP_RANK": "1",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[07-09],x1",
}  # fmt: skip


def finished(process: subprocess.Popen[str], timeout: float = 150) -> tuple[int, str]:
    """The exit status and the output."""
    output = process.communicate(timeout=timeout)[0]
    return process.returncode, output


def check_weights(folder, name, size):
    """All ranks have the same weights, and those of one process on the same global batches."""
    alone, trainer = one_process(name, size)
    ranks = [torch.load(folder / f"{name}.{rank}", weights_only=True)["weights"] for rank in range(size)]
    for key, value in alone.state_dict().items():
        assert all(torch.equal(rank[key], ranks[0][key]) for rank in ranks), (name, key)
        if name != "batchnorm":
            torch.testing.assert_close(ranks[0][key], value, rtol=1e-6, atol=1e-6)
    return trainer


def free_port():
    """A port of this machine that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def slurm_variables(rank, size, port):
    """What a task sees that srun has started on this machine."""
    return {
        "SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(size), "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
