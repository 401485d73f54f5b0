"""Which GPUs are meant, and which can be used."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch

from fulmen import ConfigurationError
from fulmen.errors import listing

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_names() -> list[str]:
    """The names or numbers in ``CUDA_VISIBLE_DEVICES``, in its order, which is that of the indices; empty where unset."""
    return [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]


def names_in(devices: int | str | Sequence[int | str]) -> list[str] | None:
    """The names of devices (``GPU-...``, ``MIG-...``) in what the user wrote; ``None`` where there are none."""
    if isinstance(devices, str):
        devices = [part.strip() for part in devices.split(",") if part.strip()]
    if isinstance(devices, int) or not any(isinstance(part, str) and _is_name(part) for part in devices):
        return None
    return [str(part) for part in devices]


def _is_name(text: str) -> bool:
    return text.startswith(("GPU-", "MIG-"))


def indices_of(names: Sequence[str]) -> list[int]:
    """The indices of devices that are given by name.

    Args:
        names: Names as ``nvidia-smi -L`` prints them, or the beginnings of such.

    Raises:
        ConfigurationError: A name is not, or not only once, in ``CUDA_VISIBLE_DEVICES``: a process sees its devices in the
            order of that variable, and it is the only way to choose a MIG device.
    """
    visible = visible_names()
    found = []
    for name in names:
        matching = [index for index, each in enumerate(visible) if each.startswith(name)]
        if len(matching) != 1:
            raise ConfigurationError(
                f"the device {name!r} is {'not' if not matching else 'more than once'} in {VISIBLE} ({listing(visible)}); set "
                f"{VISIBLE}={','.join(names)} before the program starts and use devices='auto'"
            )
        found += matching
    return found


def find_usable_cuda_devices(num_devices: int = -1) -> list[int]:
    """The indices of GPUs on which something can be computed now, as ``devices`` of the trainer takes them.

    For machines whose GPUs are in exclusive mode, where each serves one process. Allocates a number on each GPU that it
    tries, which starts a CUDA context there and waits for it.

    Args:
        num_devices: How many are needed; -1: all that are usable.

    Raises:
        ConfigurationError: There are fewer, or ``num_devices`` is something else.

    >>> trainer = Trainer(accelerator="cuda", devices=find_usable_cuda_devices(2))  # doctest: +SKIP
    """
    return usable(num_devices, torch.cuda.device_count(), _can_compute)


def usable(num_devices: int, count: int, works: Callable[[int], bool]) -> list[int]:
    """The first ``num_devices`` of ``count`` devices for which ``works`` says yes."""
    if isinstance(num_devices, bool) or not isinstance(num_devices, int) or (num_devices < 1 and num_devices != -1):
        raise ConfigurationError(f"num_devices={num_devices!r} is not allowed; allowed: a whole number from 1, or -1 for all")
    found: list[int] = []
    for index in range(count):
        if len(found) == num_devices:
            break
        if works(index):
            found.append(index)
    if len(found) < num_devices or (num_devices == -1 and not found):
        raise ConfigurationError(
            f"{max(1, num_devices)} usable CUDA devices are needed, and of the {count} visible ones {len(found)} can be used "
            f"({listing(found)}); wait until others are free, or ask for fewer"
        )
    return found


def _can_compute(index: int) -> bool:
    try:
        torch.zeros(1, device=torch.device("cuda", index))
    except RuntimeError:  # taken by another process, or out of memory
        return False
    return True
