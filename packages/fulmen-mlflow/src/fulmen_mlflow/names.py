"""Names and values as MLflow takes them."""

from __future__ import annotations

import math
import posixpath
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

LONGEST_NAME, LONGEST_PARAM = 250, 6000
_FORBIDDEN = re.compile(r"[^/\w.\- :]")


def allowed_name(name: str) -> str:
    """``name`` with ``_`` for what MLflow refuses, and a checksum for what is beyond its 250 characters.

    >>> allowed_name("acc@1"), allowed_name("val/acc"), allowed_name("a//b")
    ('acc_1', 'val/acc', 'a_b')
    """
    found = _FORBIDDEN.sub("_", name) or "_"
    normal = posixpath.normpath(found)
    if normal != found or found == "." or found.startswith(("..", "/")):
        found = re.sub(r"/+", "_", found).strip(".") or "_"
    if len(found) > LONGEST_NAME:
        found = f"{found[: LONGEST_NAME - 9]}-{zlib.crc32(found.encode()):08x}"
    return found


def flatten(params: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings under names joined by ``/``; mappings in lists too.

    >>> dict(flatten({"net": {"sizes": [64, 10]}, "lr": 0.1, "layers": [{"n": 1}]}))
    {'net/sizes': [64, 10], 'lr': 0.1, 'layers/0/n': 1}
    """
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}/")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            yield from flatten(dict(enumerate(value)), f"{name}/")
        else:
            yield name, value


def param_text(value: Any) -> str:
    """The text of a parameter, cut where MLflow would refuse it. A class or function gives its name.

    >>> param_text(0.1), param_text(int), len(param_text("x" * 9000))
    ('0.1', 'builtins.int', 6000)
    """
    if hasattr(value, "__qualname__"):  # its repr would hold an address, which differs each time
        text = f"{value.__module__}.{value.__qualname__}"
    else:
        try:
            text = str(value)
        except Exception:  # noqa: BLE001 - of a foreign __str__; the other parameters are worth having
            text = f"<{type(value).__module__}.{type(value).__qualname__}>"
    return text if len(text) <= LONGEST_PARAM else f"{text[: LONGEST_PARAM - 3]}..."


def number(value: Any) -> float:
    """``value`` as a float. A tensor or an object of numpy waits for its device; the trainer sends plain numbers."""
    return float(value.item() if hasattr(value, "item") else value)


def storable(value: float) -> float:
    """``value``, or NaN for an infinity, which MLflow's databases would turn into the largest number there is.

    >>> storable(float("inf")), storable(2.0)
    (nan, 2.0)
    """
    return math.nan if math.isinf(value) else value
