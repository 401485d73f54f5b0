"""Copies of a module on other devices, through which gradients flow back to the module."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn

from fulmen import Module


def replicas(module: nn.Module, devices: Sequence[torch.device]) -> list[nn.Module]:
    """A copy of ``module`` for each device but the first, on which it is.

    Parameters of a copy are copies of the module's, made by operations that PyTorch differentiates: a backward pass adds
    to the gradients of the module. Buffers are copied, so what a step does to those of a copy is lost. Other
    attributes are shared. Costs one copy of each parameter per device and step.
    """
    return [_replica(module, device) for device in devices[1:]]


def _replica(module: nn.Module, device: torch.device) -> nn.Module:
    copies: dict[nn.Module, nn.Module] = {}
    tensors: dict[torch.Tensor, torch.Tensor] = {}  # shared parameters stay shared
    for part in module.modules():
        copies[part] = part._replicate_for_data_parallel()  # some layers have more to copy than others: recurrent ones
    for part, copy in copies.items():
        for name, child in part._modules.items():
            if child is not None:
                copy._modules[name] = copies[child]
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter not in tensors:
                tensors[parameter] = parameter.to(device, non_blocking=True)
            found: Any = None if parameter is None else tensors[parameter]
            setattr(copy, name, found)  # recurrent layers take note of it
            copy.__dict__.pop(name, None)
            copy._parameters[name] = found  # so that parameters() lists it
        for name, buffer in part._buffers.items():
            copy._buffers[name] = None if buffer is None else buffer.to(device, non_blocking=True, copy=True)
    replica = copies[module]
    if isinstance(replica, Module) and device != next(module.parameters(), torch.empty(0)).device:
        replica.__class__ = _placed(cast(Any, type(replica)), device)
    return replica


@lru_cache(maxsize=64)
def _placed(cls: Any, device: torch.device) -> type:
    """``cls``, whose ``device`` is not that of the run but that of a copy."""
    return type(cls.__name__, (cls,), {"device": property(lambda self: device), "__module__": cls.__module__})
