"""The parameters that are pruned: find them by name, give them masks, take the masks away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fulmen import ConfigurationError
from fulmen.errors import did_you_mean, listing


@dataclass(frozen=True)
class Target:
    """A parameter that may be pruned. ``layer.name`` is what ``forward`` uses, pruned or not."""

    full_name: str
    """As in the module's ``state_dict`` before pruning: ``"net.0.weight"``."""
    layer: nn.Module
    name: str

    @property
    def is_pruned(self) -> bool:
        """Whether it has a mask."""
        return f"{self.name}_mask" in self.layer._buffers

    @property
    def parameter(self) -> Tensor:
        """What the optimizer updates: the same object, pruned or not."""
        found = self.layer._parameters[f"{self.name}_orig" if self.is_pruned else self.name]
        assert found is not None, f"{self.full_name} is no parameter"
        return found

    @property
    def mask(self) -> Tensor:
        """1 where it is kept, 0 where it is pruned."""
        found = self.layer._buffers.get(f"{self.name}_mask")
        return torch.ones_like(self.parameter) if found is None else found

    def give_mask(self, mask: Tensor) -> None:
        """Let ``forward`` use ``parameter * mask``."""
        mask = mask.to(self.parameter.device)
        if self.is_pruned:
            self.layer.register_buffer(f"{self.name}_mask", mask)
            self.refresh()
        else:
            prune.custom_from_mask(self.layer, self.name, mask)

    def refresh(self) -> None:
        """Let the layer show its parameter as it is now, without waiting for its next ``forward``.

        Otherwise it shows what it was in the latest one: before the optimizer's last step, or before a checkpoint was loaded.
        """
        if self.is_pruned:  # .data: DDP of torch 2.6 writes into masks before it computes, which must not spoil the gradient
            setattr(self.layer, self.name, self.parameter * self.mask.data.to(self.parameter.dtype))

    def make_permanent(self) -> None:
        """Write the zeros into the parameter, and forget the mask."""
        if self.is_pruned:
            prune.remove(self.layer, self.name)


def find_targets(
    module: nn.Module, given: Sequence[Any] | None, names: Sequence[str] | None, at_least_dims: int
) -> list[Target]:
    """The parameters to prune.

    Args:
        module: The one that is trained.
        given: Pairs of a layer and a name, or full names; ``None``: all parameters that are called as in ``names``.
        names: ``None``: ``weight`` and ``bias``.
        at_least_dims: Where nothing is given, pass over those with fewer dimensions, such as biases.

    Raises:
        ConfigurationError: One does not exist, or there are none.
    """
    if given is not None:
        found = [_target(module, each) for each in given]
    else:
        wanted = tuple(names) if names is not None else ("weight", "bias")
        found = [
            Target(f"{prefix}.{name}" if prefix else name, layer, name)
            for prefix, layer in module.named_modules()
            for name in wanted
            if _has(layer, name)
        ]
        if names is None:
            found = [target for target in found if target.parameter.ndim >= at_least_dims]
    if not found:
        raise ConfigurationError(
            f"ModelPruning finds nothing to prune in {type(module).__name__}: parameters_to_prune={given!r}, "
            f"parameter_names={names!r}; its parameters are: {listing(name for name, _ in module.named_parameters())}"
        )
    return found


def _has(layer: nn.Module, name: str) -> bool:
    return layer._parameters.get(name) is not None or layer._parameters.get(f"{name}_orig") is not None


def _target(module: nn.Module, given: Any) -> Target:
    if isinstance(given, str):
        path, _, name = given.rpartition(".")
        layers = dict(module.named_modules())
        if path in layers and _has(layers[path], name):
            return Target(given, layers[path], name)
        known = [each for each, _ in module.named_parameters()]
        raise ConfigurationError(
            f"parameters_to_prune names {given!r}, which {type(module).__name__} does not have{did_you_mean(given, known)}; it "
            f"has: {listing(known)}"
        )
    if not (isinstance(given, (tuple, list)) and len(given) == 2 and isinstance(given[0], nn.Module)):
        raise ConfigurationError(
            f"parameters_to_prune holds {given!r}; allowed are pairs (layer, 'weight'), and names such as 'net.0.weight'"
        )
    layer, name = given
    path_of = next((path for path, each in module.named_modules() if each is layer), None)
    if path_of is None:
        raise ConfigurationError(
            f"parameters_to_prune holds a {type(layer).__name__} that is no part of {type(module).__name__}; give names such "
            "as 'net.0.weight', or make the callback in configure_callbacks"
        )
    if not _has(layer, name):
        raise ConfigurationError(
            f"parameters_to_prune asks for {name!r} of a {type(layer).__name__}, which has: {listing(layer._parameters)}"
        )
    return Target(f"{path_of}.{name}" if path_of else name, layer, name)
