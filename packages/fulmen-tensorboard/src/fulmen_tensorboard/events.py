"""Event files: written from the training's own thread, cut back exactly when a training resumes."""

from __future__ import annotations

import io
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

MARK, DISCARDED = "tfevents", "discarded"  # TensorBoard reads the files that have the first in their names
_NUMBERS = count()
_MOST_BYTES = 1 << 20


class EventFile:
    """One event file, in place of TensorBoard's ``EventFileWriter``, which writes from a thread.

    Here a full disk is an exception where someone can act on it, and nothing is lost by it: what could not be written is
    tried again. Writes go to the page cache and take microseconds; only :meth:`sync` waits for the disk.

    Args:
        folder: The file's folder, which must exist.
        max_queue: Events that may wait in memory.
        flush_secs: Seconds for which an event waits at most, where others follow it.
        filename_suffix: The end of the file's name.
    """

    def __init__(self, folder: str, max_queue: int, flush_secs: float, filename_suffix: str = "") -> None:
        self._folder, self._max_queue, self._flush_secs = folder, max_queue, flush_secs
        self.path = next_path(Path(folder), filename_suffix)
        self.last_step = -1
        self.failure: OSError | None = None  # of an attempt to write that nobody asked for
        self._waiting = io.BytesIO()
        self._records = RecordWriter(self._waiting)
        self._num_waiting = 0
        self._size = 0
        self._next_attempt = time.monotonic() + flush_secs
        self._lock = threading.Lock()
        self._file: io.FileIO | None = None  # open while events are written
        source = SourceMetadata(writer="fulmen")
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2", source_metadata=source))
        self.flush()

    def get_logdir(self) -> str:
        """The folder; ``SummaryWriter`` asks for it under this name."""
        return self._folder

    def add_event(self, event: Any) -> None:
        """Keep an event. Never raises because of the disk: see :attr:`failure`."""
        with self._lock:
            self._records.write(event.SerializeToString())
            self._num_waiting += 1
            if event.HasField("summary"):
                self.last_step = max(self.last_step, event.step)
            full = self._num_waiting > self._max_queue or self._waiting.tell() > _MOST_BYTES
            if (full and self.failure is None) or time.monotonic() >= self._next_attempt:
                try:
                    self._write()
                except OSError as error:
                    self.failure = error

    def flush(self) -> None:
        """Write everything.

        Raises:
            OSError: That is not possible; the events stay, for the next attempt.
        """
        with self._lock:
            self._write()

    def sync(self) -> int:
        """Write everything, make it survive a power cut, and return the size of the file in bytes. Waits for the disk."""
        with self._lock:
            self._write()
            if self._file is not None:
                os.fsync(self._file.fileno())
            return self._size

    def close(self) -> None:
        """Write everything and close the file, also where writing fails. Later events open it again."""
        with self._lock:
            try:
                self._write()
            finally:
                if self._file is not None:
                    self._file.close()
                self._file = None

    def reopen(self) -> None:
        """``FileWriter`` has it; there is nothing to do."""

    def _write(self) -> None:
        self._next_attempt = time.monotonic() + self._flush_secs
        data = self._waiting.getvalue()
        if not data:
            return
        if self._file is None:
            self._file = io.FileIO(self.path, "ab")
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._size)  # half a record would hide all that follow
            raise
        self._size += len(data)
        self._waiting.seek(0)
        self._waiting.truncate()
        self._num_waiting, self.failure = 0, None


class _FileWriter(FileWriter):
    """What ``SummaryWriter`` writes to: an :class:`EventFile`."""

    def __init__(self, event_file: EventFile) -> None:
        self.event_writer = event_file


class Writer(SummaryWriter):
    """PyTorch's ``SummaryWriter``, which writes to an :class:`EventFile`.

    ``purge_step`` hides what a TensorBoard that is running has already read: everything from that step on.
    """

    file_writer: Any
    all_writers: Any

    def __init__(
        self, log_dir: str, purge_step: int | None, max_queue: int, flush_secs: float, filename_suffix: str = ""
    ) -> None:
        self.pid = os.getpid()
        super().__init__(log_dir, "", purge_step, max_queue, flush_secs, filename_suffix)

    def _get_file_writer(self) -> Any:
        if self.file_writer is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            event_file = EventFile(self.log_dir, self.max_queue, self.flush_secs, self.filename_suffix)
            self.file_writer = _FileWriter(event_file)
            self.all_writers = {self.log_dir: self.file_writer}
            if self.purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                self.file_writer.add_event(Event(session_log=start), self.purge_step)
                event_file.flush()
                self.purge_step = None
        return self.file_writer

    @property
    def event_file(self) -> EventFile:
        """The file that is being written."""
        found: EventFile = self._get_file_writer().event_writer
        return found


def next_path(folder: Path, suffix: str) -> Path:
    """A name that TensorBoard sorts behind all event files of the folder, because it reads files in that order."""
    stamps = [int(found[1]) for path in folder.glob(f"*{MARK}*") if (found := re.search(rf"{MARK}\.(\d+)\.", path.name))]
    stamp = max([int(time.time()), *(newest + 1 for newest in stamps)])
    return folder / f"events.out.{MARK}.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}{suffix}"


def sizes(folder: Path) -> dict[str, int]:
    """The event files below a folder, and how many bytes they have."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob(f"*{MARK}*"))}


def rewind(folder: Path, kept: Mapping[str, int]) -> list[str]:
    """Cut the event files below ``folder`` back to the sizes that they had once; files that are newer go too.

    What is cut off is kept beside, in event files that TensorBoard does not read by itself: ``discarded`` in their names.

    Returns:
        The files that are gone, or shorter than they were.
    """
    for name, size in sizes(folder).items():
        if name not in kept:
            set_aside(folder / name, 0)
        elif size > kept[name]:
            set_aside(folder / name, kept[name])
    left = sizes(folder)
    return [name for name, size in kept.items() if left.get(name, 0) < size]


def set_aside(path: Path, size: int) -> None:
    """Cut ``path`` after ``size`` bytes; the rest becomes an event file of its own."""
    aside = path.with_name(path.name.replace(MARK, DISCARDED, 1))
    while aside.exists():
        aside = aside.with_name(f"{aside.name}.again")
    if not size:
        path.rename(aside)
        return
    with open(path, "r+b") as file, open(aside, "xb") as rest:
        length = int.from_bytes(file.read(8), "little")  # of the first record, which says what kind of file it is
        file.seek(0)
        rest.write(file.read(8 + 4 + length + 4))
        file.seek(size)
        while block := file.read(_MOST_BYTES):
            rest.write(block)
        file.truncate(size)
        os.fsync(file.fileno())


def cut(path: Path, size: int) -> None:
    """Cut ``path`` after ``size`` bytes, where it has more."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)
