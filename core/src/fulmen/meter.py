"""One logged name: a :class:`Meter`; and those of one kind of moment: a :class:`Scope`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fulmen.errors import ModuleError, listing
from fulmen.gathering import gathers

Declaration = tuple[bool, bool, bool | None, bool | None, Any, bool, bool, bool]
Value = Tensor | float
_REDUCTIONS = ("mean", "sum", "min", "max")
SUFFIX = "/dataloader_idx_"


class Meter:
    """One logged name: its latest value, and its value over the epoch."""

    __slots__ = (
        "declared", "name", "prog_bar", "logger", "on_step", "on_epoch", "reduce", "sync", "suffix",
        "metric", "last", "fresh", "total", "weight",
    )  # fmt: skip

    def __init__(self, name: str, declared: Declaration, on_step: bool, on_epoch: bool, suffix: str) -> None:
        self.declared, self.name, self.suffix = declared, name, suffix
        self.prog_bar, self.logger, _, _, reduce, sync, _, rank_zero_only = declared
        self.on_step, self.on_epoch = on_step, on_epoch
        self.reduce = getattr(reduce, "__name__", reduce)
        self.sync = sync and not rank_zero_only
        self.metric: Any = None
        self.last: Value | None = None
        self.fresh = False
        self.total: Value | None = None
        self.weight = 0.0

    @property
    def step_key(self) -> str:
        """The name of single values."""
        return self.name + ("_step" if self.on_epoch else "") + self.suffix

    @property
    def epoch_key(self) -> str:
        """The name of the value over the epoch."""
        return self.name + ("_epoch" if self.on_step else "") + self.suffix

    def keep(self, value: Value) -> None:
        """Take the latest value. The tensor is copied: what the caller does to it later does not show."""
        if isinstance(value, Tensor) and isinstance(self.last, Tensor):
            self.last.copy_(value)
        else:
            self.last = value.clone() if isinstance(value, Tensor) else value
        self.fresh = True

    def accumulate(self, value: Value, weight: float, dtype: torch.dtype) -> None:
        """Add a value to the epoch's."""
        self.weight += weight
        if not isinstance(self.total, Tensor):
            self.total = self._begin(value, weight, dtype)
        elif self.reduce == "mean":
            self.total.add_(value, alpha=weight)
        elif self.reduce == "sum":
            self.total.add_(value)
        else:
            limit = torch.minimum if self.reduce == "min" else torch.maximum
            limit(self.total, torch.as_tensor(value, dtype=self.total.dtype, device=self.total.device), out=self.total)

    def _begin(self, value: Value, weight: float, dtype: torch.dtype) -> Value:
        """The total after the first tensor, or after a plain number: those are added up on the host."""
        scaled = value * weight if self.reduce == "mean" else value
        if isinstance(value, Tensor):
            scaled = value.to(dtype, copy=True) * (weight if self.reduce == "mean" else 1)
        if self.total is None:
            return scaled
        if self.reduce in ("min", "max"):
            return (min if self.reduce == "min" else max)(self.total, scaled)
        return self.total + scaled

    def value(self) -> Value:
        """The value over the epoch so far."""
        if self.metric is not None:
            return scalar(self.name, self.metric.compute()) if self.total is None else self.total
        assert self.total is not None
        total = self.total / self.weight if self.reduce == "mean" else self.total
        return total.to(torch.float32) if isinstance(total, Tensor) and self.is_single else total

    def settle(self) -> None:
        """Fix the value over the epoch of an object that gathers, before somebody resets it."""
        if self.metric is not None and self.on_epoch:
            self.total = self.value()

    def state_dict(self, names: Mapping[int, str]) -> dict[str, Any]:
        """The meter as plain data.

        Args:
            names: Of objects that gather, by their identity.
        """
        return {
            "name": self.name,
            "object": names.get(id(self.metric)),
            "declared": list(normal(self.declared)),
            "last": self.last,
            "total": self.total,
            "fresh": self.fresh,
            "weight": self.weight,
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device, parts: Mapping[str, Any]) -> None:
        """Continue from a meter's state; ``parts``: objects that gather, by name."""
        self.metric = parts.get(state.get("object", ""))
        last, total = state["last"], state["total"]
        self.last = last.to(device) if isinstance(last, Tensor) else last
        self.total = total.to(device) if isinstance(total, Tensor) else total
        self.weight, self.fresh = state["weight"], state["fresh"]

    @property
    def is_single(self) -> bool:
        """Whether the values came in single precision or less, so that the result should too."""
        return not (isinstance(self.last, Tensor) and self.last.dtype == torch.float64)


@dataclass
class Scope:
    """The meters of one kind of moment: around the batches of a loader, or around an epoch."""

    phase: str
    batches: bool
    suffix: str = ""
    meters: dict[str, Meter] = field(default_factory=dict)
    by_step: bool = False  # whether any of them keeps single values

    def declare(self, name: str, declared: Declaration) -> Meter:
        """A meter with these arguments of ``self.log``, and the defaults of this moment.

        Raises:
            ModuleError: The arguments contradict each other or the moment.
        """
        by_step = self.batches and self.phase == "train"
        on_step = by_step if declared[2] is None else declared[2]
        on_epoch = not by_step if declared[3] is None else declared[3]
        meter = Meter(name, declared, on_step, on_epoch, self.suffix if declared[6] else "")
        if SUFFIX in name:
            raise ModuleError(f"self.log({name!r}): the name must not contain {SUFFIX!r}, which fulmen appends itself")
        if on_step and not self.batches:
            raise ModuleError(f"self.log({name!r}, on_step=True) is not possible in a hook around an epoch, which has no step")
        if not on_step and not on_epoch:
            raise ModuleError(f"self.log({name!r}, on_step=False, on_epoch=False) would keep nothing; set one of them")
        if meter.reduce not in _REDUCTIONS:
            raise ModuleError(
                f"self.log({name!r}, reduce_fx={declared[4]!r}): allowed are {listing(_REDUCTIONS)}; for anything else log an "
                "object with update, compute and reset, such as a torchmetrics Metric"
            )
        self.by_step = self.by_step or on_step
        return meter


def from_object(meter: Meter, name: str, value: Any) -> Value:
    """A number of another kind, or the latest value of an object with ``update``, ``compute`` and ``reset``."""
    if gathers(value):
        meter.metric = value
        if not meter.on_step:
            return 0.0
        latest = getattr(value, "_forward_cache", None)  # what torchmetrics computed for this batch alone
        return scalar(name, value.compute() if latest is None else latest)
    if callable(getattr(value, "item", None)):  # a numpy number
        return float(value.item())
    raise ModuleError(
        f"self.log({name!r}, {type(value).__name__}): the value must be a number, a tensor with one element, or an object "
        "with update, compute and reset; for a mapping use log_dict"
    )


def scalar(name: str, value: Any) -> Value:
    """The one element of a value that was logged."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().reshape(())
    if isinstance(value, (int, float)):
        return value
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ModuleError(
        f"self.log({name!r}): the value must have one element, and has shape {shape}; log its mean, or its parts by name"
    )


def normal(declared: Declaration) -> tuple[Any, ...]:
    """Arguments of ``self.log`` such that those of a checkpoint compare equal."""
    return (*declared[:4], getattr(declared[4], "__name__", declared[4]), *declared[5:])


def describe(declared: Declaration) -> str:
    """Arguments of ``self.log``, for people."""
    names = ("prog_bar", "logger", "on_step", "on_epoch", "reduce_fx", "sync_dist", "add_dataloader_idx", "rank_zero_only")
    return ", ".join(f"{name}={value!r}" for name, value in zip(names, declared, strict=True))
