"""Anything as JSON text that every YAML reader takes too."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Set
from enum import Enum
from typing import Any

import torch

# YAML takes these for ends of lines, or not at all; JSON allows both to write them as numbers.
_UNPRINTABLE = re.compile("[\x7f-\xa0\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def json_text(value: Any) -> str:
    """``value`` as indented JSON.

    Numbers, strings, booleans, ``None``, mappings and sequences stay what they are. Anything else becomes a string: a
    class or function its name, a number that JSON does not have ``"nan"`` or ``"inf"``, the rest its ``repr``.

    >>> print(json_text({"lr": 1e-05, "layers": [64, 10]}))
    {
      "lr": 1.0e-05,
      "layers": [
        64,
        10
      ]
    }
    """
    return _text(value, "\n", ())


def _text(value: Any, newline: str, around: tuple[int, ...]) -> str:
    if id(value) in around:
        return _string("(contains itself)")
    around, deeper = (*around, id(value)), newline + "  "
    if isinstance(value, Enum):
        return _string(str(value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return _scalar(value)
    if isinstance(value, Mapping):
        items = [f"{_string(_name(key))}: {_text(item, deeper, around)}" for key, item in value.items()]
        return f"{{{deeper}{f',{deeper}'.join(items)}{newline}}}" if items else "{}"
    if isinstance(value, (list, tuple, Set)):
        values: Iterable[Any] = sorted(value, key=str) if isinstance(value, Set) else value
        items = [_text(item, deeper, around) for item in values]
        return f"[{deeper}{f',{deeper}'.join(items)}{newline}]" if items else "[]"
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a number of numpy or torch
        return _text(value.item(), newline, around)
    return _string(_name(value))


def _scalar(value: bool | int | float | str | None) -> str:
    if isinstance(value, str):
        return _string(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if not math.isfinite(value):
        return _string(float.__repr__(value))
    text = float.__repr__(value)
    return text if "." in text or "e" not in text else text.replace("e", ".0e")  # YAML 1.1 reads 1e-05 as a string


def _string(value: str) -> str:
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(str(value), ensure_ascii=False))


def _name(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (torch.dtype, torch.device)) or hasattr(value, "__fspath__"):
        return str(value)
    if hasattr(value, "__qualname__"):  # its repr would hold an address, which differs each time
        return f"{value.__module__}.{value.__qualname__}"
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - of a foreign __repr__; the rest of the record is worth having
        return f"<{type(value).__module__}.{type(value).__qualname__}>"
