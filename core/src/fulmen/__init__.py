"""Train PyTorch models: a module, its data, a trainer. Everything else is a plugin.

>>> import fulmen
>>> trainer = fulmen.Trainer(max_epochs=3)  # doctest: +SKIP

Names are imported when they are first used: ``import fulmen`` alone does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    "hookimpl",
    "seed_everything",
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
    "hookimpl": "hookspecs",
    "seed_everything": "rng",
}
_HOMES = {**{name: f"contracts.{home}" for name, home in _CONTRACTS.items()}, **_OTHERS}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("fulmen.plugins").version()
    if name in __all__:
        found = getattr(import_module(f"fulmen.{_HOMES.get(name, 'errors')}"), name)
        globals()[name] = found  # the next use is a plain attribute
        return found
    raise AttributeError(f"module 'fulmen' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
