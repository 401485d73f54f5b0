"""What every contract requires."""

from __future__ import annotations

import inspect

import pytest

from fulmen import (
    Accelerator,
    Callback,
    Checkpoint,
    ClusterEnvironment,
    DataModule,
    Exporter,
    Launcher,
    Logger,
    Module,
    Precision,
    Profiler,
    ProgressBar,
    Strategy,
)

REQUIRED = {
    Accelerator: {"is_available", "num_available", "setup_device"},
    Strategy: {"connect", "root_device"},
    Logger: {"name", "version", "log_metrics"},
    Exporter: {"export"},
    ProgressBar: {"redraw", "print"},
    Launcher: {"is_interactive_compatible", "launch"},
    ClusterEnvironment: {
        *("detect", "creates_processes_externally", "main_address", "main_port"),
        *("world_size", "global_rank", "local_rank", "node_rank"),
    },
    Profiler: {"start", "stop", "summary"},
    Precision: set(),
    Callback: set(),
    Checkpoint: set(),
    Module: set(),
    DataModule: set(),
}


@pytest.mark.parametrize("contract", REQUIRED, ids=lambda contract: contract.__name__)
def test_what_must_be_written(contract):
    assert set(getattr(contract, "__abstractmethods__", ())) == REQUIRED[contract]
    assert inspect.isabstract(contract) is bool(REQUIRED[contract])
