"""The standard tests of strategies and environments."""

from __future__ import annotations

from typing import ClassVar

from ddp_checks import SLURM, TORCHRUN
from fulmen_ddp import DDPStrategy, SlurmEnvironment, TorchrunEnvironment

from fulmen.testing.conformance import EnvironmentSuite, StrategySuite

RANKS = {"world_size": 4, "global_rank": 3, "local_rank": 1, "node_rank": 1}


class TestDDP(StrategySuite):
    name, devices, processes = "ddp", 2, 2
    arguments: ClassVar = {"start_method": "fork"}  # quicker; other tests start the program again

    def make(self, folder):
        return DDPStrategy()


class TestTorchrun(EnvironmentSuite):
    name, variables, numbers = "torchrun", TORCHRUN, ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    expected: ClassVar = {**RANKS, "main_address": "10.0.0.1", "main_port": 29500}

    def make(self, folder):
        return TorchrunEnvironment()


class TestSlurm(EnvironmentSuite):
    name, variables, numbers = "slurm", SLURM, ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID")
    expected: ClassVar = {**RANKS, "main_address": "gpu07", "main_port": 17387}

    def make(self, folder):
        return SlurmEnvironment()
