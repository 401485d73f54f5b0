"""What a user chooses about a run, apart from its parts: one typed, frozen, JSON-able object, checked when it is made."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from typing import Any, Literal

from fulmen.errors import ConfigurationError, did_you_mean, listing

Limit = int | float
Duration = str | timedelta | Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The plain options of :class:`fulmen.Trainer`.

    Durations are kept in seconds. ``None`` is the default where it has no meaning of its own.

    >>> Options(max_epochs=3).to_json()["max_epochs"]
    3

    Raises:
        ConfigurationError: A value is wrong, or two contradict each other; the message says which are right.
    """

    max_epochs: int | None = None
    """Stop after so many epochs; -1: never. ``None``: 1,000, or never where ``max_steps`` or ``max_time`` is given."""
    min_epochs: int | None = None
    """Ignore requests to stop until so many epochs are done."""
    max_steps: int = -1
    """Stop after so many optimizer steps; -1: never."""
    min_steps: int | None = None
    """Ignore requests to stop until so many optimizer steps are done."""
    max_time: Duration | float | None = None
    """Stop after this time: ``"DD:HH:MM:SS"``, a timedelta, its arguments as a mapping, or seconds."""
    limit_train_batches: Limit = 1.0
    """Batches per epoch: a count (int) or a fraction (float). The same for the other limits; 0 skips that stage."""
    limit_val_batches: Limit = 1.0
    """Batches of each validation loader."""
    limit_test_batches: Limit = 1.0
    """Batches of each test loader."""
    limit_predict_batches: Limit = 1.0
    """Batches of each prediction loader."""
    overfit_batches: Limit = 0.0
    """Train and validate on so many batches, unshuffled: a model that cannot fit these has a bug. 0 turns it off."""
    fast_dev_run: bool | int = False
    """Run so many batches (``True``: 1) of every stage once, without loggers, checkpoints and sanity check."""
    val_check_interval: Limit | Duration | None = None
    """Validate every so many batches (int), fractions of an epoch (float), or by time. ``None``: at the end of the epoch."""
    check_val_every_n_epoch: int | None = 1
    """Validate in every n-th epoch. ``None``: ``val_check_interval`` counts batches of the whole training."""
    num_sanity_val_steps: int = 2
    """Batches of each validation loader before training starts, to find errors early; -1: all."""
    log_every_n_steps: int = 50
    """Send single values to the loggers at every n-th step; 0: never."""
    accumulate_grad_batches: int | Mapping[int, int] = 1
    """Batches per optimizer step, or ``{epoch: batches}`` from that epoch on."""
    gradient_clip_val: float | None = None
    """Clip gradients to this norm or value. ``None``: do not."""
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    """Whether ``gradient_clip_val`` limits the total norm or each element."""
    deterministic: bool | Literal["warn"] | None = None
    """Use only algorithms that give the same result each time, or warn where there is none."""
    benchmark: bool | None = None
    """Let the backend try algorithms and keep the fastest. ``None``: leave PyTorch's setting."""
    inference_mode: bool = True
    """Evaluate under ``torch.inference_mode`` rather than ``no_grad``. Validation inside ``fit`` uses ``no_grad`` always."""
    use_distributed_sampler: bool = True
    """Give each rank its share of the data where there are several."""
    reload_dataloaders_every_n_epochs: int = 0
    """Call the loader methods again every n epochs; 0: once."""
    default_root_dir: str | os.PathLike[str] | None = None
    """Where logs and checkpoints go. ``None``: the current folder."""
    enable_checkpointing: bool = True
    """Keep a checkpoint to resume from."""
    enable_progress_bar: bool = True
    """Show progress."""
    enable_model_summary: bool = True
    """Print the layers and their sizes when fitting starts."""
    detect_anomaly: bool = False
    """Find the operation that made a NaN, and stop at a loss that is not finite. Slow: it waits for the device."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name != "check_val_every_n_epoch":
                value = field.default
            object.__setattr__(self, field.name, _check(field.name, value))
        if self.enable_checkpointing and self.default_root_dir == "":
            raise ConfigurationError("default_root_dir is empty; leave it out for the current folder")
        if self.check_val_every_n_epoch is None and isinstance(self.val_check_interval, float) and self.val_check_interval <= 1:
            raise ConfigurationError(
                f"val_check_interval={self.val_check_interval} is a fraction of an epoch, and check_val_every_n_epoch=None "
                "counts batches of the whole training: give a number of batches"
            )

    # ---- What follows from the options

    @property
    def num_epochs(self) -> float:
        """Epochs at most; infinity for never."""
        if self.fast_dev_run:
            return 1
        if self.max_epochs is None:
            return float("inf") if self.max_steps != -1 or self.max_time is not None else 1000
        return float("inf") if self.max_epochs == -1 else self.max_epochs

    @property
    def num_steps(self) -> float:
        """Optimizer steps at most; infinity for never."""
        if self.fast_dev_run:
            return int(self.fast_dev_run)
        return float("inf") if self.max_steps == -1 else self.max_steps

    @property
    def accumulates(self) -> bool:
        """Whether any epoch has several batches per step."""
        schedule = self.accumulate_grad_batches
        return schedule != 1 if isinstance(schedule, int) else any(count > 1 for count in schedule.values())

    def accumulate_at(self, epoch: int) -> int:
        """Batches per optimizer step in an epoch."""
        schedule = self.accumulate_grad_batches
        if isinstance(schedule, int):
            return schedule
        started = [start for start in schedule if start <= epoch]
        return schedule[max(started)] if started else 1

    def limit(self, phase: str) -> Limit:
        """The limit of a phase: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``."""
        name = f"limit_{'val' if phase == 'validate' else phase}_batches"
        given: Limit = getattr(self, name)
        if self.fast_dev_run:
            return 0 if given == 0 else int(self.fast_dev_run)
        return self.overfit_batches if self.overfit_batches and phase in ("train", "validate") else given

    def to_json(self) -> dict[str, Any]:
        """The options as data for JSON; :meth:`from_json` makes them again."""
        found = asdict(self)
        schedule = self.accumulate_grad_batches
        if not isinstance(schedule, int):
            found["accumulate_grad_batches"] = {str(epoch): count for epoch, count in schedule.items()}
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Options:
        """Options from what :meth:`to_json` gave."""
        names = [field.name for field in fields(cls)]
        for name in data:
            if name not in names:
                raise ConfigurationError(
                    f"there is no option {name!r}{did_you_mean(name, names)}; options are: {listing(names)}"
                )
        values = dict(data)
        if isinstance(schedule := values.get("accumulate_grad_batches"), Mapping):
            values["accumulate_grad_batches"] = {int(epoch): count for epoch, count in schedule.items()}
        return cls(**values)


def seconds_of(value: Any, name: str) -> float:
    """A duration in seconds.

    Raises:
        ConfigurationError: ``value`` is none.
    """
    if isinstance(value, str) and re.fullmatch(r"\d+:\d+:\d+:\d+", value, re.ASCII):
        days, hours, minutes, seconds = (int(part) for part in value.split(":"))
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    if isinstance(value, Mapping):
        try:
            found = timedelta(**value)
        except (TypeError, OverflowError):
            raise _wrong(name, dict(value), "the arguments of a timedelta, such as {'minutes': 30}") from None
    elif isinstance(value, timedelta):
        found = value
    else:
        raise _wrong(name, value, "'DD:HH:MM:SS', a timedelta, or its arguments as a mapping")
    if found < timedelta(0):
        raise _wrong(name, value, "a duration from 0")
    return found.total_seconds()


# ---- Checks: each takes the name and the value, and returns the value as it is kept

Check = Callable[[str, Any], Any]


def _wrong(name: str, value: Any, allowed: str) -> ConfigurationError:
    return ConfigurationError(f"{name}={value!r} is not allowed; allowed: {allowed}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _int(minimum: int, none: bool = False, text: str = "") -> Check:
    def check(name: str, value: Any) -> Any:
        if (none and value is None) or (_is_int(value) and value >= minimum):
            return value
        raise _wrong(name, value, text or f"a whole number from {minimum}" + (", or None" if none else ""))

    return check


def _choice(*allowed: Any) -> Check:
    def check(name: str, value: Any) -> Any:
        if any(value is each or (isinstance(each, str) and value == each) for each in allowed):
            return value
        raise _wrong(name, value, listing(repr(each) for each in allowed))

    return check


def _limit(name: str, value: Any) -> Limit:
    if (_is_int(value) and value >= 0) or (isinstance(value, float) and 0 <= value <= 1):
        return value  # type: ignore[no-any-return]
    raise _wrong(name, value, "a number of batches (int from 0), or a fraction of them (float from 0.0 to 1.0)")


def _fast_dev_run(name: str, value: Any) -> bool | int:
    if isinstance(value, bool) or (_is_int(value) and value >= 0):
        return value  # type: ignore[no-any-return]
    raise _wrong(name, value, "True, False, or a number of batches")


def _duration(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value >= 0:
            return float(value)
        raise _wrong(name, value, "seconds from 0, 'DD:HH:MM:SS', a timedelta, or its arguments as a mapping")
    return seconds_of(value, name)


def _interval(name: str, value: Any) -> Any:
    if value is None or (_is_int(value) and value >= 1) or (isinstance(value, float) and 0 < value <= 1):
        return value
    if isinstance(value, (str, timedelta, Mapping)) and (seconds := seconds_of(value, name)) > 0:
        return {"seconds": seconds}
    raise _wrong(
        name, value, "a number of batches (int from 1), a fraction of an epoch (float up to 1.0), or a duration 'DD:HH:MM:SS'"
    )


def _accumulate(name: str, value: Any) -> Any:
    if _is_int(value) and value >= 1:
        return value
    if isinstance(value, Mapping) and value and all(_is_int(k) and k >= 0 and _is_int(v) and v >= 1 for k, v in value.items()):
        return dict(value)
    raise _wrong(name, value, "a whole number from 1, or {epoch: batches} such as {0: 1, 5: 4}")


def _clip(name: str, value: Any) -> float | None:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0):
        return value
    raise _wrong(name, value, "a number from 0, or None")


def _folder(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, (str, os.PathLike)):
        return None if value is None else os.fspath(value)
    raise _wrong(name, value, "a path or URL, or None for the current folder")


_BOOL = _choice(True, False)
_MINUS_ONE = "a whole number from 0, or -1 for no limit"
_CHECKS: dict[str, Check] = {
    "max_epochs": _int(-1, none=True, text=f"{_MINUS_ONE}, or None"),
    "min_epochs": _int(0, none=True),
    "max_steps": _int(-1, text=_MINUS_ONE),
    "min_steps": _int(0, none=True),
    "max_time": _duration,
    "overfit_batches": _limit,
    "fast_dev_run": _fast_dev_run,
    "val_check_interval": _interval,
    "check_val_every_n_epoch": _int(1, none=True),
    "num_sanity_val_steps": _int(-1, text="a whole number from 0, or -1 for all"),
    "log_every_n_steps": _int(0),
    "accumulate_grad_batches": _accumulate,
    "gradient_clip_val": _clip,
    "gradient_clip_algorithm": _choice("norm", "value"),
    "deterministic": _choice(True, False, "warn", None),
    "benchmark": _choice(True, False, None),
    "reload_dataloaders_every_n_epochs": _int(0),
    "default_root_dir": _folder,
}


def _check(name: str, value: Any) -> Any:
    if name.startswith("limit_"):
        return _limit(name, value)
    return _CHECKS.get(name, _BOOL)(name, value)
