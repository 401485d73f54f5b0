"""The epoch values of logged names over all ranks."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Literal

import torch

from fulmen.contracts.strategy import Strategy
from fulmen.errors import ModuleError, listing

if TYPE_CHECKING:
    from fulmen.meter import Meter, Value


def combine_over_ranks(meters: list[Meter], strategy: Strategy) -> dict[Meter, Value]:
    """The epoch value of each meter that has one; those with ``sync_dist`` over all ranks, in at most three exchanges.

    Raises:
        ModuleError: The ranks logged different names.
    """
    ready = [meter for meter in meters if meter.on_epoch and (meter.metric is not None or meter.total is not None)]
    if strategy.world_size > 1:
        synced = [meter for meter in ready if meter.sync and meter.metric is None]
        check_same_names([f"{meter.epoch_key}:{meter.reduce}" for meter in synced], strategy)
        exchange_all(synced, strategy)
    return {meter: meter.value() for meter in ready}


def exchange_all(meters: list[Meter], strategy: Strategy) -> None:
    """Combine the totals of meters over all ranks, in at most two exchanges."""
    _exchange([meter for meter in meters if meter.reduce in ("mean", "sum")], strategy)
    _exchange([meter for meter in meters if meter.reduce in ("min", "max")], strategy)


def check_same_names(names: list[str], strategy: Strategy) -> None:
    """Raise on every rank if the ranks did not log the same names: their values would be mixed up."""
    digest = float(zlib.crc32("\n".join(names).encode()))
    device = strategy.root_device
    low_high = strategy.all_reduce(torch.tensor([-digest, digest], dtype=torch.float64, device=device), "max")
    if -low_high[0] != low_high[1]:  # synchronises: once per epoch, in distributed runs only
        raise ModuleError(
            f"the ranks logged different names with sync_dist=True; rank {strategy.global_rank} logged: {listing(names)}. "
            "Log the same names in the same order on every rank"
        )


def _exchange(meters: list[Meter], strategy: Strategy) -> None:
    if not meters:
        return
    device = strategy.root_device
    op: Literal["sum", "max"] = "sum" if meters[0].reduce in ("mean", "sum") else "max"
    signs = [-1.0 if meter.reduce == "min" else 1.0 for meter in meters]
    totals = [torch.as_tensor(meter.total, device=device).double() * sign for meter, sign in zip(meters, signs, strict=True)]
    weights = [torch.tensor(meter.weight, device=device).double() for meter in meters]
    combined = strategy.all_reduce(torch.stack(totals + weights), op)
    for index, (meter, sign) in enumerate(zip(meters, signs, strict=True)):
        meter.total = combined[index] * sign
        meter.weight = float(combined[len(meters) + index])
