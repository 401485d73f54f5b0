"""A training step as the forward pass of a DDP module; also where it gives no loss on some ranks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fulmen import Module, ModuleError, Strategy
from fulmen.contracts.strategy import STAND_IN
from fulmen.errors import listing
from fulmen_ddp import group

_trainings: list[int] = [0]
"""How many were begun in this process; the same number on every rank."""


class StepModule(nn.Module):
    """A module whose forward pass is a step of another, so that DDP prepares for its gradients."""

    stand_ins: StandIns
    _step: Callable[..., Any]
    _strategy: Strategy
    _progress: Any
    _has_form: bool

    def __init__(self, module: Module, step: Callable[..., Any], strategy: Strategy) -> None:
        super().__init__()
        self.module = module
        progress = module.trainer.progress
        self.__dict__.update(_step=step, _strategy=strategy, _progress=progress, stand_ins=StandIns(module), _has_form=False)

    def forward(self, *args: Any) -> Any:
        """What the step returns; where that is no loss, a stand-in with which this rank joins the exchange of gradients."""
        self.stand_ins.calls += 1
        joins = self._progress.batch >= self._strategy.own_batches and self._strategy.uneven == "join"
        outputs = None if joins else self._step(*args)
        if type(outputs) is not Tensor and not has_loss(outputs):
            return self.stand_ins.make()
        if not self._has_form:
            self.__dict__["_has_form"] = True
            self.stand_ins.say_form(outputs)
        return outputs


def naming_unused(step: Callable[..., Any], module: Module, remedy: str) -> Callable[..., Any]:
    """The forward pass of a DDP module, which says by name which parameters took no part in the loss of the batch before.

    Args:
        step: The forward pass.
        module: Whose parameters they are.
        remedy: What to do where DDP was not asked to look for them; empty where it was.
    """

    def checked(*args: Any) -> Any:
        try:
            return step(*args)
        except RuntimeError as error:
            found = re.search(r"did not receive grad for rank (\d+): ([\d ]*\d)", str(error))
            if found is None or "find_unused_parameters" not in str(error):
                raise
            names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
            unused = listing(names[int(index)] for index in found[2].split())
            raise ModuleError(
                f"some parameters took no part in the loss of the batch before, on rank {found[1]}, and the gradients of the "
                f"ranks cannot be averaged without them: {unused}. {remedy or 'Return nothing but the loss'}"
            ) from None

    return checked


def has_loss(outputs: Any) -> bool:
    """Whether there is a loss in what a step returned. What is neither is for the trainer to refuse."""
    return outputs is not None and not (isinstance(outputs, Mapping) and "loss" in outputs and outputs["loss"] is None)


class StandIns:
    """Losses of zero, for batches of this rank that give none: the other ranks wait for its gradients.

    Ranks that have a loss need not know. Those that have none count it in the store, and when gradients are exchanged, all of
    them see the same counts: a batch for which no rank had a loss does not count, as in one process. So a step costs
    nothing more unless it has no loss.
    """

    def __init__(self, module: Module) -> None:
        _trainings[0] += 1
        self.module, self.name = module, f"training/{_trainings[0]}"
        self.calls = 0  # of the step, the same number on every rank
        self._open: list[int] = []  # calls of this window that gave no loss

    def make(self) -> dict[str, Tensor]:
        """A loss of zero on which every parameter depends."""
        board = group.board()
        assert board is not None  # there are other ranks
        board.add(f"{self.name}/skipped/{self.calls}")
        self._open.append(self.calls)
        nothing = [parameter.flatten()[:0].sum() for parameter in self.module.parameters() if parameter.requires_grad]
        return {STAND_IN: torch.stack([each.to(nothing[0]) for each in nothing]).sum()}

    def say_form(self, outputs: Any) -> None:
        """At the first loss of a training: tell ranks that have none yet whether losses are sums with weights."""
        board = group.board()
        assert board is not None
        found = outputs.get("loss", outputs) if isinstance(outputs, Mapping) else outputs
        if not isinstance(found, Tensor):
            board.write(f"{self.name}/weighted", "yes")

    def settle(self) -> tuple[int, bool]:
        """How many of the open calls gave no loss on any rank, and whether losses are sums with weights."""
        board = group.board()
        assert board is not None
        gradient = next(p.grad for p in self.module.parameters() if p.grad is not None)
        gradient.flatten()[:1].tolist()  # waits for the device: then all ranks have come to the exchange, and have counted
        empty = sum(board.add(f"{self.name}/skipped/{call}", 0) == board.size for call in self._open)
        self._open = []
        return empty, board.read(f"{self.name}/weighted") is not None
