"""What Weights & Biases takes, made of what people have."""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping
from typing import Any

FORBIDDEN = frozenset("/\\#?%:")


def new_id() -> str:
    """An id as Weights & Biases makes them: eight letters and digits. Takes nothing from the random numbers of a training."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def number(value: Any) -> Any:
    """``value``, or the number in a tensor or an object of numpy. Waits for its device; the trainer sends plain numbers."""
    return value.item() if hasattr(value, "item") else value


def plain(value: Any) -> Any:
    """``value`` made of mappings, lists, numbers and text, which the configuration of a run can hold.

    >>> plain({"lr": 0.1, "net": {"act": int, "sizes": (64, 10)}})
    {'lr': 0.1, 'net': {'act': 'builtins.int', 'sizes': [64, 10]}}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "__qualname__"):  # its repr would hold an address, which differs each time
        return f"{value.__module__}.{value.__qualname__}"
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - of a foreign __str__; the other parameters are worth having
        return f"<{type(value).__module__}.{type(value).__qualname__}>"
