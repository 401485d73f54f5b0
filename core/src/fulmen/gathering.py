"""Objects that gather values with ``update`` until ``compute`` and ``reset``, such as metrics of torchmetrics: what they hold.

Most of what they hold is in no ``state_dict`` of a module. It belongs to one rank, and to an epoch that is not over, so a
checkpoint keeps it as part of what is unfinished.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fulmen.likeness import check_like

_COUNT = "_update_count"
"""Where torchmetrics keeps how often a metric was updated. It can be read as ``update_count``, and is needed for means."""


def gathers(value: Any) -> bool:
    """Whether ``value`` is such an object: by its class, since some objects have every attribute that they are asked for."""
    return all(callable(getattr(type(value), method, None)) for method in ("update", "compute", "reset"))


def gathering_parts(module: nn.Module) -> dict[str, Any]:
    """Those of a module by name: submodules, and attributes that are no modules."""
    parts = {name: part for name, part in module.named_modules() if name and gathers(part)}
    others = {name: part for name, part in vars(module).items() if not isinstance(part, (nn.Module, dict)) and gathers(part)}
    return {**parts, **others}


def says_what_it_holds(part: Any) -> bool:
    """Whether what a part holds can be saved: it is a torchmetrics metric, or has ``state_dict`` and ``load_state_dict``."""
    if isinstance(part, nn.Module):
        return isinstance(part, nn.ModuleDict) or hasattr(part, "metric_state") or bool(part.state_dict())
    return callable(getattr(part, "state_dict", None)) and callable(getattr(part, "load_state_dict", None))


def gathered(module: nn.Module) -> dict[str, dict[str, Any]]:
    """What each part of a module holds, as plain data of its own: later updates do not show."""
    parts = gathering_parts(module)
    for part in parts.values():
        if isinstance(part, nn.ModuleDict):  # a collection: its metrics share what they hold until somebody asks for them
            list(part.items())
    return {name: state for name, part in parts.items() if (state := _state(part))}


def _state(part: Any) -> dict[str, Any]:
    if isinstance(part, nn.ModuleDict):  # its metrics are parts too
        return {}
    if hasattr(part, "metric_state"):
        return {"values": _copy(part.metric_state), "updates": int(part.update_count)}
    if isinstance(part, nn.Module) or not says_what_it_holds(part):  # buffers are in the module's own state_dict
        return {}
    return {"state": _copy(part.state_dict())}


def put_back(module: nn.Module, saved: Mapping[str, Mapping[str, Any]], device: torch.device, source: str) -> list[str]:
    """Let the parts of a module hold what they held.

    Args:
        module: The module.
        saved: What :func:`gathered` gave.
        device: Where tensors go.
        source: The path of the checkpoint.

    Returns:
        The names of parts that gathered something and do not exist any more.

    Raises:
        CheckpointError: The state of an object is of another kind than its own.
        ValueError: A metric does not hold such values.
    """
    parts, missing = gathering_parts(module), []
    for name, state in saved.items():
        part = parts.get(name)
        if part is None or ("values" in state) != hasattr(part, "metric_state"):
            missing += [name] if state.get("updates", 1) else []
        elif "values" in state:
            _put_values(part, name, _copy(state["values"], device), int(state["updates"]))
        else:
            check_like(state["state"], part.state_dict(), source, name)
            part.load_state_dict(_copy(state["state"], device))
    return missing


def _put_values(part: Any, name: str, values: Mapping[str, Any], updates: int) -> None:
    own = part.metric_state
    for key, value in values.items():
        items = value if isinstance(value, list) else [value]
        if key not in own or type(value) is not type(own[key]) or not all(isinstance(item, torch.Tensor) for item in items):
            raise ValueError(f"{name} has no {key} such as the checkpoint holds: another metric, or other options")
        setattr(part, key, value)
    if hasattr(part, _COUNT):
        setattr(part, _COUNT, updates)


def _copy(value: Any, device: torch.device | None = None) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, Mapping):
        return {key: _copy(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copy(item, device) for item in value]
    return value
