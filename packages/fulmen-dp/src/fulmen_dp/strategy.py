"""One process that splits each batch over its devices."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import parallel_apply

from fulmen import Accelerator, ClusterEnvironment, ConfigurationError, Module, ModuleError, Strategy
from fulmen.contracts.data_hooks import move_to_device
from fulmen_dp.logged import ShareLog, log_together
from fulmen_dp.replicas import replicas
from fulmen_dp.split import gathered, merged, share, shares_of, size_of

Step = Callable[..., Any]


class DataParallelStrategy(Strategy):
    """One process, several devices: each works on its share of the batch, with a copy of the module.

    Results equal those of one device on the whole batch, as long as no layer mixes samples: the loss is the mean of the
    shares' losses, weighted by their sizes, and what is logged is combined likewise. Gradients are those of the original
    module. A module may define ``training_step_end(outputs)``, ``validation_step_end`` and ``test_step_end``: they get the
    outputs of all shares (numbers as a tensor with one element per share, other tensors joined) and return what the step
    is to return.

    On GPUs the shares run in threads at the same time. The first share uses the module itself, so attributes and buffers
    that a step sets are kept from that one and lost from the others. On the processor, ``devices=2`` runs the
    shares one after the other: for trying out and testing.

    One process feeds all devices, so this is slower than ``ddp``, which fulmen-ddp provides: prefer that.
    """

    name = "dp"
    step_hooks = ("training_step_end", "validation_step_end", "test_step_end")

    def connect(
        self, accelerator: Accelerator, devices: Sequence[torch.device], num_nodes: int, environment: ClusterEnvironment | None
    ) -> None:
        """Take the devices.

        Raises:
            ConfigurationError: There are several nodes.
        """
        if num_nodes != 1:
            raise ConfigurationError(f"strategy 'dp' works in one process, and num_nodes={num_nodes}; use strategy='ddp'")
        self._devices = list(devices)

    @property
    def root_device(self) -> torch.device:
        """The first device, which holds the module and combines results."""
        return self._devices[0]

    def setup_module(self, module: nn.Module) -> nn.Module:
        """``module`` on the first device; one without steps of its own as one whose ``forward`` splits its inputs."""
        module = module.to(self.root_device)
        return module if isinstance(module, Module) else SplitModule(module, self)

    # ---- Steps

    def wrap_step(self, module: Module, name: str, step: Step) -> Step:
        """``step`` on each device with its share of the batch.

        Raises:
            ModuleError: The module optimizes by itself: it would update the weights once for each share.
        """
        finish = getattr(module, f"{name}_end", None) if f"{name}_end" in self.step_hooks else None
        if len(self._devices) == 1 and finish is None:
            return step
        if name == "training_step" and not module.automatic_optimization:
            raise ModuleError(
                f"{type(module).__name__} sets automatic_optimization = False, and strategy 'dp' would step its optimizers "
                "once for each share of a batch; use one device, or strategy='ddp'"
            )
        takes = positional_arguments(getattr(module, name))

        @wraps(step)
        def split(batch: Any, *indices: Any) -> Any:
            outputs, sizes = self.run_shares(module, name, batch, indices[: takes - 1])
            if finish is not None:
                return finish(gathered(outputs))
            return merged(outputs, sizes, self.root_device, is_training=name == "training_step")

        return split

    def run_shares(self, module: Module, name: str, batch: Any, indices: tuple[Any, ...]) -> tuple[list[Any], list[int]]:
        """The outputs of a step for each share of ``batch``, and the sizes of the shares."""
        size = size_of(batch)
        shares = shares_of(size, len(self._devices))
        devices = self._devices[: len(shares)]
        parts = [move_to_device(share(batch, size, each), device) for each, device in zip(shares, devices, strict=True)]
        sizes = [stop - start for start, stop in shares]
        logs = [ShareLog(samples) for samples in sizes]
        modules = [module, *replicas(module, devices)]
        for each, log in zip(modules, logs, strict=True):
            each.__dict__["log"] = log  # stands before the method of the class
        try:
            outputs = self.run_all(modules, name, [(part, *indices) for part in parts], devices)
        finally:
            del module.__dict__["log"]
        log_together(module, logs, self.root_device)
        return outputs, sizes

    def run_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of ``module`` for inputs that are split over the devices, joined on the first."""
        size = size_of((args, kwargs))
        shares = shares_of(size, len(self._devices))
        devices = self._devices[: len(shares)]
        parts = [move_to_device(share((args, kwargs), size, each), to) for each, to in zip(shares, devices, strict=True)]
        calls = [_Call(each) for each in (module, *replicas(module, devices))]
        return gathered(self.run_all(calls, "forward", parts, devices))

    def run_all(
        self, modules: Sequence[nn.Module], name: str, arguments: Sequence[tuple[Any, ...]], devices: Sequence[torch.device]
    ) -> list[Any]:
        """Call a method of each module: on GPUs in threads at the same time, elsewhere one after the other."""
        if devices[0].type == "cpu" or len(modules) == 1:
            return [getattr(module, name)(*each) for module, each in zip(modules, arguments, strict=True)]
        calls = [_Call(getattr(module, name)) for module in modules]
        return parallel_apply(calls, [(each,) for each in arguments], devices=list(devices))


class _Call(nn.Module):
    """A function as a module: PyTorch runs modules in threads, with the gradient mode and streams of their devices."""

    def __init__(self, function: Step) -> None:
        super().__init__()
        object.__setattr__(self, "_function", function)  # not as a part of this module

    def forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Any:
        function: Step = self._function  # type: ignore[assignment]
        return function(*args, **(kwargs or {}))


class SplitModule(nn.Module):
    """A plain module whose ``forward`` works on all devices: for loops of one's own. Outputs are joined on the first."""

    def __init__(self, module: nn.Module, strategy: DataParallelStrategy) -> None:
        super().__init__()
        self.module = module
        object.__setattr__(self, "_strategy", strategy)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output for the whole batch."""
        outputs: Any = self._strategy.run_forward(self.module, args, kwargs)
        return outputs

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own, without a prefix."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The module's own, without a prefix."""
        return self.module.load_state_dict(state_dict, strict=strict, assign=assign)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def positional_arguments(method: Step) -> int:
    """How many positional arguments ``method`` takes; a large number where it takes any."""
    parameters = inspect.signature(method).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return sys.maxsize
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
