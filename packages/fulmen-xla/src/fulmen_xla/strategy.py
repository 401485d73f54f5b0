"""XLA devices: graphs that end with each step, and one process or thread per device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen import Accelerator, ClusterEnvironment, ConfigurationError, Module, Strategy
from fulmen.contracts.data_hooks import map_tensors
from fulmen.contracts.strategy import ReduceOp
from fulmen_xla import library
from fulmen_xla.launcher import XLALauncher, from_bytes, to_bytes

T = TypeVar("T")
Step = Callable[..., Any]
NAMES = {"sum": "sum", "mean": "sum", "min": "min", "max": "max"}


class XLAStrategy(Strategy):
    """One rank for each XLA device; several are started by ``torch_xla.launch``.

    torch_xla records operations and runs them as one graph. A graph ends here with each optimizer step, each batch of an
    accumulation and each batch of an evaluation, so that all steps are the same graph and it is compiled once. Batches
    of different shapes compile again: pad them.

    Ranks agree on stops at each step, for which the host waits for the device; with one device it never does.

    Args:
        start_method: How processes are started: ``"spawn"``, or ``"fork"`` in notebooks.
    """

    name = "xla"

    def __init__(self, start_method: str = "spawn") -> None:
        if start_method not in ("spawn", "fork"):
            raise ConfigurationError(f"start_method={start_method!r} is not allowed; allowed: 'spawn', 'fork'")
        self.start_method = start_method
        self._accumulates = False

    def connect(
        self, accelerator: Accelerator, devices: Sequence[torch.device], num_nodes: int, environment: ClusterEnvironment | None
    ) -> None:
        """Take the devices.

        Raises:
            ConfigurationError: They are no XLA devices, or nodes are counted: torch_xla finds the hosts of a pod itself.
        """
        if any(device.type != "xla" for device in devices):
            raise ConfigurationError(
                f"strategy 'xla' needs accelerator='xla', and the accelerator is {accelerator.name!r}; leave strategy at 'auto'"
            )
        if num_nodes != 1:
            raise ConfigurationError(
                f"num_nodes={num_nodes} is not allowed with strategy 'xla'; start the program on each host of the pod, and "
                "leave num_nodes at 1: torch_xla finds the others"
            )
        self._devices = list(devices)
        self.launcher = XLALauncher(self.start_method) if len(devices) > 1 else None

    def __getstate__(self) -> dict[str, Any]:
        """The strategy as a process that it starts gets it, which starts none."""
        return {**self.__dict__, "launcher": None}

    # ---- Ranks

    @property
    def _several(self) -> bool:
        """Whether this is one of several ranks; in the process that starts them it is not."""
        return len(self._devices) > 1 and self.launcher is None

    @property
    def root_device(self) -> torch.device:
        """The device of this rank."""
        if not self._several:
            return self._devices[0]
        device: torch.device = library.root().device()
        return device

    @property
    def world_size(self) -> int:
        """How many devices take part, on all hosts."""
        return int(library.runtime().world_size()) if self._several else 1

    @property
    def global_rank(self) -> int:
        """The index of this device among all."""
        return int(library.runtime().global_ordinal()) if self._several else 0

    @property
    def local_rank(self) -> int:
        """The index of this device on its host."""
        return int(library.runtime().local_ordinal()) if self._several else 0

    @property
    def node_rank(self) -> int:
        """The index of this host."""
        return int(library.runtime().host_index()) if self._several else 0

    def sampler_arguments(self) -> dict[str, int] | None:
        """Each rank sees a share of the data."""
        return {"num_replicas": self.world_size, "rank": self.global_rank} if self._several else None

    # ---- Modules and steps

    def setup_module(self, module: nn.Module) -> nn.Module:
        """``module`` on the device, with the parameters and buffers of rank 0."""
        module = module.to(self.root_device)
        if self._several:
            tensors = [*module.parameters(), *module.buffers()]
            with torch.no_grad():
                for tensor in tensors:
                    tensor.copy_(self.broadcast(tensor.detach()))
        library.end_graph()
        return module

    def setup_optimizers(self, optimizers: list[Optimizer]) -> list[Optimizer]:
        """``optimizers`` whose steps end a graph."""
        for optimizer in optimizers:
            optimizer.register_step_post_hook(lambda optimizer, args, kwargs: library.end_graph())
        return optimizers

    def wrap_step(self, module: Module, name: str, step: Step) -> Step:
        """``step``; in evaluation, a graph ends with it. In training it goes on with the backward pass."""
        if name == "training_step":
            return step

        @wraps(step)
        def ended(*args: Any) -> Any:
            output = step(*args)
            library.end_graph()
            return output

        return ended

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """A batch that only adds to the gradients: they are not exchanged, and a graph ends with it."""
        return self._accumulating()

    @contextmanager
    def _accumulating(self) -> Iterator[None]:
        self._accumulates = True
        try:
            yield
        finally:
            self._accumulates = False
        library.end_graph()

    def backward(self, module: nn.Module, loss: Tensor) -> None:
        """Compute gradients, and average them over the ranks where the window of accumulation ends."""
        loss.backward()
        if self._several and not self._accumulates:
            gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
            for gradient in gradients:
                gradient.copy_(library.model().all_reduce("sum", gradient, scale=1.0 / self.world_size))

    # ---- Collectives

    def all_reduce(self, tensor: Tensor, op: ReduceOp = "sum") -> Tensor:
        """``tensor`` combined over all ranks, on its device."""
        if not self._several:
            return tensor
        scale = 1.0 / self.world_size if op == "mean" else 1.0
        combined: Tensor = library.model().all_reduce(NAMES[op], tensor.to(self.root_device), scale=scale)
        library.end_graph()  # alone in its graph, which then is the same on all ranks
        return combined.to(tensor.device)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, stacked."""
        if not self._several:
            return tensor.unsqueeze(0)
        # With pinned layouts the graph would depend on the rank.
        found: Tensor = library.model().all_gather(tensor.to(self.root_device).unsqueeze(0), dim=0, pin_layout=False)
        library.end_graph()
        return found.to(tensor.device)

    def broadcast(self, value: T, source: int = 0) -> T:
        """The value of rank ``source``. Plain values go through the host, which waits for the device."""
        if not self._several:
            return value
        if isinstance(value, Tensor):
            return cast(T, self.all_gather(value)[source])
        own = torch.frombuffer(bytearray(to_bytes(value)), dtype=torch.uint8).to(torch.int32)
        longest = int(self.all_reduce(torch.tensor(len(own)), "max"))
        sizes = self.all_gather(torch.tensor([len(own)])).flatten().tolist()
        padded = nn.functional.pad(own, (0, longest - len(own)))
        data = self.all_gather(padded)[source, : sizes[source]].to(torch.uint8)
        return cast(T, from_bytes(data.numpy().tobytes()))

    def barrier(self, name: str = "") -> None:
        """Wait until every rank is here."""
        if self._several:
            self.agree(0)

    def agree(self, flags: int) -> int:
        """The bitwise *or* of the integers of all ranks, up to 16 bits. Waits for the device."""
        if not self._several:
            return flags
        bits = torch.tensor([(flags >> index) & 1 for index in range(16)], dtype=torch.int32)
        found = self.all_reduce(bits, "max").tolist()
        return sum(int(bit) << index for index, bit in enumerate(found))

    # ---- State

    def portable(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """``checkpoint`` with its tensors on the host, which a program without torch_xla can read. Waits for the device."""
        before = library.model().get_rng_state()
        library.end_graph()
        found = cast(dict[str, Any], map_tensors(checkpoint, on_host))
        library.model().set_rng_state(before)  # each graph that runs moves it on, and saving must leave no trace
        return found


def on_host(value: Any) -> Any:
    """A tensor on the host; tensors that are there already stay what they are."""
    return value.detach().cpu() if isinstance(value, Tensor) and value.device.type != "cpu" else value
