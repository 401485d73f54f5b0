"""Shares of a batch, and the outputs of shares as one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from fulmen import ModuleError

Share = tuple[int, int]
"""The first sample and the one after the last."""


def size_of(batch: Any) -> int:
    """The number of samples: the first dimension of the first tensor or array, depth first.

    Raises:
        ModuleError: There is none, so the batch cannot be split.
    """
    size = next(_sizes(batch), None)
    if size is None:
        raise ModuleError(
            f"strategy 'dp' cannot split a {type(batch).__name__} that holds no tensor with a first dimension; give batches "
            "with tensors, or use one device"
        )
    return size


def _sizes(data: Any) -> Iterator[int]:
    shape = getattr(data, "shape", None)
    if shape is not None:
        if len(shape):
            yield int(shape[0])
    elif isinstance(data, (Mapping, list, tuple)) or _is_record(data):
        for value in _parts(data):
            yield from _sizes(value)


def shares_of(size: int, count: int) -> list[Share]:
    """``size`` samples in at most ``count`` shares, none of them empty, that differ by one sample at most.

    >>> shares_of(5, 2), shares_of(2, 4)
    ([(0, 3), (3, 5)], [(0, 1), (1, 2)])
    """
    length, larger = divmod(size, count := max(1, min(size, count)))
    starts = [index * length + min(index, larger) for index in range(count + 1)]  # the larger shares first
    return list(pairwise(starts))


def share(data: Any, size: int, which: Share) -> Any:
    """The part of ``data`` that belongs to some samples.

    Tensors and arrays whose first dimension is ``size`` are cut there, and so are lists and tuples of ``size`` plain values
    such as strings. Collections are cut part by part. Everything else belongs to all shares.

    Raises:
        ModuleError: A part knows how to move to a device, but not how to be cut.
    """
    if isinstance(data, torch.Tensor) or getattr(data, "shape", None) is not None:
        return data[slice(*which)] if len(data.shape) and data.shape[0] == size else data
    if isinstance(data, (list, tuple)) and len(data) == size and not any(_is_collection(value) for value in data):
        return _like(data, data[slice(*which)])
    if isinstance(data, Mapping):
        return _with_items(data, {key: share(value, size, which) for key, value in data.items()})
    if callable(getattr(data, "to", None)):
        raise ModuleError(
            f"strategy 'dp' cannot split a {type(data).__name__}; make it in training_step from tensors of the batch, or use "
            "one device"
        )
    if isinstance(data, (list, tuple)):
        return _like(data, [share(value, size, which) for value in data])
    if _is_record(data):
        return _with_fields(data, {name: share(value, size, which) for name, value in _fields(data).items()})
    return data


def gathered(outputs: Sequence[Any]) -> Any:
    """The outputs of shares as one of the same form.

    Tensors without dimensions become one with an element per share; other tensors and lists are joined; mappings, tuples
    and dataclasses are joined part by part; other values become a list with one per share, ``None`` where all are ``None``.

    Raises:
        ModuleError: They do not have the same form.
    """
    first = outputs[0]
    if all(value is None for value in outputs):
        return None
    if not all(type(value) is type(first) for value in outputs):
        forms = ", ".join(type(value).__name__ for value in outputs)
        raise ModuleError(f"the steps of one batch must return the same form on all devices, and returned: {forms}")
    if isinstance(first, torch.Tensor):
        on_root = [value.to(first.device) for value in outputs]
        return torch.cat(on_root) if first.ndim else torch.stack(on_root)
    if isinstance(first, Mapping):
        if any(set(value) != set(first) for value in outputs):
            keys = "; ".join(", ".join(map(str, value)) for value in outputs)
            raise ModuleError(f"the steps of one batch must return the same keys on all devices, and returned: {keys}")
        return _with_items(first, {key: gathered([value[key] for value in outputs]) for key in first})
    if isinstance(first, list):
        return [value for each in outputs for value in each]
    if isinstance(first, tuple):
        return _like(first, [gathered(values) for values in zip(*outputs, strict=True)])
    if _is_record(first):
        return _with_fields(first, {name: gathered([getattr(each, name) for each in outputs]) for name in _fields(first)})
    return list(outputs)


def merged(outputs: Sequence[Any], sizes: Sequence[int], device: torch.device, is_training: bool) -> Any:
    """The outputs of shares as one step on the whole batch would return them.

    A loss (a tensor without dimensions, or one under ``"loss"``) is the mean of the losses, weighted by ``sizes``. Where they
    are to be trained on, a loss sum and its weight are added up. Everything else is as in :func:`gathered`. A share that
    returned ``None`` is left out.
    """
    given = [(output, size) for output, size in zip(outputs, sizes, strict=True) if output is not None]
    if len(given) < 2:
        return given[0][0] if given else None
    found, weights = [output for output, _ in given], [size for _, size in given]
    first = found[0]
    if isinstance(first, torch.Tensor):
        mean = first.is_floating_point() and (first.ndim == 0 or (is_training and first.numel() == 1))
        return _mean(found, weights, device) if mean else gathered(found)
    if isinstance(first, Mapping) and all(isinstance(each, Mapping) and "loss" in each for each in found):
        joined = gathered(found)
        joined["loss"] = merged([each["loss"] for each in found], weights, device, is_training)
        return joined
    if is_training and isinstance(first, Mapping) and {"loss_sum", "weight"} <= set(first):
        joined = gathered(found)
        joined["loss_sum"], joined["weight"] = (_sum([each[key] for each in found], device) for key in ("loss_sum", "weight"))
        return joined
    if is_training and isinstance(first, tuple) and len(first) == 2 and isinstance(first[0], torch.Tensor):
        return tuple(_sum([each[index] for each in found], device) for index in (0, 1))
    return gathered(found)


def _mean(values: Sequence[torch.Tensor], weights: Sequence[int], device: torch.device) -> torch.Tensor:
    total = sum(weights)
    parts = [value.to(device) * (weight / total) for value, weight in zip(values, weights, strict=True)]
    return sum(parts[1:], parts[0])


def _sum(values: Sequence[Any], device: torch.device) -> Any:
    numbers = [value.to(device) if isinstance(value, torch.Tensor) else value for value in values]
    return sum(numbers[1:], numbers[0])


# ---- Collections


def _is_record(data: Any) -> bool:
    return dataclasses.is_dataclass(data) and not isinstance(data, type)


def _is_collection(data: Any) -> bool:
    found = isinstance(data, (Mapping, list, tuple)) or _is_record(data)
    return found or hasattr(data, "shape") or callable(getattr(data, "to", None))


def _parts(data: Any) -> Iterator[Any]:
    yield from data.values() if isinstance(data, Mapping) else _fields(data).values() if _is_record(data) else data


def _fields(data: Any) -> dict[str, Any]:
    return {field.name: getattr(data, field.name) for field in dataclasses.fields(data) if hasattr(data, field.name)}


def _like(data: Any, values: Any) -> Any:
    return type(data)(*values) if hasattr(data, "_fields") else type(data)(values)


def _with_items(data: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if type(data) is dict:
        return items
    changed: Any = copy.copy(data)  # not by its constructor, which may take other arguments
    for key, value in items.items():
        changed[key] = value
    return changed


def _with_fields(data: Any, values: dict[str, Any]) -> Any:
    changed = copy.copy(data)
    for name, value in values.items():
        object.__setattr__(changed, name, value)  # also where it is frozen
    return changed
