"""Public names of a package that are imported when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from fulmen.errors import did_you_mean, listing


def attributes(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package, so that importing it does not import torch.

    Finding a plugin imports the package that it is in; this keeps that quick.

    Args:
        package: ``__name__`` of the package.
        homes: Name -> the module of the package that defines it.

    >>> __getattr__, __dir__ = attributes("fulmen", {"Options": "options"})
    >>> __getattr__("Options").__name__
    'Options'
    """

    def get(name: str) -> Any:
        if name not in homes:
            guess = did_you_mean(name, homes)
            raise AttributeError(f"module {package!r} has no attribute {name!r}{guess}; it has: {listing(sorted(homes))}")
        found = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, found)  # the next use is a plain attribute
        return found

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})
