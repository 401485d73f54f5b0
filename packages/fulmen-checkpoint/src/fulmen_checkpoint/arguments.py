"""What the arguments of :class:`~fulmen_checkpoint.ModelCheckpoint` may be; and a mapping as YAML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from fulmen import ConfigurationError
from fulmen_checkpoint.names import check_template

_NEVER_CALLED = (
    "_save_checkpoint", "_save_topk_checkpoint", "_save_last_checkpoint", "_save_monitor_checkpoint",
    "_save_none_monitor_checkpoint", "_update_best_and_save", "_remove_checkpoint", "_should_skip_saving_checkpoint",
    "_should_save_on_train_epoch_end", "_monitor_candidates", "check_monitor_top_k", "file_exists",
)  # fmt: skip
"""What people override in Lightning's class."""


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse what has no meaning.

    Raises:
        ConfigurationError: A value is not allowed, or two contradict each other.
    """
    _one_of("mode", given["mode"], ("min", "max"))
    _one_of("save_last", given["save_last"], (True, False, None, "link"))
    _whole("save_top_k", given["save_top_k"], -1)
    for name in ("every_n_train_steps", "every_n_epochs"):
        if given[name] is not None:
            _whole(name, given[name], 0)
    interval = given["train_time_interval"]
    seconds = interval.total_seconds() if isinstance(interval, timedelta) else interval
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0):
        raise ConfigurationError(
            f"ModelCheckpoint train_time_interval={interval!r} is not allowed; allowed: a timedelta or seconds above 0, or None"
        )
    if given["filename"] is not None:
        check_template(given["filename"])
    intervals = [name for name in ("every_n_train_steps", "every_n_epochs", "train_time_interval") if given[name]]
    if len(intervals) > 1:
        raise ConfigurationError(
            f"ModelCheckpoint was given {' and '.join(intervals)}: keep one, and use a second ModelCheckpoint for the other"
        )
    if given["save_on_train_epoch_end"] is not None and intervals not in ([], ["every_n_epochs"]):
        raise ConfigurationError(
            f"ModelCheckpoint save_on_train_epoch_end is for every_n_epochs, and contradicts {intervals[0]}; drop one of them"
        )
    if given["save_last"] == "link" and "://" in str(given["dirpath"]).removeprefix("file://"):
        raise ConfigurationError(
            f"ModelCheckpoint save_last='link' is not possible at {given['dirpath']}, where there are no links; use "
            "save_last=True"
        )


def check_overrides(kind: type) -> None:
    """Refuse a subclass that overrides what only Lightning's class of that name calls.

    Raises:
        ConfigurationError: It does; the message says what is called here.
    """
    names = [name for name in _NEVER_CALLED if hasattr(kind, name)]
    if names:
        raise ConfigurationError(
            f"{kind.__name__}.{names[0]} is never called: it overrides a method of Lightning's ModelCheckpoint. Override what "
            "fulmen calls: on_save_checkpoint to change what is in a file, on_train_epoch_end and on_validation_end for other "
            "moments, format_checkpoint_name for other names; a logger's after_save_checkpoint is told of each complete file"
        )


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(value is each or (isinstance(each, str) and value == each) for each in allowed):
        raise ConfigurationError(f"ModelCheckpoint {name}={value!r} is not allowed; allowed: {', '.join(map(repr, allowed))}")


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"ModelCheckpoint {name}={value!r} is not allowed; allowed: a whole number from {least}")


def yaml_of(scores: Mapping[str, float]) -> str:
    """A mapping of texts to numbers as YAML 1.1."""
    return "".join(f"{json.dumps(path)}: {_yaml_number(score)}\n" for path, score in scores.items()) or "{}\n"


def _yaml_number(value: float) -> str:
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    text = repr(value)
    return text if "." in text else text.replace("e", ".0e")
