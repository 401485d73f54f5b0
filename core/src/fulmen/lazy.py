"""Public names of a package that are imported when they are first used, and what an import of others says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from fulmen.errors import MissingModuleError, did_you_mean, listing


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
            guess = did_you_mean(name, homes, package)
            raise AttributeError(f"module {package!r} has no attribute {name!r}{guess}; it has: {listing(sorted(homes))}")
        found = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, found)  # the next use is a plain attribute
        return found

    explain_imports(package)
    return get, lambda: sorted({*vars(sys.modules[package]), *homes})


def explain_imports(package: str) -> None:
    """Let ``from package import Name`` and ``import package.name`` fail with what ``package.name`` says.

    Python drops the text of the :class:`AttributeError` of a module's ``__getattr__`` when the name was imported.
    """
    vars(sys.modules[package]).setdefault("__path__", [])  # Python looks for modules only in what could have them
    _explained.add(package)
    if _LastFinder not in sys.meta_path:
        sys.meta_path.append(_LastFinder)


_explained: set[str] = set()


class _LastFinder:
    """Asked for a module where nobody has it: finds none, and says why."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        package, _, last = name.rpartition(".")
        if package in _explained and not last.startswith("_"):
            try:
                getattr(sys.modules[package], last)
            except AttributeError as error:
                raise MissingModuleError(str(error)) from None
