"""A second set of a module's tensors, which can change places with the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fulmen import CheckpointError, ModuleError
from fulmen.errors import listing

MultiAverage = Callable[[list[Tensor], list[Tensor], Any], None]
"""Changes the first tensors in place; takes part in no gradient."""


class Flat(nn.Module):
    """Tensors without the module that they are from, so that copying them copies nothing else of the user's."""

    def __init__(self, parameters: list[Tensor], buffers: list[Tensor]) -> None:
        super().__init__()
        for index, tensor in enumerate(parameters):
            self.register_parameter(f"p{index}", nn.Parameter(tensor.detach(), requires_grad=False))
        for index, tensor in enumerate(buffers):
            self.register_buffer(f"b{index}", tensor.detach())


class AveragedWeights:
    """The averages of a module's parameters and buffers.

    Args:
        module: Whose.
        device: Where they are kept; ``None``: each beside the tensor that it is the average of.
        use_buffers: Whether buffers are averaged too. If not, they are those of the latest update.
        avg_fn: As ``torch.optim.swa_utils.AveragedModel`` takes it; ``None``: the mean.
        multi_avg_fn: Likewise, for lists of tensors. It must not depend on the number of averages.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device | None = None,
        *,
        use_buffers: bool,
        avg_fn: Callable[..., Tensor] | None = None,
        multi_avg_fn: MultiAverage | None = None,
    ) -> None:
        self.module, self.multi_avg_fn, self._device = module, multi_avg_fn, device
        self.swapped = False
        """Whether the averages are in the module, and what was there is here."""
        self.num_averaged = 0
        self._slots, self.positions = find_tensors(module)
        self.num_parameters = sum(is_parameter for is_parameter, _, _ in self._slots)
        live = self.live()
        flat = Flat(live[: self.num_parameters], live[self.num_parameters :])
        self._model = AveragedModel(flat, device, avg_fn=avg_fn, use_buffers=use_buffers)
        self._model.n_averaged = self._model.n_averaged.cpu()  # it is read on the host at each update
        self.tensors = [*self._model.module.parameters(), *self._model.module.buffers()]
        averaged = len(self.tensors) if use_buffers else self.num_parameters
        self._groups = groups_of(self.tensors[:averaged])
        self._copied = range(averaged, len(self.tensors))

    def live(self) -> list[Tensor]:
        """The module's tensors, in the order of :attr:`tensors`.

        Raises:
            ModuleError: One is gone since the average was begun.
        """
        try:
            return [owner[name] for _, owner, name in self._slots]
        except KeyError as error:
            raise ModuleError(
                f"{error} of {type(self.module).__name__} is gone since its weights are averaged: a module cannot change its "
                "parameters meanwhile. Pruning and freezing that replace parameters must come before"
            ) from None

    def update(self) -> None:
        """Take the present weights into the average; the first are copied."""
        if self.multi_avg_fn is None:
            self._model.update_parameters(Present(self.live(), self.num_parameters))  # type: ignore[arg-type]
        elif not self.num_averaged:
            copy(self.tensors, self.live())
        else:
            self._update_by_groups(self.multi_avg_fn)
        self.num_averaged += 1

    def _update_by_groups(self, average: MultiAverage) -> None:
        """What ``AveragedModel`` does, without reading a tensor on the host, and with groups that are found once."""
        mine, live = self.tensors, self.live()
        if self._device is not None:
            live = [tensor.detach().to(self._device) for tensor in live]
        for group in self._groups:
            average([mine[index] for index in group], [live[index] for index in group], self.num_averaged)
        if self._copied:
            copy([mine[index] for index in self._copied], [live[index] for index in self._copied])

    @torch.no_grad()
    def swap(self) -> None:
        """Let the averages and the module's weights change places, bit for bit. Costs the memory of one tensor more."""
        for mine, theirs in zip(self.tensors, self.live(), strict=True):
            kept = theirs.detach().clone()
            theirs.copy_(mine)
            mine.copy_(kept)
        self.swapped = not self.swapped

    @torch.no_grad()
    def share_buffers(self, broadcast: Callable[[Any], Any]) -> None:
        """Let every rank have the averaged buffers of rank 0. Goes through the host, and waits for the device.

        Parameters are equal on all ranks, and so are their averages. Buffers are not: each rank's batch normalisation has seen
        its own batches.
        """
        mine = self.tensors[self.num_parameters :]
        if mine:
            copy(mine, broadcast([tensor.cpu() for tensor in mine]))

    def to_host(self) -> None:
        """Free the device. The averages can be read and saved afterwards, and no longer updated."""
        self._model.cpu()
        self.tensors = [*self._model.module.parameters(), *self._model.module.buffers()]

    @property
    def averaged(self) -> list[Tensor]:
        """The averages, wherever they are."""
        return self.live() if self.swapped else self.tensors

    @property
    def trained(self) -> list[Tensor]:
        """The weights of the training, wherever they are."""
        return self.tensors if self.swapped else self.live()

    def named(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        """``tensors`` by the names that they have in the module's ``state_dict``; shared ones under each of theirs."""
        return {name: tensors[index].detach() for name, index in self.positions.items()}

    def state_dict(self) -> dict[str, Any]:
        """The averages and how many updates they are of."""
        return {"num_averaged": self.num_averaged, "averaged": self.named(self.averaged)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave.

        Raises:
            CheckpointError: The module has other tensors now.
        """
        saved = state["averaged"]
        wrong = sorted(set(saved) ^ set(self.positions))
        shapes = [n for n, i in self.positions.items() if n in saved and saved[n].shape != self.tensors[i].shape]
        if wrong or shapes:
            raise CheckpointError(
                f"the averaged weights of the checkpoint do not fit {type(self.module).__name__}: missing or unexpected: "
                f"{listing(wrong)}; other shapes: {listing(shapes)}"
            )
        for name, index in self.positions.items():
            self.tensors[index].copy_(saved[name])
        self.num_averaged = int(state["num_averaged"])
        self._model.n_averaged.fill_(self.num_averaged)


class Present:
    """What ``AveragedModel.update_parameters`` asks of a model."""

    def __init__(self, tensors: list[Tensor], num_parameters: int) -> None:
        self._parameters, self._buffers = tensors[:num_parameters], tensors[num_parameters:]

    def parameters(self) -> Iterator[Tensor]:
        """In the order of the average's."""
        return iter(self._parameters)

    def buffers(self) -> Iterator[Tensor]:
        """Likewise."""
        return iter(self._buffers)


Slot = tuple[bool, dict[str, Any], str]


def find_tensors(module: nn.Module) -> tuple[list[Slot], dict[str, int]]:
    """Where each parameter and buffer of ``module`` is kept, parameters first, and the index for each name."""
    slots: list[Slot] = []
    positions: dict[str, int] = {}
    seen: dict[int, int] = {}
    for are_parameters in (True, False):
        for prefix, part in module.named_modules(remove_duplicate=False):
            owner: dict[str, Any] = part._parameters if are_parameters else part._buffers
            for name, tensor in owner.items():
                if tensor is None:
                    continue
                if id(tensor) not in seen:
                    seen[id(tensor)] = len(slots)
                    slots.append((are_parameters, owner, name))
                positions[f"{prefix}.{name}" if prefix else name] = seen[id(tensor)]
    return slots, positions


def groups_of(tensors: list[Tensor]) -> list[list[int]]:
    """Indices of tensors that may be computed together: those of one device and format."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    return list(groups.values())


@torch.no_grad()
def copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each of ``sources`` into its target."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
