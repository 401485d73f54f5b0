"""A coverage-guided fuzzer of the reader: it keeps what reaches new code, and changes it further.

    python tests/hostile/hostile_fuzzer.py SECONDS SEED FOLDER

It changes files as what they are, archives of a pickle and records, so that the checksums fit and the reader goes on to the
instructions. Only ``CheckpointError`` may come out, or plain data. The input is in ``FOLDER/current.ckpt`` while it is read:
whatever it does to the process, it is there afterwards.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import resource
import sys
import time
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import hostile_corpus as corpus
import torch
from torch import _weights_only_unpickler, serialization

from fulmen import CheckpointError, pickled, read_checkpoint, screening, storage
from fulmen.storage import check_plain

WATCHED = {module.__file__ for module in (storage, screening, pickled, _weights_only_unpickler, serialization)}
SECONDS = 10
"""Of processor time that one input may take; the process is killed after that."""
MEMORY = 2**30
Records = dict[str, bytes]
"""Names and contents; a file that is no archive has one record without a name."""

SNIPPETS = [
    pickle.MARK, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.EMPTY_SET, pickle.TUPLE, pickle.TUPLE1,
    pickle.TUPLE2,
    pickle.TUPLE3, pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS, pickle.REDUCE, pickle.BUILD, pickle.NEWOBJ,
    pickle.BINPERSID, pickle.NONE, pickle.NEWTRUE, pickle.STOP, pickle.POP, pickle.DUP, b"\x94", b"\x93", b"\x95" + bytes(8),
    *(pickle.BINGET + bytes([number]) for number in range(12)), *(pickle.BINPUT + bytes([number]) for number in range(12)),
    *(corpus.whole(number) for number in (0, 1, -1, 255, 2**31, 2**62, 2**63, -(2**63), 2**200)),
    *(corpus.text(word) for word in ("", "storage", "0", "1", "cpu", "cuda:0", "meta", "state_dict", "_metadata", "latin1",
    "data")),
    *(corpus.name(path) for path in pickled.MAKERS), *(corpus.name(path) for path in list(pickled.STORAGES)[:6]),
    *(corpus.name(path) for path in ("torch.float32", "torch.int64", "torch.Tensor", "torch.nn.parameter.Parameter",
    "os.system")),
    *corpus.TENSORS.values(), *corpus.USED.values(),
]  # fmt: skip


class Coverage:
    """Pairs of lines that followed each other in the watched files."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()
        self.now: set[Any] = set()

    def trace(self, frame: FrameType, event: str, value: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        code, last, now = frame.f_code, 0, self.now

        def lines(frame: FrameType, event: str, value: Any) -> Any:
            nonlocal last
            now.add((code, last, last := frame.f_lineno))
            return lines

        return lines

    def news(self) -> bool:
        """Whether the latest input went where none was before."""
        found = bool(self.now - self.seen)
        self.seen |= self.now
        return found


def seeds() -> list[Records]:
    """Good files of all kinds, and the small ones of the corpus."""
    found, folder = [], io.BytesIO()
    weights = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).state_dict()
    everything = {
        "state_dict": weights, "numbers": [1, -1, 2**40, 0.5, True, None, 1j, b"bytes", torch.float16, torch.Size([1]), {1, 2}],
        "tensors": (torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.uint16), torch.nn.Parameter(torch.zeros(1)),
                    torch.quantize_per_tensor(torch.ones(1), 0.1, 0, torch.qint8), torch.zeros(1).expand(3)),
    }  # fmt: skip
    for payload in ({"state_dict": weights, "epoch": 1}, everything):
        torch.save(payload, folder := io.BytesIO())
        found.append(records_of(folder.getvalue()))
    torch.save({"state_dict": weights}, folder := io.BytesIO(), _use_new_zipfile_serialization=False)
    found.append(records_of(folder.getvalue()))
    for body in (*corpus.TENSORS.values(), *corpus.USED.values()):
        content = corpus.whole_pickle(corpus.mapping(state_dict=corpus.mapping(w=body)))
        found.append({"archive/data.pkl": content, "archive/version": b"3\n", "archive/data/0": bytes(4)})
    return found


def records_of(content: bytes) -> Records:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return {"": content}
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        return {each: source.read(each) for each in source.namelist()}


def file_of(records: Records) -> bytes:
    if "" in records:
        return records[""]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for each, data in records.items():
            target.writestr(each, data)
    return buffer.getvalue()


def instructions(content: bytes) -> list[bytes]:
    """A pickle in pieces. What follows the last instruction that makes sense is one piece."""
    starts = [0]
    with suppress(Exception):  # a changed pickle can make no sense from some place on
        starts.extend(position for _, _, position in pickletools.genops(content) if position)
    return [content[begin:end] for begin, end in zip(starts, [*starts[1:], len(content)], strict=True)]


def changed(draw: random.Random, records: Records, others: list[Records]) -> Records:
    """A few changes in one record, mostly the pickle."""
    result = dict(records)
    pickles = [each for each in result if each.endswith("data.pkl") or not each]
    name = draw.choice(pickles) if pickles and draw.random() < 0.85 else draw.choice(list(result))
    if name in pickles and draw.random() < 0.9:
        other = draw.choice(others)
        pieces, donor = instructions(result[name]), instructions(other.get(name, next(iter(other.values()))))
        for _ in range(draw.choice((1, 1, 2, 3, 6))):
            at, kind = draw.randrange(len(pieces)), draw.randrange(6)
            if kind == 0:
                pieces[at : at + draw.randrange(1, 4)] = []
            elif kind == 1:
                pieces.insert(at, draw.choice(SNIPPETS))
            elif kind == 2:
                pieces[at] = draw.choice(SNIPPETS)
            elif kind == 3:
                pieces[at:at] = pieces[(begin := draw.randrange(len(pieces))) : begin + draw.randrange(1, 12)]
            elif kind == 4:
                pieces[at:at] = donor[(begin := draw.randrange(len(donor))) : begin + draw.randrange(1, 40)]
            elif len(pieces[at]) > 1:
                piece = bytearray(pieces[at])
                piece[draw.randrange(1, len(piece))] = draw.choice((0, 1, 255, draw.randrange(256)))
                pieces[at] = bytes(piece)
            pieces = pieces or [b"."]
        result[name] = b"".join(pieces)
    elif draw.random() < 0.3:
        result[draw.choice(("archive/data/0", "archive/byteorder", "archive/.storage_alignment", "a/b", "archive"))] = (
            result.pop(name)
        )
    else:
        content = bytearray(result[name] or b"\0")
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        result[name] = bytes(content[: draw.choice((len(content), len(content), draw.randrange(len(content) + 1)))])
    return result


def raw(draw: random.Random, content: bytes) -> bytes:
    """Now and then, bytes of the archive itself: most often of its table of contents."""
    if draw.random() < 0.75 or len(content) < 2:
        return content
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 4))):
        at = len(data) - 1 - min(len(data) - 1, int(draw.expovariate(1 / 150)))
        data[at] = draw.choice((0, 1, 255, draw.randrange(256)))
    return bytes(data[: draw.choice((len(data), len(data), draw.randrange(len(data)))) or len(data)])


def check(path: Path, size: int) -> None:
    """Read a file as everybody does. What is admitted must be plain, and no larger than its file."""
    for place in ("meta", "cpu"):
        try:
            payload = read_checkpoint(path, place)
        except CheckpointError as error:
            if str(path) not in str(error):
                raise ValueError(f"the error does not name the file: {error}") from error
            continue
        check_plain(payload)
        assert isinstance(payload, dict)
        assert all(tensor.untyped_storage().nbytes() <= size for tensor in tensors(payload) if tensor.layout is torch.strided)


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
    return [tensor for item in items for tensor in tensors(item)]


def fuzz(seconds: float, seed: int, folder: Path) -> tuple[int, int, int]:
    """Inputs read, arcs seen, and inputs kept."""
    draw, coverage, kept, count = random.Random(seed), Coverage(), seeds(), 0
    current, end = folder / "current.ckpt", time.monotonic() + seconds
    waiting = list(kept)
    while time.monotonic() < end:
        records = waiting.pop() if waiting else changed(draw, draw.choice(kept), kept)
        content = file_of(records) if count < len(kept) else raw(draw, file_of(records))
        current.write_bytes(content)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS, -1))
        coverage.now = set()
        sys.settrace(coverage.trace)
        try:
            check(current, len(content))
        finally:
            sys.settrace(None)
        count += 1
        if coverage.news() and len(content) < 20_000 and count > len(kept):
            kept.append(records)
    return count, len(coverage.seen), len(kept)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with open("/proc/self/statm") as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, -1))
    read, arcs, inputs = fuzz(float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    print(f"{read} inputs, {arcs} arcs, {inputs} kept")
