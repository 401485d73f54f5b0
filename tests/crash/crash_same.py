"""Whether two trainings left the same, bit for bit: all but the names of their folders and the ids of their runs."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fulmen import read_checkpoint


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two trainings of ``crash_job.train``; empty: nothing."""
    reports = [torch.load(folder / "report", weights_only=True) for folder in (one, other)]
    runs = [Path(report["run"]) for report in reports]
    found = [*unlike("report", neutral(reports[0], runs[0], ""), neutral(reports[1], runs[1], ""))]
    tables = [(run / "metrics.csv").read_bytes() for run in runs]
    if tables[0] != tables[1]:
        found.append(f"metrics.csv: {first_difference(*tables)}")
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in runs]
    for run, each in zip(runs, names, strict=True):
        newest = [name for name in each if name.endswith("-recovery.ckpt")]
        if len(newest) > 1:
            found.append(f"more than the newest recovery checkpoint: {newest}")
        for name in newest:  # by time, or where nobody else has saved: it need not be the same, and can be continued
            each.remove(name)
            read_checkpoint(run / "checkpoints" / name)
    if names[0] != names[1]:
        found.append(f"files: {names[0]} and {names[1]}")
    for name in sorted({*names[0]} & {*names[1]}):
        states = []
        for run in runs:
            checkpoint = read_checkpoint(run / "checkpoints" / name)
            states.append(neutral(checkpoint, run, checkpoint["run"]["id"]))
        found.extend(unlike(name, *states))
    return found


def neutral(value: Any, run: Path, run_id: str) -> Any:
    """``value`` without the folder and the id of its run."""
    if isinstance(value, str):
        value = value.replace(str(run), "RUN").replace(str(run.parents[1]), "FOLDER")
        return "ID" if run_id and value == run_id else value
    if isinstance(value, Mapping):
        value = {key: each for key, each in value.items() if key != "RecoveryCheckpoint"}  # by time: it saves when it saves
        kept = {key: each for key, each in value.items() if not (key == "version" and isinstance(each, int))}
        return {neutral(key, run, run_id): neutral(each, run, run_id) for key, each in kept.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(neutral(each, run, run_id) for each in value)
    return value


def unlike(where: str, one: Any, other: Any) -> Iterator[str]:
    """Where two nested values differ. Not a number equals itself, and 0.0 does not equal -0.0."""
    if type(one) is not type(other):
        yield f"{where}: {one!r} and {other!r}"
    elif isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape or as_bytes(one) != as_bytes(other):
            yield f"{where}: {one.flatten()[:3].tolist()}... and {other.flatten()[:3].tolist()}..."
    elif isinstance(one, Mapping):
        if one.keys() != other.keys():
            yield f"{where}: the keys {list(one)} and {list(other)}"
        for key in one.keys() & other.keys():
            yield from unlike(f"{where}.{key}", one[key], other[key])
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other):
            yield f"{where}: {len(one)} and {len(other)} items"
        for index, (left, right) in enumerate(zip(one, other, strict=False)):
            yield from unlike(f"{where}[{index}]", left, right)
    elif isinstance(one, float):
        if struct.pack("<d", one) != struct.pack("<d", other):
            yield f"{where}: {one!r} and {other!r}"
    elif one != other:
        yield f"{where}: {one!r} and {other!r}"


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def first_difference(one: bytes, other: bytes) -> str:
    pairs = list(zip(one.split(b"\n"), other.split(b"\n"), strict=False))
    line = next((index for index, (left, right) in enumerate(pairs) if left != right), len(pairs))
    lines = [table.split(b"\n")[line] if line < table.count(b"\n") else b"" for table in (one, other)]
    return f"line {line + 1}: {lines[0]!r} and {lines[1]!r}"
