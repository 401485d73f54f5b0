"""What ``fulmen doctor`` looks at. Each problem is a sentence that ends with its remedy."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fulmen.errors import ConfigurationError, FulmenError, PluginError
from fulmen.known import KNOWN, extra_for, install_line
from fulmen.plugins import PluginSet
from fulmen.registry import Provider, check_arguments

LOWEST_TORCH = (2, 6)


def torch_devices(problems: list[str]) -> tuple[str, str | None, int]:
    """The version of torch, the type of accelerator that it sees (``None`` where none), and how many. Imports torch."""
    try:
        import torch
    except Exception as error:  # noqa: BLE001 - a library that is missing or too old is an OSError, and there are others
        problems.append(f"torch cannot be imported: {type(error).__name__}: {error}; pip install --force-reinstall torch")
        return "not importable", None, 0
    number = str(torch.__version__)
    if tuple(int(part) for part in number.split(".")[:2]) < LOWEST_TORCH:
        lowest = ".".join(map(str, LOWEST_TORCH))
        problems.append(f"torch {number} is too old, fulmen needs {lowest}; pip install --upgrade 'torch>={lowest}'")
        return number, None, 0
    seen = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return number, None if seen is None else seen.type, torch.accelerator.device_count()


def idle_device(kind: str | None, found: PluginSet) -> list[str]:
    """A device that torch sees and no installed accelerator uses."""
    if kind is None or kind in found.names("accelerator"):
        return []
    extra = KNOWN["accelerator"].get(kind)
    remedy = install_line(extra) if extra else "install a package that provides it"
    return [f"torch sees a device of type {kind!r}, and no installed accelerator uses it; {remedy}"]


def accelerators(found: PluginSet, problems: list[str]) -> list[tuple[str, str]]:
    """Each installed accelerator and how many devices it finds."""
    rows = []
    for provider in _classes(found, "accelerator"):
        try:
            accelerator: Any = provider.load()
            finds = f"finds {accelerator.num_available() if accelerator.is_available() else 0}"
        except FulmenError:  # a class that does not load is reported with the other parts
            finds = "does not work"
        except Exception as error:  # noqa: BLE001 - a driver may raise anything
            finds = "does not work"
            problems.append(
                f"accelerator {provider.name!r} of {provider.origin} cannot look for devices: {type(error).__name__}: {error}; "
                f"check its driver, or uninstall {provider.distribution}"
            )
        rows.append((f"{provider.name} ({provider.origin})", finds))
    return rows


def parts_that_do_not_load(found: PluginSet) -> list[str]:
    """Classes that cannot be imported or do not implement their contract. Imports every one of them."""
    problems = []
    for provider in _classes(found):
        try:
            provider.load()
        except FulmenError as error:
            problems.append(f"{error}; upgrade or reinstall {provider.distribution}")
    return problems


def settings(found: PluginSet) -> list[str]:
    """Settings of the project and the environment that name what does not exist, or leave open which of two is meant."""
    disabling = [text for source in (found.environment, found.project) for text in found.idle_disabling(source)]
    return [*disabling, *_choices(found), *_options(found)]


def _choices(found: PluginSet) -> list[str]:
    """Names that several distributions claim, and preferences that choose nothing."""
    claimed = {f"{rivals[0].kind}.{rivals[0].name}" for rivals in found.registry.conflicts()}
    problems = []
    for key in sorted({*claimed, *found.project.prefer}):
        kind, _, name = key.partition(".")
        try:
            found.registry.find(kind, name, found.project.prefer)
        except FulmenError as error:
            problems.append(str(error))
    return problems


def _options(found: PluginSet) -> list[str]:
    """Options for parts that are not installed, or that have no such argument."""
    problems = []
    for key in found.project.options:
        extra = extra_for(key.rpartition(".")[2])
        if extra and not found.provides(key):
            problems.append(f"{found.project.source} has options for {key!r}, which is not installed; {install_line(extra)}")
    for provider in found.registry.providers:
        options = found.options(provider)
        try:
            if options:
                check_arguments(provider, options, f"with options from {found.project.source}")
        except ConfigurationError as error:
            problems.append(str(error))
        except PluginError:  # reported with the classes that do not load
            continue
    return problems


def working_folder(folder: Path) -> list[str]:
    """Whether runs can be written where they are by default."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return []
    except OSError as error:
        return [f"{folder} is not writable ({error.strerror}), and runs are kept there; use Trainer(default_root_dir=...)"]


def _classes(found: PluginSet, kind: str | None = None) -> list[Provider]:
    """The providers of one kind or of all, one for each class."""
    return list({p.target: p for p in reversed(found.registry.providers) if kind in (None, p.kind)}.values())[::-1]
