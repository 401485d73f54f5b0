"""The process group: joined once per process, and what is exchanged through it."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fulmen import ConfigurationError
from fulmen.contracts.strategy import ReduceOp
from fulmen_ddp.board import Board
from fulmen_ddp.meeting import START_SECONDS, meet
from fulmen_ddp.place import Place

T = TypeVar("T")
OPS = {"sum": dist.ReduceOp.SUM, "mean": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
HOST = torch.device("cpu")


def duration(seconds: float | timedelta, name: str = "timeout_s") -> timedelta:
    """A time limit.

    Raises:
        ConfigurationError: It is not positive.
    """
    try:
        found = seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
    except TypeError:
        found = timedelta(0)
    if found <= timedelta(0):
        raise ConfigurationError(f"{name}={seconds!r} is not allowed; allowed: seconds above 0, or a timedelta")
    return found


def backend_for(device: torch.device) -> str:
    """What exchanges tensors of a device, and those of the host beside."""
    return {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}.get(device.type) or dist.get_default_backend_for_device(device)


def join(place: Place, backend: str, timeout: timedelta) -> None:
    """Join the other processes, unless that has happened.

    Raises:
        ConfigurationError: This process has joined a group of another size.
    """
    if dist.is_initialized():
        if (dist.get_world_size(), dist.get_rank()) != (place.world_size, place.global_rank):
            raise ConfigurationError(
                f"this process is rank {dist.get_rank()} of {dist.get_world_size()} already, and cannot become rank "
                f"{place.global_rank} of {place.world_size}: use the same devices and num_nodes for all trainers of a program"
            )
        return
    rank, size = place.global_rank, place.world_size
    begin = max(timeout, timedelta(seconds=START_SECONDS))  # a process may come before the one that has the store
    if place.address is None:  # as torchrun has told by variables
        store = next(dist.rendezvous("env://", timeout=begin))[0]  # type: ignore[attr-defined]
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        is_host = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    else:
        address, is_host = (place.address, place.port), rank == 0 and not place.hosted
        store = dist.TCPStore(*address, None, is_host, begin, wait_for_workers=False)  # type: ignore[attr-defined]
    name = meet(store, rank, size, begin)
    import torch.distributed.nn.functional  # noqa: F401 - imported later, its default arguments would keep the group for ever

    own = dist.PrefixStore(f"fulmen/{name}/group", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout)
    _board.append(Board(store, address, name, rank, size, is_host))
    atexit.register(leave)


_board: list[Board] = []


def board() -> Board | None:
    """What ranks tell each other beside their exchanges; ``None``: they have not met, or not by :func:`join`."""
    return _board[-1] if _board else None


_users: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def uses_group(module: nn.Module) -> None:
    """Remember a DDP module, which keeps the group: :func:`leave` takes it away."""
    _users.add(module)


def leave() -> None:
    """Leave the group; for the end of the process.

    Nothing may keep the group then, so that its threads end here. A thread that lets go of a tensor needs the interpreter, and
    where that has ended, it takes the process with it.
    """
    _board.clear()
    for module in list(_users):
        module.__dict__.update(reducer=None, logger=None, process_group=None)
    if dist.is_initialized():
        dist.destroy_process_group()


def all_reduce(tensor: Tensor, op: ReduceOp) -> Tensor:
    """A new tensor, combined over all ranks."""
    combined = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(combined, OPS[op])
    return combined / dist.get_world_size() if op == "mean" else combined


def all_gather(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, stacked."""
    own = tensor.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    return torch.stack(parts)


class GatherWithGradient(torch.autograd.Function):
    """The tensors of all ranks, stacked; the gradient of each is summed over the losses of all ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """The tensors of all ranks."""
        return all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """What the losses of all ranks have for the tensor of this one."""
        return all_reduce(gradient, "sum")[dist.get_rank()]


def all_gather_with_gradient(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, stacked, through which gradients flow. The same backward pass on every rank."""
    found: Tensor = GatherWithGradient.apply(tensor)  # type: ignore[no-untyped-call]
    return found


def broadcast(value: T, source: int) -> T:
    """The value of one rank, by way of the host."""
    sent: list[Any] = [value.detach().cpu() if isinstance(value, Tensor) else value]
    dist.broadcast_object_list(sent, source, device=HOST)
    found: Any = sent[0]
    return found.to(value.device) if isinstance(value, Tensor) else found  # type: ignore[no-any-return]


def barrier(name: str) -> None:
    """Wait for all ranks. Through the host."""
    agree(0)


def agree(flags: int) -> int:
    """The bitwise *or* of the integers of all ranks. Through the host."""
    combined = torch.tensor(flags, dtype=torch.int64, device=HOST)
    dist.all_reduce(combined, dist.ReduceOp.BOR)
    return int(combined)


def broadcast_tensors(tensors: Sequence[Tensor]) -> None:
    """Let every rank have the tensors of rank 0."""
    with torch.no_grad():
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, 0)
            if sent.data_ptr() != tensor.data_ptr():
                tensor.copy_(sent)


def broadcast_together(tensors: Sequence[Tensor]) -> None:
    """The same for many small tensors, in one exchange for each number format."""
    for flat in flattened(tensors):
        dist.broadcast(flat, 0)


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their mean over all ranks, in one exchange for each number format."""
    for flat in flattened(tensors):
        dist.all_reduce(flat)
        flat /= dist.get_world_size()


def flattened(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """All tensors of a number format as one, format by format; what the caller makes of it is put back."""
    by_format: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        by_format.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same in by_format.values():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in same])
        yield flat
        for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))
