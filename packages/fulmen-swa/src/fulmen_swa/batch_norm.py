"""The statistics of batch normalisation for weights that no batch has gone through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from fulmen.errors import warn

if TYPE_CHECKING:
    from fulmen import Module, Trainer


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of ``module`` that keep statistics."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]


def has_batch_norm(module: nn.Module) -> bool:
    """Whether there are such."""
    return bool(batch_norms(module))


class Batch:
    """A batch that ``update_bn`` hands on whole, instead of its first part."""

    def __init__(self, content: Any, index: int) -> None:
        self.content, self.index = content, index


class Forward(nn.Module):
    """A module as ``update_bn`` calls it: through its ``training_step``, so that its layers see what they see in training.

    With manual optimization, which would update the weights, through its ``forward`` with the first part of the batch.
    """

    def __init__(self, trainer: Trainer, module: Module) -> None:
        super().__init__()
        self.wrapped = module
        step = trainer.runtime.precision.wrap_step(self._step)
        self.step: Any = step

    def forward(self, batch: Batch) -> None:
        """Compute, and throw the result away."""
        self.step(batch)

    def _step(self, batch: Batch) -> None:
        content, module = batch.content, cast(Any, self.wrapped)
        if not module.automatic_optimization:
            module(content[0] if isinstance(content, (list, tuple)) else content)
            return
        with torch.enable_grad():  # a step may differentiate by itself
            module.training_step(content, batch.index)


def update_batch_norm(trainer: Trainer, module: Module) -> bool:
    """Compute the statistics of ``module`` anew, as their mean over one pass over the training data.

    Uses ``torch.optim.swa_utils.update_bn``. Nothing is logged, no random number is used up, and every submodule is in the
    mode afterwards that it was in.

    Returns:
        Whether the pass was completed; ``False`` where a signal ended it.
    """
    seen = 0

    def batches() -> Iterator[Batch]:
        nonlocal seen
        for index, content in enumerate(trainer.another_pass()):
            if trainer.interrupted:
                return
            seen += 1
            yield Batch(content, index)

    layers = batch_norms(module)
    kept = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    modes = [(part, part.training) for part in module.modules()]
    momenta = [layer.momentum for layer in layers]
    # A method of the instance hides the class's, and taking it away shows that again.
    silent = [name for name in ("log", "log_dict") if name not in vars(module)]
    for name in silent:
        object.__setattr__(module, name, lambda *arguments, **options: None)
    try:
        update_bn(batches(), Forward(trainer, module))
    finally:
        for name in silent:
            object.__delattr__(module, name)
        for part, training in modes:
            part.training = training
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    if not seen:
        for layer, buffers in zip(layers, kept, strict=True):
            layer.load_state_dict(buffers, strict=False)
        if not trainer.interrupted:
            warn(
                "averaged-batch-norm",
                "the training data cannot be passed over once more, so batch normalisation keeps the statistics of the "
                "training's weights; give a loader that can be iterated again",
            )
    elif not trainer.interrupted:
        combine_ranks(trainer, layers)
    return not trainer.interrupted


@torch.no_grad()
def combine_ranks(trainer: Trainer, layers: list[_BatchNorm]) -> None:
    """One statistic of the shares of all ranks, taken as equally large."""
    if trainer.world_size == 1:
        return
    for layer in layers:
        mean, variance = layer.running_mean, layer.running_var
        if mean is None or variance is None:  # batch_norms() gives no such
            continue
        square = trainer.runtime.all_reduce(variance + mean.square())
        mean.copy_(trainer.runtime.all_reduce(mean.clone()))
        variance.copy_(square - mean.square())
