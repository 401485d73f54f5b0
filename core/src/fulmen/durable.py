"""Files that are whole or absent, also after a power cut; and no trace of those that a killed process did not finish.

A new file is written under a name of its own beside its target, and locked (``flock``) until it has its real name. The
kernel gives up the locks of a process that dies, however it dies. So an unfinished file that can be locked belongs to
nobody, and whoever writes to its folder next removes it, while that of another live process stays. A forked process
does not keep the locks of its parent. Where there are no such locks (Windows, some network disks), nothing is removed.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_NOT_FLUSHED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}  # what disks answer that cannot flush a folder, or need not
_HELD: dict[int, IO[bytes]] = {}  # descriptors that keep locks of this process, and the files that are locked


def temporary_beside(path: Path) -> Path:
    """A new name in the folder of ``path``: the same file system, so that renaming onto ``path`` is atomic."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def new_file_beside(path: Path) -> Iterator[IO[bytes]]:
    """A new file in the folder of ``path``, to be renamed in the block. If it is not, it is removed at the end.

    The file may be closed in the block: it stays this process's own until the block ends.
    """
    while True:
        with open(temporary_beside(path), "x+b") as file, _held(file):
            if not os.path.exists(file.name):  # another process took it for a leftover before it was locked
                continue
            try:
                yield file
            finally:
                with suppress(OSError):  # gone after a successful rename
                    os.unlink(file.name)
            return


@contextmanager
def other_name_beside(source: Path, path: Path) -> Iterator[Path]:
    """A name in the folder of ``path`` for a link to ``source``, to be made and renamed in the block."""
    temporary = temporary_beside(path)
    with open(source, "rb") as file, _held(file):  # a link has the lock of its file
        try:
            yield temporary
        finally:
            with suppress(OSError):  # gone after a successful rename
                os.unlink(temporary)


def prepare_folder(folder: Path) -> None:
    """Make a folder ready for a new file: it exists, and holds nothing that a killed process left unfinished.

    Before the first file, the folders above it are flushed: without that, a power cut may take the folder itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = os.listdir(folder)
    if all(name.startswith(".") for name in names):
        for above in folder.resolve().parents:
            with suppress(PermissionError):  # then it is not ours, and was there before
                flush_folder(above)
    _remove_unfinished(folder, names)


def remove_leftovers(folders: Iterable[str | os.PathLike[str]]) -> None:
    """Remove what killed processes left unfinished in ``folders``; those that do not exist are passed over."""
    for folder in folders:
        with suppress(OSError):
            _remove_unfinished(Path(folder), os.listdir(folder))


def flush_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut. A no-op where folders cannot be opened (Windows) or flushed."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_FLUSHED:
            raise
    finally:
        os.close(descriptor)


def _remove_unfinished(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if _UNFINISHED.fullmatch(name):
            _remove_if_abandoned(folder / name)


# ---- Locks

if sys.platform == "win32":

    @contextmanager
    def _held(file: IO[bytes]) -> Iterator[None]:
        yield

    def _remove_if_abandoned(path: Path) -> None:
        """Nobody can tell."""

else:
    import fcntl

    @contextmanager
    def _held(file: IO[bytes]) -> Iterator[None]:
        """Lock ``file`` until the block ends, even if it is closed before."""
        descriptor = os.dup(file.fileno())
        _HELD[descriptor] = file
        try:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield
        finally:
            del _HELD[descriptor]
            os.close(descriptor)

    def _remove_if_abandoned(path: Path) -> None:
        """Remove an unfinished file whose lock is free."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            with suppress(OSError):  # a symbolic link to a file that is gone
                path.unlink()
            return
        except OSError:  # not ours, or a folder
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except OSError:  # it is being written, or nobody can tell, or someone else was faster
            pass
        finally:
            os.close(descriptor)

    def _forget_locks() -> None:
        """In a process that was forked while this one writes: the locks are not its own."""
        for descriptor, file in _HELD.items():
            os.close(descriptor)
            if not file.closed:
                os.close(file.fileno())
        _HELD.clear()

    os.register_at_fork(after_in_child=_forget_locks)
