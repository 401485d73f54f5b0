"""Train PyTorch models: a module, its data, a trainer. Everything else is a plugin.

>>> import fulmen
>>> trainer = fulmen.Trainer(max_epochs=3)  # doctest: +SKIP

Names are imported when they are first used: ``import fulmen`` alone does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen.combined import CombinedLoader
    from fulmen.contracts.accelerator import Accelerator
    from fulmen.contracts.callback import Callback, Checkpoint
    from fulmen.contracts.datamodule import DataModule
    from fulmen.contracts.environment import ClusterEnvironment
    from fulmen.contracts.exporter import Exporter
    from fulmen.contracts.launcher import Launcher
    from fulmen.contracts.logger import Logger
    from fulmen.contracts.module import Module
    from fulmen.contracts.precision import Precision
    from fulmen.contracts.profiler import Profiler
    from fulmen.contracts.progress import ProgressBar
    from fulmen.contracts.stateful import Stateful
    from fulmen.contracts.strategy import Strategy
    from fulmen.errors import CheckpointError, ConfigurationError, FulmenError, FulmenWarning, ModuleError, PluginError
    from fulmen.hookspecs import hookimpl
    from fulmen.options import Options
    from fulmen.plugins import PluginSet
    from fulmen.rng import seed_everything
    from fulmen.runtime import Runtime
    from fulmen.storage import copy_checkpoint, read_checkpoint, write_checkpoint
    from fulmen.trainer import Trainer

__all__ = [
    "Accelerator",
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "ClusterEnvironment",
    "CombinedLoader",
    "ConfigurationError",
    "DataModule",
    "Exporter",
    "FulmenError",
    "FulmenWarning",
    "Launcher",
    "Logger",
    "Module",
    "ModuleError",
    "Options",
    "PluginError",
    "PluginSet",
    "Precision",
    "Profiler",
    "ProgressBar",
    "Runtime",
    "Stateful",
    "Strategy",
    "Trainer",
    "copy_checkpoint",
    "hookimpl",
    "read_checkpoint",
    "seed_everything",
    "write_checkpoint",
]

_CONTRACTS = {
    "Accelerator": "accelerator",
    "Callback": "callback",
    "Checkpoint": "callback",
    "ClusterEnvironment": "environment",
    "DataModule": "datamodule",
    "Exporter": "exporter",
    "Launcher": "launcher",
    "Logger": "logger",
    "Module": "module",
    "Precision": "precision",
    "Profiler": "profiler",
    "ProgressBar": "progress",
    "Stateful": "stateful",
    "Strategy": "strategy",
}
_OTHERS = {
    "CombinedLoader": "combined",
    "Options": "options",
    "PluginSet": "plugins",
    "Runtime": "runtime",
    "Trainer": "trainer",
    "copy_checkpoint": "storage",
    "hookimpl": "hookspecs",
    "read_checkpoint": "storage",
    "seed_everything": "rng",
    "write_checkpoint": "storage",
}
_HOMES = {**{name: f"contracts.{home}" for name, home in _CONTRACTS.items()}, **_OTHERS}
_get, __dir__ = attributes("fulmen", {name: _HOMES.get(name, "errors") for name in __all__})
_MODULES = ("callbacks", "loggers", "profilers", "strategies")  # so that `fulmen.callbacks.Timer` needs no import of its own


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"fulmen.{name}")
    return import_module("fulmen.plugins").version() if name == "__version__" else _get(name)
