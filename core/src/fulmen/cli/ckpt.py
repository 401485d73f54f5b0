"""What a checkpoint holds, whether it verifies, and in what two differ. Nothing in a file is run.

fulmen ckpt show PATH       what it holds
fulmen ckpt verify PATH...  whether every byte is as it was written; exit status 1 where one is not
fulmen ckpt diff ONE OTHER  what differs; exit status 1 where something does
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from fulmen.cli.text import table
from fulmen.errors import CheckpointError, listing
from fulmen.storage import printable, read_checkpoint

LONGEST_VALUE = 60
"""Characters of a value that are shown."""


def show(path: str) -> str:
    """What a checkpoint holds, section by section.

    Raises:
        CheckpointError: It cannot be read.
    """
    found = read_checkpoint(path)
    run, position = _mapping(found.get("run")), _mapping(_mapping(found.get("loops")).get("fit_loop"))
    rows = [("module", str(run.get("module", "unknown")))]
    rows += [("position", f"epoch {found.get('epoch', '?')}, step {found.get('global_step', '?')}{_inside(position)}")]
    reasons = _items(run.get("inexact"))
    exactly = ", not exactly:" if reasons else ", exactly" if "inexact" in run else ""
    rows += [("continues", f"yes: fit(ckpt_path=...){exactly}" if position else "no: it holds weights only")]
    rows += [("", f"- {reason}") for reason in reasons]
    if run:
        rows += [
            ("run", str(run.get("id", "unknown"))),
            ("plugins", listing(_plugin(_mapping(each)) for each in _items(run.get("plugins")))),
        ]
    rows += [(key, f"{_contents(value)}") for key, value in found.items() if key not in ("run", "epoch", "global_step")]
    return f"{path}: verifies\n{_table(rows)}"


def _table(rows: Sequence[tuple[Any, str]]) -> str:
    return table([(printable(str(key), 2000), printable(text, 2000)) for key, text in rows])


def _mapping(value: Any) -> Mapping[Any, Any]:
    """``value`` where it is a mapping: other libraries keep other things under these names."""
    return value if isinstance(value, Mapping) else {}


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _plugin(about: Mapping[Any, Any]) -> str:
    return f"{about.get('name')} ({about.get('distribution')} {about.get('version')})"


def _inside(position: Mapping[str, Any]) -> str:
    batch = _mapping(position.get("progress")).get("batch", 0)
    return f", after batch {batch} of the epoch" if batch else ""


def _contents(value: Any) -> str:
    leaves = list(flattened(value))
    tensors = [leaf for _, leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not tensors:
        return _short(value) if not isinstance(value, (Mapping, list, tuple)) or len(leaves) < 9 else f"{len(leaves)} values"
    numbers, size = sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors)
    others = f" and {len(leaves) - len(tensors)} other values" if len(leaves) > len(tensors) else ""
    return f"{len(tensors)} tensors with {numbers:,} numbers, {_bytes(size)}{others}"


def verify(paths: Sequence[str]) -> tuple[str, int]:
    """A line for each file, and 1 where one of them is damaged."""
    rows, status = [], 0
    for path in paths:
        try:
            read_checkpoint(path, "meta")
            rows.append((path, "verifies"))
        except CheckpointError as error:
            rows.append((path, str(error)))
            status = 1
    return table(rows), status


def diff(one: str, other: str) -> tuple[str, int]:
    """What differs between two checkpoints, leaf by leaf, and 1 where something does.

    Raises:
        CheckpointError: One of them cannot be read.
    """
    first, second = (dict(flattened(read_checkpoint(path))) for path in (one, other))
    rows = [(key, "only in the first") for key in first if key not in second]
    rows += [(key, "only in the second") for key in second if key not in first]
    rows += [(key, text) for key in first if key in second and (text := _difference(first[key], second[key]))]
    if not rows:
        return f"{one} and {other} hold the same {len(first)} values\n", 0
    return f"{len(rows)} of {len({*first, *second})} values differ\n{_table(rows)}", 1


def flattened(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings and sequences with their dotted keys; an empty container is a leaf."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from flattened(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from flattened(item, f"{key}[{index}]")
    else:
        yield key, value


def _difference(one: Any, other: Any) -> str:
    """In words; empty where both are the same, bit for bit."""
    if type(one) is not type(other):
        return f"{type(one).__name__} and {type(other).__name__}"
    if not isinstance(one, torch.Tensor):
        same = one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))
        return "" if same else f"{_short(one)} and {_short(other)}"
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{tuple(one.shape)} of {one.dtype} and {tuple(other.shape)} of {other.dtype}"
    if one.layout is not torch.strided or other.layout is not torch.strided or one.is_quantized:
        return f"not compared: {one.layout}{', quantized' if one.is_quantized else ''}"
    different = int((~((one == other) | (one.isnan() & other.isnan()))).sum())
    if not different:
        return ""
    if one.dtype.is_complex or not one.dtype.is_floating_point:
        return f"{different} of {one.numel()} elements"
    gaps = (one.double() - other.double()).abs()
    largest = float(gaps[~(one.isnan() & other.isnan())].nan_to_num(math.inf).max())
    return f"{different} of {one.numel()} elements, by at most {largest:.3g}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 4]} ..."


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
