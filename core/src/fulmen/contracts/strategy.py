"""How the processes of a run share the work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.contracts.accelerator import Accelerator
from fulmen.contracts.environment import ClusterEnvironment
from fulmen.contracts.launcher import Launcher
from fulmen.errors import ConfigurationError

if TYPE_CHECKING:
    from fulmen.contracts.module import Module

ReduceOp = Literal["sum", "mean", "min", "max"]
T = TypeVar("T")
Step = Callable[..., Any]
STAND_IN = "fulmen.stand_in"
"""Key of a loss of zero that a wrapped ``training_step`` returns for one that gave none, where other ranks may wait for it."""


class Strategy(ABC):
    """Owns the ranks, the root device and every collective. The defaults are right for one process."""

    name: str

    step_hooks: tuple[str, ...] = ()
    """Methods of a module that this strategy calls itself and nobody else does, such as ``training_step_end``."""

    uneven: Literal["drop", "pad", "join"] | None = None
    """What happens where ranks have different numbers of training batches. ``"drop"``: an epoch ends on all of them with the
    first that has no more. ``"pad"``: batches come again until the last has no more. ``"join"``: each batch comes once, and
    ranks that have no more take part with gradients of zero. ``None``: samples that can be shared come again where they
    cannot be divided, and other batches are dropped."""

    own_batches: float = float("inf")
    """Set on a rank that has no more training batches while others have: so many it had in this epoch. With ``"join"``, the
    steps after them must give no loss."""

    launcher: Launcher | None = None
    """What makes the processes; ``None`` where this process is all there is, or where others exist already."""

    @abstractmethod
    def connect(
        self,
        accelerator: Accelerator,
        devices: Sequence[torch.device],
        num_nodes: int,
        environment: ClusterEnvironment | None,
    ) -> None:
        """Learn what there is to work with. Called once, before anything is launched.

        Raises:
            ConfigurationError: This strategy cannot work with these devices or nodes.
        """

    @property
    @abstractmethod
    def root_device(self) -> torch.device:
        """The device of this process."""

    def setup_environment(self) -> None:
        """Join the other processes. Called in every process, before modules are moved."""

    def teardown(self) -> None:
        """Leave the other processes. Called in every process, also after an exception; may be called twice."""

    # ---- Ranks

    @property
    def world_size(self) -> int:
        """How many processes take part."""
        return 1

    @property
    def global_rank(self) -> int:
        """The index of this process among all, from 0."""
        return 0

    @property
    def local_rank(self) -> int:
        """The index of this process on its node."""
        return 0

    @property
    def node_rank(self) -> int:
        """The index of this node."""
        return 0

    # ---- Modules and steps

    def setup_module(self, module: nn.Module) -> nn.Module:
        """``module`` on its device and wrapped as the strategy needs it."""
        return module.to(self.root_device)

    def setup_optimizers(self, optimizers: list[Optimizer]) -> list[Optimizer]:
        """``optimizers`` as the strategy needs them."""
        return optimizers

    def wrap_step(self, module: Module, name: str, step: Step) -> Step:
        """The function that runs the user's ``step`` (``training_step``, ...) under this strategy.

        Called once per run, not per step. Return ``step`` itself where nothing needs to happen around it.
        """
        return step

    def prepare_evaluation(self, module: nn.Module) -> None:
        """Called on every rank before an evaluation: let all evaluate the same module, that of a checkpoint."""

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any] | None:
        """A context without gradient exchange, for all but the last batch of an accumulation; ``None``: none needed."""
        return None

    def settle_stand_ins(self) -> tuple[int, bool]:
        """Called on a rank that stood in for losses (:data:`STAND_IN`), when the gradients of the window are exchanged.

        Returns:
            For how many of these batches no rank had a loss, and whether the losses of the others are sums with weights.
        """
        return 0, False

    def backward(self, module: nn.Module, loss: Tensor) -> None:
        """Compute gradients. Called only where overridden: elsewhere it is ``loss.backward()`` itself."""
        loss.backward()

    def clip_grad_norm(self, parameters: Sequence[Tensor], max_norm: float) -> Tensor:
        """Scale the gradients of ``parameters`` so that their total 2-norm is at most ``max_norm``; the norm before."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def sampler_arguments(self) -> dict[str, int] | None:
        """``{"num_replicas": ..., "rank": ...}`` where each process sees a share of the data; ``None`` otherwise."""
        return None

    # ---- Collectives: the same call on every rank, in the same order

    def all_reduce(self, tensor: Tensor, op: ReduceOp = "sum") -> Tensor:
        """``tensor`` combined over all ranks, on every rank."""
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, stacked: ``[world_size, *tensor.shape]``."""
        return tensor.unsqueeze(0)

    def all_gather_with_gradient(self, tensor: Tensor) -> Tensor:
        """The same, through which gradients flow: that of a rank's tensor is the sum over the losses of all ranks.

        Raises:
            ConfigurationError: This strategy cannot do that.
        """
        if self.world_size > 1:
            raise ConfigurationError(
                f"strategy {self.name!r} has no all_gather through which gradients flow; use strategy='ddp'"
            )
        return tensor.unsqueeze(0)

    def broadcast(self, value: T, source: int = 0) -> T:
        """The plain value or tensor of rank ``source``, on every rank."""
        return value

    def barrier(self, name: str = "") -> None:
        """Wait until every rank is here."""

    def agree(self, flags: int) -> int:
        """The bitwise *or* of the small integers of all ranks: how a stop on one rank reaches the others."""
        return flags

    # ---- State

    def module_state(self, module: nn.Module) -> dict[str, Any]:
        """The complete ``state_dict`` of ``module``, as rank 0 saves it."""
        return module.state_dict()

    def load_module_state(self, module: nn.Module, state: dict[str, Any], strict: bool = True) -> Any:
        """Put a complete ``state_dict`` back."""
        return module.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The complete ``state_dict`` of ``optimizer``, as rank 0 saves it."""
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Put a complete ``state_dict`` back."""
        optimizer.load_state_dict(state)

    def portable(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint as a file can hold it, for devices whose tensors a file cannot: those on the host in their place."""
        return checkpoint

    def init_context(self) -> AbstractContextManager[Any]:
        """The context in which a module is built, for strategies that shard while building."""
        return nullcontext()
