"""The few exception types, and the sentences that make them helpful.

Every message says what is wrong, with which value, what is allowed, and what to do. The full text lives where it is
raised and is asserted once in the tests.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import warnings
from collections.abc import Iterable

from fulmen.known import COUNTERPARTS, advice

_INSIDE = (os.path.dirname(__file__), contextlib.__file__)


class FulmenError(Exception):
    """Base of every error that fulmen raises on purpose."""


class ConfigurationError(FulmenError, ValueError):
    """An option has a wrong value, or two options contradict each other. Raised before anything runs."""


class PluginError(FulmenError, LookupError):
    """A plugin or provider cannot be found, is claimed twice, or does not work."""


class MissingNameError(PluginError, AttributeError):
    """``fulmen.callbacks``, or another module of parts, has no such class."""


class MissingModuleError(PluginError, ModuleNotFoundError):
    """There is no such name to import; the message is the one that using it as an attribute would give."""


class ModuleError(FulmenError, RuntimeError):
    """A user's module, data module, loader or callback breaks its contract while it is used."""


class CheckpointError(FulmenError, RuntimeError):
    """A checkpoint cannot be written, read or applied."""


class FulmenWarning(UserWarning):
    r"""Something works, but probably not as meant.

    Each message starts with its code in brackets, so that one kind can be silenced alone:
    ``warnings.filterwarnings("ignore", message=r"\[batch-size\]")``.
    """


def warn(code: str, message: str) -> None:
    """Issue a :class:`FulmenWarning` whose text starts with ``[code]``, at the line outside fulmen that led to it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(_INSIDE) or frame.f_globals.get("__name__", "").startswith("fulmen_")
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(f"[{code}] {message}", FulmenWarning, stacklevel=level)


def listing(items: Iterable[object]) -> str:
    """``a, b, c`` in the given order, or ``(none)``."""
    return ", ".join(str(item) for item in items) or "(none)"


def nearest(value: str, options: Iterable[str]) -> str | None:
    """What is called so elsewhere, or the nearest spelling, among ``options``; ``None`` where none is near."""
    known = list(options)
    for same in (COUNTERPARTS.get(value), value.lower()):
        if same in known:
            return same
    return next(iter(difflib.get_close_matches(value, known, n=1, cutoff=0.6)), None)


def did_you_mean(value: str, options: Iterable[str], kind: str = "") -> str:
    """``; did you mean 'ddp'?`` for the nearest spelling among ``options``, or nothing where none is near.

    Args:
        value: What was written.
        options: What could have been.
        kind: Where it was looked for; what :data:`fulmen.known.ELSEWHERE` says of the name there comes first.
    """
    elsewhere, near = advice(kind, value), nearest(value, options)
    return f"; {elsewhere}" if elsewhere else f"; did you mean {near!r}?" if near else ""
