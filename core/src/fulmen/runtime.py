"""Accelerator, strategy and precision joined: what the trainer trains with, and what a loop of your own can use.

>>> runtime = Runtime(accelerator="cpu")
>>> model, optimizer = runtime.setup(nn.Linear(2, 1), torch.optim.SGD, lr=0.1)
>>> loss = model(torch.ones(4, 2)).mean()
>>> runtime.backward(loss)
>>> runtime.step(optimizer)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.batches import map_tensors, move_to_device
from fulmen.contracts.accelerator import Accelerator
from fulmen.contracts.environment import ClusterEnvironment
from fulmen.contracts.module import Module, load_weights
from fulmen.contracts.precision import Precision
from fulmen.contracts.ranks import in_run_of
from fulmen.contracts.stateful import Stateful
from fulmen.contracts.strategy import ReduceOp, Strategy
from fulmen.errors import ConfigurationError, PluginError, listing, warn
from fulmen.hooks import overrides
from fulmen.known import KNOWN, install_line
from fulmen.optimizers import OptimizerHandle
from fulmen.plugins import PluginSet
from fulmen.source import Source, distributed
from fulmen.storage import read_checkpoint, write_checkpoint

Result = TypeVar("Result")
Devices = int | str | Sequence[int]
PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true", "None": "32-true"}
"""Short spellings of precisions."""


class Runtime:
    """The devices, processes and number formats that a module trains with.

    Args:
        accelerator: ``"auto"`` (the best that is available), a name, or an :class:`Accelerator`.
        strategy: ``"auto"`` (one process for one device, else ``"ddp"``), a name, or a :class:`Strategy`.
        devices: ``"auto"``, a count, or indices; see :meth:`Accelerator.parse_devices`. ``None`` is ``"auto"`` in all three.
        num_nodes: Machines that take part.
        precision: A name such as ``"bf16-mixed"``, or a :class:`Precision`.
        environment: Where the processes come from; ``None`` detects it.
        plugins: The plugins to find names in; ``None`` discovers them.

    Raises:
        ConfigurationError: The parts do not fit each other or this machine.
        PluginError: A name is not provided by anything installed.
    """

    def __init__(
        self,
        accelerator: str | Mapping[str, Any] | Accelerator | None = "auto",
        strategy: str | Mapping[str, Any] | Strategy | None = "auto",
        devices: Devices | None = "auto",
        num_nodes: int = 1,
        precision: str | int | Mapping[str, Any] | Precision | None = None,
        *,
        environment: ClusterEnvironment | None = None,
        plugins: PluginSet | None = None,
    ) -> None:
        self.plugins = plugins or PluginSet.discover()
        self.accelerator = choose_accelerator("auto" if accelerator is None else accelerator, self.plugins)
        indices = self.accelerator.parse_devices("auto" if devices is None else devices)
        found = self.accelerator.devices(indices)
        self.environment = environment or detect_environment(self.plugins)
        if strategy is None or strategy == "auto":
            several = self.environment is not None and self.environment.world_size() > 1
            alone = len(found) == 1 and num_nodes == 1 and not several
            strategy = self.accelerator.default_strategy or ("single_device" if alone else "ddp")
        self.strategy: Strategy = self.plugins.build("strategy", strategy)
        self.strategy.connect(self.accelerator, found, num_nodes, self.environment)
        if isinstance(precision, (str, int)) or precision is None:
            precision = PRECISIONS.get(str(precision), str(precision))
        self.precision: Precision = self.plugins.build("precision", precision)
        self.precision.connect(found[0])
        self.devices, self.num_nodes = found, num_nodes
        self._open = False

    # ---- Processes

    def launch(self, function: Callable[..., Result], *args: Any) -> Result:
        """Run ``function(*args)`` in every process; in this one alone where there is nothing to launch."""
        if self.strategy.launcher is None:
            return function(*args)
        return self.strategy.launcher.launch(function, *args)

    @property
    def must_launch(self) -> bool:
        """Whether what is to run on all ranks must go through :meth:`launch`."""
        return self.strategy.launcher is not None

    @property
    def starts_processes(self) -> bool:
        """Whether :meth:`launch` would start processes."""
        return self.strategy.launcher is not None and self.strategy.launcher.starts_processes

    def open(self) -> None:
        """Take the device and join the other processes. The trainer does this; in a loop of your own, first use does."""
        if not self._open:
            self.strategy.setup_environment()
            self.accelerator.setup_device(self.device)
            self._open = True
            in_run_of(self.strategy)

    def close(self) -> None:
        """Leave the other processes and free the device."""
        if self._open:
            self._open = False
            in_run_of(None)
            with ExitStack() as stack:  # each is told, even where one fails
                for part in (self.accelerator, self.strategy, self.precision):
                    stack.callback(part.teardown)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.strategy.root_device

    @property
    def world_size(self) -> int:
        """How many processes take part."""
        return self.strategy.world_size

    @property
    def global_rank(self) -> int:
        """The index of this process among all."""
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        """The index of this process on its node."""
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        """The index of this node."""
        return self.strategy.node_rank

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.strategy.global_rank == 0

    def print(self, *args: Any, **kwargs: Any) -> None:
        """``print`` on rank 0."""
        if self.is_global_zero:
            print(*args, **kwargs)  # noqa: T201

    # ---- Setting up

    def setup(self, module: nn.Module, *optimizers: Any, **arguments: Any) -> Any:
        """``module`` on its device and in its precision, and its optimizers.

        Args:
            module: Any ``nn.Module``.
            *optimizers: Optimizers of its parameters, or one class, which is then called with the parameters.
            **arguments: Of that class.

        Returns:
            The module, followed by the optimizers where there are any.
        """
        made = list(optimizers)
        prepared = self.setup_module(module)
        if len(made) == 1 and isinstance(made[0], type):
            made = [made[0](module.parameters(), **arguments)]
        return (prepared, *self.setup_optimizers(*made)) if made else prepared

    def setup_module(self, module: nn.Module) -> nn.Module:
        """``module`` on its device, in its precision, and wrapped as the strategy needs it."""
        self.open()
        wrapped = self.strategy.setup_module(self.precision.convert_module(module))
        if overrides(self.precision, "wrap_step", Precision) or overrides(self.precision, "convert_input", Precision):
            return PreciseModule(wrapped, module, self.precision)
        return wrapped

    def setup_optimizers(self, *optimizers: Optimizer) -> list[Optimizer]:
        """``optimizers`` as the strategy needs them."""
        return self.strategy.setup_optimizers(list(optimizers))

    def setup_dataloaders(self, *loaders: Iterable[Any], use_distributed_sampler: bool = True) -> Any:
        """``loaders`` with each rank seeing its share, and batches arriving on the device. One in, one out."""
        arguments = self.strategy.sampler_arguments() if use_distributed_sampler else None
        shared = [loader if arguments is None else distributed(loader, arguments, shuffle=True, seed=0) for loader in loaders]
        made = [DeviceLoader(loader, self.device, self.accelerator) for loader in shared]
        return made[0] if len(made) == 1 else made

    def init_module(self) -> AbstractContextManager[Any]:
        """The context in which to build a module: directly on its device and in its precision."""
        stack = ExitStack()
        for context in (self.device, self.precision.init_context(), self.strategy.init_context()):
            stack.enter_context(context)
        return stack

    def to_device(self, data: Any) -> Any:
        """A module, tensor or collection of tensors on the device of this process."""
        return move_to_device(data, self.device)

    # ---- Steps

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for computations outside the module's ``forward`` in the run's precision."""
        return self.precision.forward_context()

    def wrap_step(self, module: Module, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        """The user's step under strategy and precision; the step itself where neither has anything to do."""
        return self.precision.wrap_step(self.strategy.wrap_step(module, name, step))

    def no_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """A context without gradient exchange between ranks, for all but the last batch of an accumulation."""
        return (self.strategy.no_sync(module) if enabled else None) or nullcontext()

    def backward(self, loss: Tensor, module: nn.Module | None = None, *args: Any, **kwargs: Any) -> None:
        """Compute gradients."""
        loss = self.precision.scale_loss(loss)
        if isinstance(module, Module) and overrides(module, "backward", Module):
            module.backward(loss, *args, **kwargs)
        elif module is not None and overrides(self.strategy, "backward", Strategy):
            self.strategy.backward(module, loss)
        else:
            loss.backward(*args, **kwargs)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters, in the run's precision."""
        return self.precision.optimizer_step(optimizer, closure)

    step = optimizer_step

    def clip_gradients(self, subject: Optimizer | nn.Module, value: float, algorithm: str = "norm") -> Tensor | None:
        """Clip gradients.

        Args:
            subject: The optimizer or module whose parameters' gradients are meant.
            value: The largest total norm, or the largest absolute value of an element.
            algorithm: ``"norm"`` or ``"value"``.

        Returns:
            The norm before, for ``"norm"``.

        Raises:
            ConfigurationError: The algorithm is another, or a module is given where the precision scales gradients.
        """
        if isinstance(subject, nn.Module):
            if overrides(self.precision, "unscale", Precision):
                raise ConfigurationError(
                    f"the gradients of a module cannot be clipped in precision {self.precision.name!r}, which scales them for "
                    "each optimizer: pass the optimizer to clip_gradients"
                )
            parameters = list(subject.parameters())
        else:
            self.precision.unscale(subject.optimizer if isinstance(subject, OptimizerHandle) else subject)
            parameters = [parameter for group in subject.param_groups for parameter in group["params"]]
        if algorithm == "norm":
            return self.strategy.clip_grad_norm(parameters, value)
        if algorithm != "value":
            raise ConfigurationError(f"gradient clipping algorithm {algorithm!r}; allowed are 'norm' and 'value'")
        nn.utils.clip_grad_value_(parameters, value)
        return None

    # ---- Collectives

    def all_reduce(self, data: Any, op: ReduceOp = "mean") -> Any:
        """Tensors combined over all ranks; collections of tensors likewise."""
        return map_tensors(data, lambda tensor: self.strategy.all_reduce(tensor, op))

    def all_gather(self, data: Any, sync_grads: bool = False) -> Any:
        """Tensors of all ranks, stacked in a new first dimension; collections of tensors likewise. One rank: unchanged.

        ``sync_grads``: whether gradients flow through it; every rank must then compute them.
        """
        gather = self.strategy.all_gather_with_gradient if sync_grads else self.strategy.all_gather
        return data if self.world_size == 1 else map_tensors(data, gather)

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """The value of rank ``source``, on every rank."""
        return self.strategy.broadcast(value, source)

    def barrier(self, name: str = "") -> None:
        """Wait until every rank is here."""
        self.strategy.barrier(name)

    # ---- Files

    def save(self, path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
        """Write a checkpoint; rank 0 does it, and the others wait.

        Args:
            path: Where to.
            state: Plain data, and modules, optimizers and other objects with ``state_dict``.
        """
        payload = self.strategy.portable({key: self._state_of(value) for key, value in state.items()})
        if self.is_global_zero:
            write_checkpoint(payload, path)
        self.barrier("save")

    def load(self, path: str | os.PathLike[str], state: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Read a checkpoint; the objects in ``state`` take over theirs, and the rest is returned.

        Raises:
            CheckpointError: It cannot be read, lacks a key of ``state``, or does not fit.
        """
        payload = read_checkpoint(path, map_location="cpu")
        for key, value in (state or {}).items():
            if key not in payload:
                raise ConfigurationError(f"{path} has no {key!r}; it holds: {listing(payload)}")
            if isinstance(value, nn.Module):
                load_weights(value, payload.pop(key), strict=True, source=str(path))
            elif isinstance(value, Stateful):
                value.load_state_dict(payload.pop(key))
        return payload

    def _state_of(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self.strategy.module_state(value)
        if isinstance(value, Optimizer):
            return self.strategy.optimizer_state(value)
        return value.state_dict() if isinstance(value, Stateful) else value


class PreciseModule(nn.Module):
    """A module whose ``forward`` runs in a precision; everything else is the module's own."""

    def __init__(self, wrapped: nn.Module, original: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.wrapped = wrapped
        object.__setattr__(self, "_original", original)
        object.__setattr__(self, "_precision", precision)
        object.__setattr__(self, "_forward", precision.wrap_step(wrapped))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output."""
        args, kwargs = self._precision.convert_input((args, kwargs))
        return self._forward(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own, without a prefix."""
        return self._original.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The module's own, without a prefix."""
        return self._original.load_state_dict(state_dict, strict=strict, assign=assign)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_original"), name)


class DeviceLoader:
    """A loader whose batches arrive on a device, brought there by an accelerator where that has a way of its own."""

    def __init__(self, loader: Iterable[Any], device: torch.device, accelerator: Accelerator | None = None) -> None:
        self.loader, self.device, self.accelerator = loader, device, accelerator

    def __iter__(self) -> Iterator[Any]:
        move = lambda batch: move_to_device(batch, self.device)  # noqa: E731
        if self.accelerator is None:
            return map(move, self.loader)
        return self.accelerator.batches(iter(self.loader), move, ahead=Source(self.loader, "loader").gives_ahead)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler which epoch follows, so that its order differs from the one before."""
        sampler = getattr(self.loader, "sampler", None)
        if callable(getattr(sampler, "set_epoch", None)):
            sampler.set_epoch(epoch)  # type: ignore[union-attr]


def choose_accelerator(spec: str | Mapping[str, Any] | Accelerator, plugins: PluginSet) -> Accelerator:
    """The accelerator that was asked for; for ``"auto"`` the one of highest priority that is available.

    Raises:
        ConfigurationError: It is not available on this machine.
    """
    if spec != "auto":
        accelerator: Accelerator = plugins.build("accelerator", spec)
        if not accelerator.is_available():
            advice = f"{accelerator.advice()}, or " if accelerator.advice() else ""
            raise ConfigurationError(
                f"accelerator {accelerator.name!r} finds no device on this machine (available: "
                f"{listing(_answering('accelerator', 'is_available', plugins))}); {advice}use 'auto'"
            )
        return accelerator
    for name in _answering("accelerator", "is_available", plugins):
        chosen: Accelerator = plugins.build("accelerator", name)
        _warn_of_idle_device(chosen, plugins)
        return chosen
    raise ConfigurationError(f"no accelerator is available; installed: {listing(plugins.names('accelerator'))}")


def _answering(kind: str, question: str, plugins: PluginSet) -> Iterator[str]:
    """The parts of a kind whose class answers a question with yes, by priority, highest first.

    One that does not work is a warning: nobody asked for it.
    """
    providers = {provider.name: provider for provider in plugins.registry.providers if provider.kind == kind}
    for name, provider in sorted(providers.items(), key=lambda item: -item[1].priority):
        try:
            answer = getattr(plugins.provider(kind, name).load(), question)()
        except PluginError as error:
            warn("plugin-broken", f"{error}. It is passed over")
        except Exception as error:  # noqa: BLE001  the code of others can raise anything
            who = f"{kind} {name!r} of {provider.distribution} {provider.version}"
            warn("plugin-broken", f"{who}: {question} raised {type(error).__name__}: {error}. It is passed over")
        else:
            if answer:
                yield name


def _warn_of_idle_device(chosen: Accelerator, plugins: PluginSet) -> None:
    """Say so where PyTorch sees a device that no installed accelerator uses."""
    if chosen.name != "cpu":  # asking torch may start the driver, which a process that is forked later does not survive
        return
    if not torch.accelerator.is_available():  # torch 2.6 raises below where there is none
        return
    seen = torch.accelerator.current_accelerator()
    if seen is None or seen.type in plugins.names("accelerator"):
        return
    extra = KNOWN["accelerator"].get(seen.type)
    remedy = install_line(extra) if extra else "install a package that provides it"
    warn(
        "idle-device",
        f"there is a {seen.type!r} device, and no accelerator for it is installed; running on {chosen.name!r}. {remedy}",
    )


def detect_environment(plugins: PluginSet) -> ClusterEnvironment | None:
    """The cluster environment that this process runs in, by the highest priority; ``None``: none of them."""
    for name in _answering("environment", "detect", plugins):
        environment: ClusterEnvironment = plugins.build("environment", name)
        return environment
    return None
