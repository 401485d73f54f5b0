"""Log what devices and the host say about themselves."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from fulmen.contracts.callback import Callback
from fulmen.errors import ConfigurationError

if TYPE_CHECKING:
    from fulmen.contracts.module import Module
    from fulmen.trainer import Trainer


class DeviceStatsMonitor(Callback):
    """Logs ``DeviceStatsMonitor/<name>`` for each figure of the accelerator, after the batches of logging steps.

    Args:
        cpu_stats: Also log figures of the host. ``None``: where it is the device that trains.
    """

    def __init__(self, cpu_stats: bool | None = None) -> None:
        self.cpu_stats = cpu_stats
        self._seen = -1  # the number of steps for which values were logged last

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Check that there is a logger.

        Raises:
            ConfigurationError: There is none.
        """
        if not trainer.loggers:
            raise ConfigurationError(
                "DeviceStatsMonitor has no logger to send values to: leave out logger=False, or drop the callback"
            )
        self._seen = trainer.progress.updates
        if self._wants_host(trainer):
            host_stats()  # its first percentages are since the process started, or nothing at all

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log at logging steps; the values join the row of the step."""
        updates, every = trainer.progress.updates, trainer.options.log_every_n_steps
        if not every or updates % every or updates == self._seen:
            return
        self._seen = updates
        found = dict(trainer.runtime.accelerator.stats(trainer.runtime.device))
        if self._wants_host(trainer):
            found.update(host_stats())
        for name, value in found.items():
            module.log(f"{type(self).__name__}/{name}", float(value), on_step=True, on_epoch=False)

    def _wants_host(self, trainer: Trainer) -> bool:
        return trainer.runtime.device.type == "cpu" if self.cpu_stats is None else self.cpu_stats


def host_stats() -> dict[str, float]:
    """Figures of the host and of this process: with psutil where it is installed, else what the system tells everybody.

    Percentages of processor time are since the previous call.
    """
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return plain_host_stats()
    return {
        "cpu_percent": psutil.cpu_percent(),
        "cpu_vm_percent": psutil.virtual_memory().percent,
        "cpu_swap_percent": psutil.swap_memory().percent,
        "process_rss_bytes": psutil.Process().memory_info().rss,
    }


def plain_host_stats() -> dict[str, float]:
    """The peak memory of this process, its processor time, and the load of the host; without the first and last on Windows."""
    times = os.times()
    found = {"process_cpu_seconds": times.user + times.system}
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["process_max_rss_bytes"] = peak * (1 if sys.platform == "darwin" else 1024)
        found["load_average_1_minute"] = os.getloadavg()[0]
    return found
