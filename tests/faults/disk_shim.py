"""A disk that fails: errors of the operating system, injected where Python calls it, for files in one folder.

Nothing of fulmen is replaced. ``open``, ``os.fsync``, ``os.replace``, ``os.link``, ``os.symlink`` and ``os.remove`` are, as
long as the disk is armed.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LOST, FLIPPED, SHORT = -1, -2, -3
"""Instead of an error: bytes that never arrive, a bit that arrives changed, writes that take half of what they are given."""


class FailingDisk:
    """Fails when ``armed``.

    Args:
        folder: Only files in here are affected.
        operation: ``"open"``, ``"write"``, ``"fsync"``, ``"close"``, ``"read"``, ``"rename"``, ``"fsync folder"``, ``"link"``
            or ``"remove"``.
        error: An error number, or one of :data:`LOST`, :data:`FLIPPED`, :data:`SHORT` for ``"write"``.
    """

    def __init__(self, folder: Path, operation: str, error: int) -> None:
        self.folder, self.operation, self.error, self.armed, self.hits = str(folder), operation, error, False, 0

    def install(self, patch: pytest.MonkeyPatch) -> FailingDisk:
        patch.setattr(builtins, "open", self._opening(builtins.open))
        patch.setattr(os, "fsync", self._fsync(os.fsync))
        for name, operation in (("replace", "rename"), ("link", "link"), ("symlink", "link"), ("remove", "remove")):
            patch.setattr(os, name, self._failing(getattr(os, name), operation))
        return self

    def fails(self, operation: str, path: Any = None) -> bool:
        here = path is None or (isinstance(path, (str, os.PathLike)) and str(path).startswith(self.folder))
        found = self.armed and operation == self.operation and here
        self.hits += found
        return found

    def raised(self, path: Any = None) -> OSError:
        return OSError(self.error, os.strerror(self.error), *([] if path is None else [str(path)]))

    def _failing(self, real: Callable[..., Any], operation: str) -> Callable[..., Any]:
        def call(*paths: Any, **options: Any) -> Any:
            if self.fails(operation, paths[-1]):
                raise self.raised(paths[-1])
            return real(*paths, **options)

        return call

    def _fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def fsync(descriptor: int) -> None:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            path = os.readlink(f"/proc/self/fd/{descriptor}") if sys.platform == "linux" else None
            if self.fails("fsync folder" if is_folder else "fsync", path):
                raise self.raised()
            real(descriptor)

        return fsync

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            writes = any(letter in mode for letter in "wxa+")
            if writes and self.fails("open", path):
                raise self.raised(path)
            if writes and self.operation in ("write", "close") and self.fails(self.operation, path):
                if self.error == SHORT:
                    return io.BufferedRandom(ShortFile(path, mode.replace("b", "")))
                return FailingFile(real(path, mode, *args, **options), self)
            if not writes and str(path).endswith(".tmp") and self.fails("read", path):
                return FailingFile(real(path, mode, *args, **options), self)
            return real(path, mode, *args, **options)

        return opened


class ShortFile(io.FileIO):
    """Takes at most half of what it is given, as a disk may."""

    def write(self, data: Any) -> int:
        return super().write(memoryview(data)[: max(1, len(data) // 2)])


class FailingFile:
    """A file on such a disk."""

    def __init__(self, file: Any, disk: FailingDisk) -> None:
        self._file, self._disk, self._written = file, disk, 0
        self._through = 2000 if ".ckpt" in str(file.name) else 0  # the beginning of a large file gets through

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> FailingFile:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def read(self, *args: Any) -> Any:
        if self._disk.operation == "read":
            raise self._disk.raised()
        return self._file.read(*args)

    def write(self, data: Any) -> int:
        before, self._written = self._written, self._written + len(data)
        if self._disk.operation != "write" or self._written < self._through:
            return int(self._file.write(data))
        if self._disk.error == LOST:
            return len(data) if before >= self._through else int(self._file.write(data))
        if self._disk.error == FLIPPED:
            changed = bytearray(data)
            changed[len(changed) // 2] ^= 4 if before < self._through else 0
            return int(self._file.write(changed))
        raise self._disk.raised()

    def close(self) -> None:
        if self._file.closed:
            return
        self._file.close()
        if self._disk.operation == "close":
            raise self._disk.raised()


def name_of(error: int) -> str:
    """For the ids of tests."""
    return {LOST: "lost", FLIPPED: "flipped", SHORT: "short"}.get(error) or errno.errorcode[error]
