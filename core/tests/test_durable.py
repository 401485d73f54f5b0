"""Unfinished files: their owner finishes them or removes them, and nobody else touches them while it lives."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from fulmen.durable import flush_folder, new_file_beside, other_name_beside, prepare_folder, remove_leftovers, temporary_beside

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks that end with their process")
LEFTOVER = ".a.ckpt.0123abcd.tmp"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_renamed_or_gone(tmp_path):
    with new_file_beside(tmp_path / "a") as file:
        file.write(b"one")
        file.close()
        os.replace(file.name, tmp_path / "a")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"one"
    with pytest.raises(ZeroDivisionError), new_file_beside(tmp_path / "a") as file:
        file.write(b"two")
        1 / 0  # noqa: B018
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"one" and file.closed


@posix
def test_leftovers_are_removed_and_nothing_else(tmp_path):
    kept = ["a.ckpt", ".hidden", ".a.ckpt.tmp", ".a.0123abcd.tmp.txt", "a.ckpt.0123abcd.tmp"]
    for name in (*kept, LEFTOVER, ".b.89abcdef.tmp"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".folder.0123abcd.tmp").mkdir()
    os.symlink("nowhere", tmp_path / ".c.0123abcd.tmp")
    os.link(tmp_path / "a.ckpt", tmp_path / ".d.0123abcd.tmp")
    remove_leftovers([tmp_path, tmp_path / "missing", tmp_path / "a.ckpt"])
    assert names(tmp_path) == sorted([*kept, ".folder.0123abcd.tmp"])
    assert temporary_beside(tmp_path / "a.ckpt").name[:8] == ".a.ckpt."
    prepare_folder(tmp_path / "new" / "folder")
    (tmp_path / "new" / "folder" / LEFTOVER).write_text("x")
    prepare_folder(tmp_path / "new" / "folder")
    assert names(tmp_path / "new" / "folder") == []


@posix
def test_a_file_that_is_being_written_stays(tmp_path):
    with new_file_beside(tmp_path / "a") as file:
        remove_leftovers([tmp_path])
        file.write(b"one")
        file.close()
        remove_leftovers([tmp_path])  # it is still this process's own: it is being verified
        os.replace(file.name, tmp_path / "a")
    with other_name_beside(tmp_path / "a", tmp_path / "b") as temporary:
        os.link(tmp_path / "a", temporary)
        remove_leftovers([tmp_path])
        os.replace(temporary, tmp_path / "b")
    with other_name_beside(tmp_path / "a", tmp_path / "c") as temporary:
        os.symlink("a", temporary)
        remove_leftovers([tmp_path])
        os.replace(temporary, tmp_path / "c")
    assert names(tmp_path) == ["a", "b", "c"] and (tmp_path / "c").read_bytes() == b"one"


WRITER = """
import os, sys, time
from pathlib import Path
from fulmen.durable import new_file_beside

with new_file_beside(Path(sys.argv[1], "a")) as file:
    child = os.fork()
    if not child:
        os.write(1, b"child\\n")
        time.sleep(600)
    os.write(1, b"parent %d\\n" % child)
    time.sleep(600)
"""


@posix
def test_a_file_is_its_process_s_own_until_that_dies(tmp_path):
    """Also where a process that was forked meanwhile, such as a worker of a loader, lives on."""
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True) as writer:
        child = 0
        try:
            assert writer.stdout is not None
            told = sorted([writer.stdout.readline(), writer.stdout.readline()])
            child = int(told[1].split()[1])
            (unfinished,) = names(tmp_path)
            remove_leftovers([tmp_path])
            assert names(tmp_path) == [unfinished]
            writer.kill()
            writer.wait()
            os.kill(child, 0)  # the child lives
            remove_leftovers([tmp_path])
            assert names(tmp_path) == []
        finally:
            writer.kill()
            if child:
                os.kill(child, 9)


@posix
def test_a_new_file_that_was_taken_for_a_leftover_is_made_again(tmp_path, monkeypatch):
    """Another process may come between the making of a file and its lock."""
    import fcntl

    lock, taken = fcntl.flock, []

    def flock(descriptor, operation):
        if not taken:
            taken.extend(names(tmp_path))
            os.unlink(tmp_path / taken[0])
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with new_file_beside(tmp_path / "a") as file:
        file.close()
        os.replace(file.name, tmp_path / "a")
    assert taken and names(tmp_path) == ["a"]


@posix
def test_a_disk_without_locks_keeps_what_may_be_someone_s(tmp_path, monkeypatch):
    import fcntl

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / LEFTOVER).write_text("x")
    remove_leftovers([tmp_path])
    with new_file_beside(tmp_path / "a") as file:
        file.close()
        os.replace(file.name, tmp_path / "a")
    assert names(tmp_path) == [LEFTOVER, "a"]


@posix
def test_the_first_file_of_a_folder_flushes_those_above(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("fulmen.durable.flush_folder", lambda folder: flushed.append(folder))
    prepare_folder(tmp_path / "a" / "b")
    assert flushed == [*(tmp_path.resolve() / "a" / "b").parents]
    (tmp_path / "a" / "b" / "one.ckpt").write_text("x")
    prepare_folder(tmp_path / "a" / "b")
    assert len(flushed) == len((tmp_path.resolve() / "a" / "b").parents)


@posix
@pytest.mark.parametrize(("error", "raises"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_flushed(tmp_path, monkeypatch, error, raises):
    def fsync(descriptor):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fsync)
    if raises:
        with pytest.raises(OSError, match=os.strerror(error)):
            flush_folder(tmp_path)
    else:
        flush_folder(tmp_path)
