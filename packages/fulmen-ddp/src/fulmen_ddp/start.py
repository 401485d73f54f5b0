"""How processes are started here, and what makes that impossible."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fulmen import ConfigurationError

START_METHODS = ("auto", "popen", "spawn", "forkserver", "fork")


def is_notebook() -> bool:
    """Whether there is no program that could be started again: a notebook or an interactive session."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules


def script_command() -> list[str] | None:
    """The command that starts this program again; ``None`` where there is none."""
    main = sys.modules["__main__"]
    path, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if is_notebook() or path is None or not sys.argv:
        return None
    options = _interpreter_options()
    if spec is not None and spec.name:
        name = spec.name.removesuffix(".__main__") if spec.name != "__main__" else None
        return [sys.executable, *options, "-m", name, *sys.argv[1:]] if name else None
    return [sys.executable, *options, os.path.abspath(path), *sys.argv[1:]] if Path(path).is_file() else None


def _interpreter_options() -> list[str]:
    """``-W error``, ``-O`` and the like, as this interpreter was given them."""
    found = []
    rest = iter(sys.orig_argv[1:])
    for option in rest:
        if not option.startswith("-") or option in ("-m", "-c", "-"):
            break
        found.append(option)
        if option in ("-W", "-X"):
            found.append(next(rest, ""))
    return found


def choose_start_method(wanted: str, devices: Sequence[torch.device]) -> str:
    """The start method to use.

    Raises:
        ConfigurationError: The one that was asked for does not work here.
    """
    method = wanted
    if wanted == "auto":
        under_pytest = "PYTEST_CURRENT_TEST" in os.environ  # the program is pytest: it must not be started again
        method = "fork" if is_notebook() else "spawn" if under_pytest or script_command() is None else "popen"
    if method == "popen" and script_command() is None:
        raise ConfigurationError(
            "strategy 'ddp' starts the program again for each rank, and there is no program in an interactive session or for "
            "python -c; use strategy='ddp_notebook', or put it in a file"
        )
    if method in ("spawn", "fork", "forkserver") and method not in multiprocessing.get_all_start_methods():
        others = ", ".join(multiprocessing.get_all_start_methods())
        raise ConfigurationError(f"start_method={method!r} does not exist on this system; there are: {others}")
    if method == "fork" and devices[0].type == "cuda" and torch.cuda.is_initialized():
        raise ConfigurationError(
            "processes cannot be forked after CUDA was started in this one, by any tensor moved to a GPU before; restart the "
            "notebook and make the trainer first, or run a script with strategy='ddp'"
        )
    return method
