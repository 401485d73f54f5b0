"""Every suite passes for a built-in part: the suites ask for nothing that the core does not do."""

from __future__ import annotations

import csv
import json

import torch

from fulmen import Precision
from fulmen.builtin.accumulation import GradientAccumulationScheduler
from fulmen.builtin.cpu import CPUAccelerator
from fulmen.builtin.csv_logger import CSVLogger
from fulmen.builtin.device_stats import DeviceStatsMonitor
from fulmen.builtin.dummy_logger import DummyLogger
from fulmen.builtin.lr_monitor import LearningRateMonitor
from fulmen.builtin.model_summary import ModelSummary
from fulmen.builtin.recovery import RecoveryCheckpoint
from fulmen.builtin.simple_profiler import SimpleProfiler
from fulmen.builtin.single_device import SingleDevice
from fulmen.builtin.timer import Timer
from fulmen.builtin.true_precision import TruePrecision
from fulmen.testing.conformance import (
    AcceleratorSuite,
    CallbackSuite,
    LoggerSuite,
    PrecisionSuite,
    ProfilerSuite,
    StrategySuite,
)


class TestCSVLogger(LoggerSuite):
    name = "csv"
    keeps_hyperparams = True

    def make(self, folder):
        return CSVLogger(folder, version=None if not list(folder.glob("fulmen_logs/*")) else 0)

    def read_back(self, part, folder):
        with open(folder / "fulmen_logs" / "version_0" / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))

    def read_hyperparams(self, part, folder):
        return json.loads((folder / "fulmen_logs" / "version_0" / "hparams.yaml").read_text())


class TestDummyLogger(LoggerSuite):
    name = "dummy"
    keeps_rows = readable_while_open = continues_record = rewinds = writes_files = False

    def make(self, folder):
        return DummyLogger()


class TestLearningRateMonitor(CallbackSuite):
    name = "lr_monitor"

    def make(self, folder):
        return LearningRateMonitor()


class TestTimer(CallbackSuite):
    name = "timer"
    state_is_exact = False  # it measures time

    def make(self, folder):
        return Timer()


class TestAccumulation(CallbackSuite):
    name = "accumulation"
    changes_training = True
    arguments = {"scheduling": {0: 2}}  # noqa: RUF012

    def make(self, folder):
        return GradientAccumulationScheduler({0: 2})


class TestModelSummary(CallbackSuite):
    name = "model_summary"

    def make(self, folder):
        return ModelSummary()


class TestDeviceStats(CallbackSuite):
    name = "device_stats"

    def make(self, folder):
        return DeviceStatsMonitor()


class TestRecovery(CallbackSuite):
    name = "recovery"

    def make(self, folder):
        return RecoveryCheckpoint()


class TestCPU(AcceleratorSuite):
    name = "cpu"
    has_indices = False
    has_generator = False

    def make(self, folder):
        return CPUAccelerator()


class TestSingleDevice(StrategySuite):
    name = "single_device"

    def make(self, folder):
        return SingleDevice()


class Test32(PrecisionSuite):
    name = "32-true"

    def make(self, folder):
        return Precision()


class Test64(PrecisionSuite):
    name = "64-true"
    parameter_dtype = compute_dtype = torch.float64

    def make(self, folder):
        return TruePrecision("64-true")


class TestBF16(PrecisionSuite):
    name = "bf16-true"
    parameter_dtype = compute_dtype = torch.bfloat16
    tolerance = 0.1

    def make(self, folder):
        return TruePrecision("bf16-true")


class TestSimpleProfiler(ProfilerSuite):
    name = "simple"

    def make(self, folder):
        return SimpleProfiler(dirpath=folder)
