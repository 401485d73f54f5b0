"""Random states: seed them, take them, put them back."""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fulmen.errors import ConfigurationError

_LIMIT = 2**32


def seed_everything(seed: int, workers: bool = False, verbose: bool = False) -> int:
    """Seed Python, PyTorch and, where it is imported, NumPy.

    Args:
        seed: From 0 to 2**32 - 1.
        workers: Accepted for scripts that pass it. Loader workers need no more: fulmen seeds them for each batch, so
            that they draw the same numbers after a resume.
        verbose: Print the seed.

    Returns:
        The seed.

    Raises:
        ConfigurationError: It is out of range.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < _LIMIT:
        raise ConfigurationError(f"seed={seed!r} must be a whole number from 0 to {_LIMIT - 1}")
    random.seed(seed)
    torch.manual_seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)
    if verbose:
        print(f"seed: {seed}")  # noqa: T201
    return seed


def random_state() -> dict[str, Any]:
    """The states of Python's, PyTorch's and NumPy's generators on the host, as plain data."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
        state["numpy"] = [name, torch.from_numpy(keys.astype("int64")), int(position), int(has_gauss), float(cached)]
    return state


def fingerprint() -> int:
    """One number for the states of the host's generators: another, as soon as anything was drawn."""
    state = random_state()
    words = (repr((state["python"], state.get("numpy", ())[2:])), *state.get("numpy", ())[1:2], state["torch"])
    return zlib.crc32(b"".join(word.encode() if isinstance(word, str) else word.numpy().tobytes() for word in words))


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what :func:`random_state` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(state["torch"])
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in state:
        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))


@contextmanager
def isolated() -> Iterator[None]:
    """Whatever is drawn in the block does not show after it."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
