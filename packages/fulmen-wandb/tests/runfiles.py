"""Read the files of offline runs: a log in the format of LevelDB, of records in wandb's own."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as pb

BLOCK, HEADER, START = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[pb.Record]:
    data, position, parts = path.read_bytes(), START, b""
    assert data[:4] == b":W&B"
    while position + HEADER <= len(data):
        if (left := BLOCK - position % BLOCK) < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        part = data[position + HEADER : position + HEADER + length]
        if len(part) < length:
            return  # wandb's own process is writing it at this moment
        position += HEADER + length
        if kind in (FULL, LAST):
            yield pb.Record.FromString(part if kind == FULL else parts + part)
            parts = b""
        elif kind in (FIRST, MIDDLE):
            parts = part if kind == FIRST else parts + part


def files(folder) -> list[Path]:
    """The runs' files, in the order in which they were begun. wandb's own process may still be writing: waits for it."""
    found = sorted(Path(folder).rglob("*.wandb"), key=lambda path: path.parent.name)
    end = time.monotonic() + 30
    while not all(any(each.WhichOneof("record_type") == "exit" for each in records(path)) for path in found):
        assert time.monotonic() < end, f"a run of {found} never ended"
        time.sleep(0.02)
    return found


def found(folder, kind) -> list:
    """All records of a kind, as ``(run's id, record)``."""
    every = [(path.stem.removeprefix("run-"), record) for path in files(folder) for record in records(path)]
    return [(run, getattr(record, kind)) for run, record in every if record.WhichOneof("record_type") == kind]


def items(values, into: dict | None = None) -> dict:
    """Names and values; names may have parts."""
    into = {} if into is None else into
    for each in values:
        *outer, name = [each.key] if each.key else each.nested_key
        place = into
        for part in outer:
            place = place.setdefault(part, {})
        place[name] = json.loads(each.value_json)
    return into


def rows(folder) -> list[dict]:
    return [items(record.item) for _, record in found(folder, "history")]


def values(folder, name) -> list[tuple[int, float]]:
    return [(row["trainer/global_step"], row[name]) for row in rows(folder) if name in row]


def config(folder) -> dict:
    merged: dict = {}
    for _, record in found(folder, "run"):
        items(record.config.update, merged)
    for _, record in found(folder, "config"):
        items(record.update, merged)
    return merged


def exit_codes(folder) -> list[int]:
    return [record.exit_code for _, record in found(folder, "exit")]
