"""From what a user passes to the trainer to the parts of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fulmen.contracts.callback import Callback, Checkpoint
from fulmen.contracts.environment import ClusterEnvironment
from fulmen.contracts.logger import Logger
from fulmen.contracts.module import Module
from fulmen.contracts.precision import Precision
from fulmen.contracts.progress import ProgressBar
from fulmen.errors import ConfigurationError
from fulmen.options import Options
from fulmen.plugins import PluginSet


def as_list(value: Any) -> list[Any]:
    """One or several parts as a list; ``None`` and ``False`` are none."""
    if value is None or value is False:
        return []
    is_several = isinstance(value, Iterable) and not isinstance(value, (str, Mapping))
    return list(value) if is_several else [value]


def split_plugins(plugins: Any, precision: Any) -> tuple[list[Any], Any, ClusterEnvironment | None]:
    """The plugins proper, and the precision and cluster environment among what was passed as ``plugins``.

    Raises:
        ConfigurationError: A precision is given twice.
    """
    given = as_list(plugins)
    precisions = [plugin for plugin in given if isinstance(plugin, Precision)]
    if len(precisions) + (precision is not None) > 1:
        raise ConfigurationError(
            "the precision is given twice: as precision= and among plugins=, or twice among plugins=; keep one"
        )
    environments = [plugin for plugin in given if isinstance(plugin, ClusterEnvironment)]
    rest = [plugin for plugin in given if not isinstance(plugin, (Precision, ClusterEnvironment))]
    return rest, (precisions[0] if precisions else precision), (environments[0] if environments else None)


def make_loggers(spec: Any, options: Options, plugins: PluginSet) -> list[Logger]:
    """The loggers: ``True`` or ``None`` is the CSV logger, ``False`` none; a dummy for each in a fast development run."""
    specs = ["csv"] if spec is True or spec is None else as_list(spec)
    loggers = [plugins.build("logger", each, save_dir=options.default_root_dir or ".") for each in specs]
    return [plugins.build("logger", "dummy") for _ in loggers] if options.fast_dev_run else loggers


def make_callbacks(spec: Any, options: Options, plugins: PluginSet) -> list[Callback]:
    """The callbacks that were given, and the default ones, those that run last at the end.

    Raises:
        ConfigurationError: What was given contradicts the options.
    """
    callbacks: list[Callback] = [plugins.build("callback", each) for each in as_list(spec)]
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    savers = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    if len(bars) > 1:
        raise ConfigurationError(f"there are {len(bars)} progress bars among the callbacks; keep one")
    if bars and not options.enable_progress_bar:
        raise ConfigurationError(
            f"enable_progress_bar=False, and {type(bars[0]).__name__} is among the callbacks; drop one of them"
        )
    if savers and not options.enable_checkpointing:
        raise ConfigurationError(
            f"enable_checkpointing=False, and {type(savers[0]).__name__} is among the callbacks; drop one of them"
        )
    if options.fast_dev_run:
        callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
    if options.enable_progress_bar and not bars:
        callbacks.append(plugins.build("progress", "console"))
    if options.enable_model_summary and not _has(callbacks, "ModelSummary"):
        callbacks.append(plugins.build("callback", "model_summary"))
    if options.max_time is not None:
        callbacks.append(plugins.build("callback", {"name": "timer", "duration": options.max_time}))
    if options.enable_checkpointing and not options.fast_dev_run and not _has(callbacks, "RecoveryCheckpoint"):
        callbacks.append(plugins.build("callback", "recovery"))
    return in_order(callbacks)


def with_module_callbacks(callbacks: list[Callback], module: Module) -> list[Callback]:
    """``callbacks`` with those that the module brings; each replaces the ones of its class."""
    brought = as_list(module.configure_callbacks())
    for callback in brought:
        if not isinstance(callback, Callback):
            raise ConfigurationError(f"configure_callbacks returned {callback!r}, which is no Callback")
    kept = [callback for callback in callbacks if type(callback) not in {type(each) for each in brought}]
    return in_order([*kept, *brought])


def in_order(callbacks: list[Callback]) -> list[Callback]:
    """Those that run last behind the others, and savers behind those, so that they save what the others decided."""
    return sorted(callbacks, key=lambda callback: callback.runs_last + isinstance(callback, Checkpoint))


def _has(callbacks: list[Callback], name: str) -> bool:
    return any(cls.__name__ == name for callback in callbacks for cls in type(callback).__mro__)
