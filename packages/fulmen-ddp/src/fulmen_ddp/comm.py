"""Ways for gradients to travel, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fulmen import ConfigurationError

NAMES = ("bf16", "fp16", "powersgd")


def check_hook(hook: str | Callable[..., Any] | None, state: Any) -> None:
    """Refuse what :func:`register_hook` cannot use.

    Raises:
        ConfigurationError: The name is unknown, or the state does not fit it.
    """
    if isinstance(hook, str) and hook not in NAMES:
        raise ConfigurationError(f"comm_hook={hook!r} is not allowed; allowed: {', '.join(map(repr, NAMES))}, a function, None")
    if state is not None and (hook is None or hook in ("bf16", "fp16")):
        raise ConfigurationError(
            f"comm_state={state!r} would not be used: comm_hook={hook!r} has none; it goes with 'powersgd' or a function"
        )
    if hook == "powersgd" and not isinstance(state, (Mapping, type(None))):
        raise ConfigurationError(
            f"comm_state={state!r} does not fit comm_hook='powersgd'; give a mapping such as {{'matrix_approximation_rank': 2}}"
        )


def register_hook(module: DistributedDataParallel, hook: str | Callable[..., Any], state: Any) -> None:
    """Let ``module`` exchange its gradients by ``hook``.

    Source of PowerSGD: Vogels et al., 2019, arXiv:1905.13727, in ``torch.distributed.algorithms.ddp_comm_hooks``.

    Raises:
        ConfigurationError: PowerSGD does not have an argument in ``state``.
    """
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

    if hook == "powersgd":
        try:
            made = powerSGD_hook.PowerSGDState(None, **(state or {}))
        except TypeError as error:
            raise ConfigurationError(f"comm_state={dict(state)!r} does not fit comm_hook='powersgd': {error}") from None
        module.register_comm_hook(made, powerSGD_hook.powerSGD_hook)
    elif isinstance(hook, str):
        module.register_comm_hook(torch.bfloat16 if hook == "bf16" else torch.float16, compressed)
    else:
        module.register_comm_hook(state, hook)


def compressed(dtype, bucket):  # type: ignore[no-untyped-def]  # PyTorch refuses annotations that are text
    """The mean of the ranks' gradients, added up in ``dtype``. PyTorch's own hook for bfloat16 works with NCCL only."""
    buffer = bucket.buffer()
    work = dist.all_reduce(buffer.to(dtype).div_(dist.get_world_size()), async_op=True)
    assert work is not None  # it is where the exchange goes on in the background

    def put_back(done):  # type: ignore[no-untyped-def]
        return buffer.copy_(done.value()[0])

    return work.get_future().then(put_back)
