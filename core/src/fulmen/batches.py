"""What can be said of a batch whatever its shape: move it to a device, map its tensors, count its samples."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from fulmen.errors import ModuleError, warn


def move_to_device(batch: Any, device: torch.device | str) -> Any:
    """``batch`` with everything that has ``.to(device)`` moved; copies do not wait for the device.

    Args:
        batch: A tensor, an object with ``.to``, or a mapping, list, tuple, named tuple or dataclass of these, nested
            as deep as you like. Anything else (strings, numbers, ``None``) is returned as it is.
        device: Where to.

    >>> move_to_device({"x": [torch.zeros(2)], "name": "a"}, "cpu")
    {'x': [tensor([0., 0.])], 'name': 'a'}
    """
    return map_tensors(batch, lambda tensor: _move(tensor, device))


def _move(value: Any, device: torch.device | str) -> Any:
    # non_blocking is safe towards a device: later work on its stream waits for the copy. Towards the host it is not.
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=torch.device(device).type != "cpu")
    return value.to(device)


def map_tensors(data: Any, function: Callable[[Any], Any]) -> Any:
    """``data`` with ``function`` applied to every tensor and every object that has ``.to``."""
    if isinstance(data, torch.Tensor) or callable(getattr(data, "to", None)):
        return function(data)
    if isinstance(data, Mapping):
        items = {key: map_tensors(value, function) for key, value in data.items()}
        if type(data) is dict:
            return items
        return _replaced(data, items) if isinstance(data, dict) else type(data)(items)  # type: ignore[call-arg]
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(map_tensors(value, function) for value in data))
    if isinstance(data, (list, tuple)):
        return type(data)(map_tensors(value, function) for value in data)
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        changed = copy.copy(data)  # not by its constructor, which may take other arguments, or compute
        for field in dataclasses.fields(data):
            if hasattr(data, field.name):
                object.__setattr__(changed, field.name, map_tensors(getattr(data, field.name), function))  # also frozen ones
        return changed
    return data


def _replaced(data: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    """A copy of a dictionary of some subclass, such as ``defaultdict``, with other values."""
    changed = copy.copy(data)
    changed.update(items)
    return changed


def batch_size_of(batch: Any) -> int:
    """The first dimension of the first tensor or array in ``batch``, depth first; 1 for one without dimensions.

    Raises:
        ModuleError: There is none.
    """
    size = next(_sizes(batch), None)
    if size is None:
        raise ModuleError(
            f"the batch size cannot be told from a {type(batch).__name__}, which holds no tensor; "
            "pass it: self.log(..., batch_size=len(batch))"
        )
    return size


def warn_if_ambiguous(batch: Any) -> None:
    """Warn where the tensors of ``batch`` do not agree on a batch size."""
    sizes = list(_sizes(batch))
    if len(set(sizes)) > 1:
        warn(
            "batch-size",
            f"the tensors of a batch differ in their first dimension {sizes}; the first is taken as the batch size that "
            "weighs epoch means. Pass the right one: self.log(..., batch_size=...)",
        )


def _sizes(data: Any) -> Iterator[int]:
    shape = getattr(data, "shape", None)
    if shape is not None:
        yield int(shape[0]) if len(shape) else 1
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from _sizes(value)
    elif isinstance(data, (list, tuple)):
        for value in data:
            yield from _sizes(value)
    elif dataclasses.is_dataclass(data) and not isinstance(data, type):
        for field in dataclasses.fields(data):
            yield from _sizes(getattr(data, field.name))
