"""What the shares of a batch log, as one call of ``self.log`` for the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fulmen import Module, ModuleError


class Call(NamedTuple):
    """One call of ``self.log``."""

    name: str
    value: Any
    arguments: tuple[Any, ...]
    reduce: str
    weight: int
    options: dict[str, Any]


class ShareLog:
    """Takes the place of ``module.log`` while a share is worked on.

    Args:
        samples: The size of the share, which weighs what is logged without a batch size.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.calls: list[Call] = []

    def __call__(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool = True,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        *,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        """Keep the call. Arguments as those of :meth:`fulmen.Module.log`."""
        value = value.detach().clone() if isinstance(value, Tensor) else value
        weight = self.samples if batch_size is None else batch_size
        arguments = (prog_bar, logger, on_step, on_epoch, reduce_fx)
        self.calls.append(Call(name, value, arguments, str(getattr(reduce_fx, "__name__", reduce_fx)), weight, options))


def log_together(module: Module, logs: Sequence[ShareLog], device: torch.device) -> None:
    """Log once for each name what all shares logged, combined as ``reduce_fx`` says; means by the weights of the shares.

    Raises:
        ModuleError: Several shares logged an object that keeps its own state, such as a torchmetrics Metric.
    """
    together: dict[str, list[Call]] = {}
    for log in logs:
        for call in log.calls:
            together.setdefault(call.name, []).append(call)
    for name, calls in together.items():
        first = calls[0]
        if len(calls) == 1:
            module.log(name, first.value, *first.arguments, batch_size=first.weight, **first.options)
            continue
        if any(callable(getattr(call.value, "compute", None)) for call in calls):
            raise ModuleError(
                f"self.log({name!r}, {type(first.value).__name__}) in a step under strategy 'dp': each device would update a "
                "copy of its own; update and log it in training_step_end, or in a hook"
            )
        weights = [call.weight for call in calls]
        value = combined([call.value for call in calls], weights, first.reduce, device)
        module.log(name, value, *first.arguments, batch_size=sum(weights), **first.options)


def combined(values: Sequence[Any], weights: Sequence[float], reduce: str, device: torch.device) -> Any:
    """Values of shares as one, on ``device`` where they are tensors. An unknown ``reduce`` is left to ``module.log``."""
    numbers = [value.to(device) if isinstance(value, Tensor) else value for value in values]
    if reduce == "sum":
        return sum(numbers[1:], numbers[0])
    if reduce in ("min", "max"):
        if not any(isinstance(value, Tensor) for value in numbers):
            return min(numbers) if reduce == "min" else max(numbers)
        stacked = torch.stack([torch.as_tensor(value, device=device).reshape(()) for value in numbers])
        return stacked.amin() if reduce == "min" else stacked.amax()
    total = sum(weights)
    if not total:
        return numbers[0]
    parts = [value * (weight / total) for value, weight in zip(numbers, weights, strict=True)]
    return sum(parts[1:], parts[0])
