"""The place of a process among all, and where they meet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fulmen import ClusterEnvironment, ConfigurationError
from fulmen_ddp.environments import HOSTED, LaunchedEnvironment, TorchrunEnvironment, number

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """Ranks, and where the processes meet.

    ``address`` is ``None`` where torch finds the others by the variables that torchrun has set. ``hosted``: whether the store
    at that address is kept by a launcher, rather than by rank 0.
    """

    world_size: int = 1
    global_rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    address: str | None = None
    port: int = 0
    hosted: bool = False


def place_in(environment: ClusterEnvironment, devices: Sequence[torch.device], num_nodes: int) -> Place:
    """The place that a scheduler has given to this process.

    Raises:
        ConfigurationError: It has started another number of processes than the trainer was told.
    """
    world_size, expected = environment.world_size(), len(devices) * num_nodes
    alone = len(devices) == 1 and devices[0].type == "cpu"  # the processor is not counted: the scheduler has done that
    if world_size != expected and not alone:
        raise ConfigurationError(
            f"{type(environment).__name__} says that there are {world_size} processes, and devices={len(devices)} on "
            f"num_nodes={num_nodes} makes {expected}; start as many processes per node as devices, or set devices and num_nodes"
        )
    torchrun = isinstance(environment, TorchrunEnvironment)
    return Place(
        world_size,
        environment.global_rank(),
        environment.local_rank(),
        environment.node_rank(),
        None if torchrun else environment.main_address,
        0 if torchrun else environment.main_port,
        hosted=isinstance(environment, LaunchedEnvironment) and os.environ.get(HOSTED) == "1",
    )


def own_place(devices: Sequence[torch.device], num_nodes: int) -> Place:
    """The place of the process that starts the others of its node: the first one there.

    Raises:
        ConfigurationError: There are several nodes, and no variables say where they meet.
    """
    size = len(devices)
    if num_nodes == 1:
        return Place(size)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if missing:
        raise ConfigurationError(
            f"num_nodes={num_nodes}, and nothing says how the nodes find each other: start the program on each of them with "
            f"torchrun or srun, or set {', '.join(missing)}"
        )
    node = number("NODE_RANK")
    if node >= num_nodes:
        raise ConfigurationError(f"NODE_RANK={node} is too large for num_nodes={num_nodes}; it counts from 0")
    return Place(size * num_nodes, size * node, 0, node, os.environ["MASTER_ADDR"], number("MASTER_PORT"))
