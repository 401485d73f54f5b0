"""What comes with the core, offered like any other plugin's parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hookspecs import hookimpl

if TYPE_CHECKING:
    from fulmen.registry import Registry

HERE = "fulmen.builtin"


@hookimpl
def register(registry: Registry) -> None:
    """Offer the built-in parts."""
    registry.accelerator("cpu", f"{HERE}.cpu:CPUAccelerator", summary="the processor of this machine")
    registry.strategy("single_device", f"{HERE}.single_device:SingleDevice", summary="one process, one device")
    registry.precision("32-true", "fulmen.contracts.precision:Precision", summary="single precision", aliases=("32",))
    for name, text in (("64-true", "double precision"), ("bf16-true", "parameters and computation in bfloat16")):
        registry.precision(name, f"{HERE}.true_precision:TruePrecision", summary=text, arguments={"name": name})
    registry.logger("csv", f"{HERE}.csv_logger:CSVLogger", summary="metrics.csv in a folder per run")
    registry.logger("dummy", f"{HERE}.dummy_logger:DummyLogger", summary="takes everything and keeps nothing")
    registry.progress("console", f"{HERE}.console:ConsoleProgress", summary="a bar in a terminal or notebook, else plain lines")
    registry.callback("model_summary", f"{HERE}.model_summary:ModelSummary", summary="layers and sizes when fitting starts")
    registry.callback("lr_monitor", f"{HERE}.lr_monitor:LearningRateMonitor", summary="learning rates to the loggers")
    registry.callback("timer", f"{HERE}.timer:Timer", summary="measures stages, and stops after a duration")
    registry.callback(
        "accumulation", f"{HERE}.accumulation:GradientAccumulationScheduler", summary="batches per step, changing by epoch"
    )
    registry.callback("device_stats", f"{HERE}.device_stats:DeviceStatsMonitor", summary="memory and load to the loggers")
    registry.callback("recovery", f"{HERE}.recovery:RecoveryCheckpoint", summary="keeps the newest checkpoint to resume from")
    registry.profiler("simple", f"{HERE}.simple_profiler:SimpleProfiler", summary="a table of where the time went")
