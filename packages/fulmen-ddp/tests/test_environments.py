"""Places that torchrun and SLURM give, and trainings under them."""

from __future__ import annotations

import json
import os
import sys

import pytest
from ddp_checks import JOB, SLURM, TORCHRUN, check_weights, finished, free_port, slurm_variables
from fulmen_ddp import SlurmEnvironment, TorchrunEnvironment
from fulmen_ddp.environments import first_host

from fulmen import ConfigurationError, FulmenWarning, Runtime


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    for name in [*TORCHRUN, *SLURM, "SLURM_STEP_NUM_TASKS", "SLURM_JOB_NAME"]:
        monkeypatch.delenv(name, raising=False)


def place(environment):
    ranks = [environment.world_size(), environment.global_rank(), environment.local_rank(), environment.node_rank()]
    return [*ranks, environment.main_address, environment.main_port]


def test_torchrun(monkeypatch):
    assert not TorchrunEnvironment.detect()
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert TorchrunEnvironment.detect()
    assert place(TorchrunEnvironment()) == [4, 3, 1, 1, "10.0.0.1", 29500]
    runtime = Runtime(accelerator="cpu", devices=2, num_nodes=2)
    assert (runtime.strategy.name, runtime.world_size, runtime.global_rank, runtime.node_rank) == ("ddp", 4, 3, 1)
    assert type(runtime.strategy.launcher).__name__ == "ExternalLauncher"  # starts nothing, and watches the other ranks


def test_slurm(monkeypatch):
    for name, value in {**TORCHRUN, **SLURM}.items():
        monkeypatch.setenv(name, value)
    assert isinstance(
        Runtime(accelerator="cpu", devices=2, num_nodes=2).environment, TorchrunEnvironment
    )  # torchrun under srun
    for name in TORCHRUN:
        monkeypatch.delenv(name)
    assert SlurmEnvironment.detect()
    assert place(SlurmEnvironment()) == [4, 3, 1, 1, "gpu07", 15000 + 77 * 31]
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert not SlurmEnvironment.detect()


@pytest.mark.parametrize(("nodes", "first"), [("a1,a2", "a1"), ("r[1-2]n[03,05]", "r1n03"), ("gpu[07-09,12],c", "gpu07")])
def test_first_host(nodes, first):
    assert first_host(nodes) == first


def test_another_number_of_processes_is_an_error(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as error:
        Runtime(accelerator="cpu", strategy="ddp", devices=3)
    assert str(error.value) == (
        "TorchrunEnvironment says that there are 4 processes, and devices=3 on num_nodes=1 makes 3; start as many processes "
        "per node as devices, or set devices and num_nodes"
    )


def test_nodes_that_do_not_know_each_other(monkeypatch):
    with pytest.raises(ConfigurationError) as error:
        Runtime(accelerator="cpu", strategy="ddp_spawn", devices=2, num_nodes=2)
    assert str(error.value) == (
        "num_nodes=2, and nothing says how the nodes find each other: start the program on each of them with torchrun or srun, "
        "or set MASTER_ADDR, MASTER_PORT, NODE_RANK"
    )


def test_two_torchrun_agents_are_two_nodes(start, tmp_path):
    agent = ["-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-id", "j"]
    agent += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--monitor-interval", "0.2"]
    both = [start(*agent, JOB, "ddp", tmp_path, "plain", 1, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1") for _ in range(2)]
    for process in both:
        status, output = finished(process)
        assert status == 0, output
    check_weights(tmp_path, "plain", 2)


def test_slurm_tasks(start, tmp_path):
    """As srun would start them, on one host."""
    port = free_port()
    tasks = [start(JOB, "ddp", tmp_path, "plain", 2, **slurm_variables(rank, 2, port)) for rank in range(2)]
    for process in tasks:
        status, output = finished(process)
        assert status == 0, output
    check_weights(tmp_path, "plain", 2)
    assert json.loads((tmp_path / "metrics.json").read_text())[1:] == [24, 2]


SCONTROL = """#!/bin/sh
echo "$@" >> {folder}/asked
echo "no such job" >&2
exit {status}
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for scontrol")
@pytest.mark.parametrize(
    ("variables", "job"),
    [({}, "77"), ({"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "4"}, "70_4")],
)
def test_a_job_is_queued_again(variables, job, tmp_path, monkeypatch):
    for name, value in {**SLURM, "SLURM_JOB_ID": "77", "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}.items():
        monkeypatch.setenv(name, value)
    program = tmp_path / "scontrol"
    program.write_text(SCONTROL.format(folder=tmp_path, status=0))
    program.chmod(0o755)
    assert SlurmEnvironment().requeue()
    program.write_text(SCONTROL.format(folder=tmp_path, status=1))
    with pytest.warns(FulmenWarning) as caught:
        assert not SlurmEnvironment().requeue()
    assert str(caught[0].message) == (
        f"[slurm-requeue] scontrol requeue {job} failed: no such job. The state is saved; submit the job again"
    )
    assert (tmp_path / "asked").read_text().splitlines() == [f"requeue {job}"] * 2
