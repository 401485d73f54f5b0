"""Ways for gradients to travel, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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
        raise ConfigurationError(f"comm_state={state!r} would not be used: comm_hook={hook!r} has none; it goes with 'powersgd' "
                                 "or a function")
    if hook == "powersgd" and not isinstance(state, (Mapping, type(None))):
        raise ConfigurationError(
            f"comm_state={state!r} does not fit comm_hook='powersgd'; give a mapping such as {{'matrix_approximation_rank': 2}}"
        )


def register_hook(module: DistributedDataParallel, hook: str | Callable[..., Any], state: Any) -> None:
    """Let ``module`` exchange its gradients by ``hook``.

    Source of PowerSGD: Vogels et al., 2019, arXiv:1905.13727; of all three: ``torch.distributed.algorithms.ddp_comm_hooks``.

    Raises:
        ConfigurationError: PowerSGD does not have an argument in ``state``.
    """
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    if hook == "powersgd":
        try:
            made = powerSGD_hook.PowerSGDState(None, **(state or {}))
        except TypeError as error:
            raise ConfigurationError(f"comm_state={dict(state)!r} does not fit comm_hook='powersgd': {error}") from None
        module.register_comm_hook(made, powerSGD_hook.powerSGD_hook)
    elif isinstance(hook, str):
        compress = default_hooks.bf16_compress_hook if hook == "bf16" else default_hooks.fp16_compress_hook
        module.register_comm_hook(None, compress)
    else:
        module.register_comm_hook(state, hook)
