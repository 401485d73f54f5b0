"""Batch norm over all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class HostSyncBatchNorm(_BatchNorm):
    """What ``nn.SyncBatchNorm`` does on GPUs, on the processor. The state is that of the layer which it replaces."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any ``[N, C, ...]``."""

    def forward(self, input: Tensor) -> Tensor:
        """``input`` ``[N, C, ...]``, normalised per channel over all samples of all ranks."""
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        return self._forward_on_host(input)

    def _forward_on_host(self, input: Tensor) -> Tensor:
        others = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        count = torch.tensor([input.numel() / input.shape[1]], dtype=torch.float64)
        sums = torch.cat([input.sum(others).double(), input.square().sum(others).double(), count])
        sums = sum_over_ranks(sums)
        channels, total = input.shape[1], sums[-1]
        mean = sums[:channels] / total
        variance = (sums[channels:-1] / total - mean.square()).clamp_min(0)
        self._track(mean.detach(), variance.detach(), float(total.detach()))
        scale = (variance + self.eps).rsqrt().to(input.dtype)
        normal = (input - mean.to(input.dtype).view(shape)) * scale.view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal

    def _track(self, mean: Tensor, variance: Tensor, total: float) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
            unbiased = variance * (total / max(total - 1, 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class SumOverRanks(torch.autograd.Function):
    """The sum over all ranks, of values and of gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """The sum."""
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The sum of the gradients, because the value of each rank is part of the losses of all."""
        summed = gradient.clone()
        dist.all_reduce(summed)
        return summed


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over all ranks, through which gradients flow."""
    summed: Tensor = SumOverRanks.apply(tensor)  # type: ignore[no-untyped-call]
    return summed


class Synced:
    """Batch norm layers that compute over all ranks, until :meth:`undo`. They stay the same objects, with what they hold."""

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, type[nn.Module]]] = []

    def convert(self, module: nn.Module, device: torch.device) -> None:
        """Let all layers of ``module`` do so."""
        kind = HostSyncBatchNorm if device.type == "cpu" else nn.SyncBatchNorm
        for layer in module.modules():
            if isinstance(layer, _BatchNorm) and not isinstance(layer, kind):
                self._before.append((layer, type(layer)))
                layer.__class__ = kind
                layer.__dict__.setdefault("process_group", None)  # nn.SyncBatchNorm takes it for all ranks

    def undo(self) -> None:
        """Let each be what it was."""
        for layer, kind in self._before:
            layer.__class__ = kind
            if not issubclass(kind, nn.SyncBatchNorm):
                layer.__dict__.pop("process_group", None)
        self._before.clear()
