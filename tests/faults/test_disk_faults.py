"""A disk that fails: the error is loud, names the file and the remedy, and costs nothing that was saved before."""

from __future__ import annotations

import errno
import os
import random
import warnings

import pytest
from disk_shim import FLIPPED, LOST, SHORT, FailingDisk, name_of
from fault_runs import EPOCHS, WRITERS, contents, run, weights

from fulmen import CheckpointError, FulmenWarning, read_checkpoint
from fulmen.callbacks import ModelCheckpoint
from fulmen.loggers import CSVLogger
from fulmen.storage import verify_checkpoint

FAULTS = [
    *(("open", error) for error in (errno.ENOSPC, errno.EACCES, errno.EROFS)),
    *(("write", error) for error in (errno.ENOSPC, errno.EIO, LOST, FLIPPED)),
    *((operation, errno.EIO) for operation in ("fsync", "close", "read", "fsync folder")),
    *(("rename", error) for error in (errno.EIO, errno.EXDEV, errno.EACCES)),
]
REMEDY = "check the free space and the permissions of the folder"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of a training on a good disk."""
    return weights(run(WRITERS["last"](tmp_path_factory.mktemp("good")))[1])


@pytest.fixture
def failing(tmp_path, monkeypatch):
    def install(operation, error):
        (tmp_path / "files").mkdir()
        return FailingDisk(tmp_path / "files", operation, error).install(monkeypatch)

    return install


def cut_by(disk, writer, folder):
    """Run until the disk fails; what it said, and what lay there before."""
    before = {}

    def arm():
        before.update(contents(folder))
        disk.armed = True

    with pytest.raises(CheckpointError) as caught:
        run(WRITERS[writer](folder), arm)
    assert disk.hits
    disk.armed = False
    return str(caught.value), before


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(("operation", "error"), FAULTS, ids=[f"{name_of(error)} on {what}" for what, error in FAULTS])
def test_a_fault_is_loud_and_costs_nothing(tmp_path, failing, undisturbed, operation, error, writer):
    folder = tmp_path / "files"
    disk = failing(operation, error)
    told, before = cut_by(disk, writer, folder)
    after = contents(folder)
    assert not [name for name in after if name.endswith(".tmp")]
    if operation == "fsync folder":  # the new file is there, and everything that was there before
        assert "is complete, but may not survive a power cut" in told and os.strerror(error) in told
        assert before.keys() <= after.keys() and "check the disk" in told
    else:
        assert told.startswith(f"could not save {folder}{os.sep}") and told.endswith(REMEDY)
        assert (os.strerror(error) if error > 0 else "checksum") in told or error == LOST
        assert after == before
    assert before and [verify_checkpoint(folder / name) for name in after]
    _, module = run(WRITERS[writer](folder), ckpt_path="last")  # goes on from what is left, on a disk that works again
    assert weights(module) == undisturbed
    assert not [name for name in contents(folder) if name.endswith(".tmp")]


@pytest.mark.parametrize("writer", ["best", "best, asynchronous", "recovery", "recovery, asynchronous"])
@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.EROFS], ids=name_of)
def test_an_old_file_that_cannot_be_removed(tmp_path, failing, undisturbed, error, writer):
    folder = tmp_path / "files"
    told, before = cut_by(failing("remove", error), writer, folder)
    assert told.startswith(f"could not remove {folder}{os.sep}") and os.strerror(error) in told
    assert "the newer checkpoint is complete" in told
    after = contents(folder)
    assert len(after) == len(before) + 1 and all(read_checkpoint(folder / name) for name in after)
    _, module = run(WRITERS[writer](folder), ckpt_path="last")
    assert weights(module) == undisturbed
    assert len(contents(folder)) == len(before)  # what had to go has gone


@pytest.mark.parametrize("writer", WRITERS)
def test_short_writes_are_completed(tmp_path, failing, writer):
    folder = tmp_path / "files"
    disk = failing("write", SHORT)
    disk.armed = True
    run(WRITERS[writer](folder))
    assert disk.hits and contents(folder) and [verify_checkpoint(folder / name) for name in contents(folder)]


@pytest.mark.parametrize("save_last", [True, "link"])
@pytest.mark.parametrize("error", [errno.EPERM, errno.EXDEV, errno.EMLINK], ids=name_of)
def test_a_disk_without_links_gets_a_copy(tmp_path, failing, error, save_last):
    folder = tmp_path / "files"
    disk = failing("link", error)
    disk.armed = True
    callback = ModelCheckpoint(folder, "{epoch}", "score", save_top_k=2, save_last=save_last)
    run(callback)
    last = folder / "last.ckpt"
    assert disk.hits and not last.is_symlink() and last.stat().st_nlink == 1
    assert last.read_bytes() == (folder / f"epoch={EPOCHS - 1}.ckpt").read_bytes()
    assert sorted(contents(folder)) == [f"epoch={EPOCHS - 2}.ckpt", f"epoch={EPOCHS - 1}.ckpt", "last.ckpt"]


def test_a_copy_that_fails_names_the_file_that_is_missing(tmp_path, failing, monkeypatch):
    folder = tmp_path / "files"
    failing("link", errno.EPERM).armed = True
    told = []
    disk = FailingDisk(folder, "open", errno.ENOSPC).install(monkeypatch)
    monkeypatch.setattr(disk, "fails", lambda what, path=None: what == "open" and ".last.ckpt." in str(path))
    with pytest.raises(CheckpointError) as caught:
        run(ModelCheckpoint(folder, "{epoch}", "score", save_last=True))
    told = str(caught.value)
    assert told.startswith(f"could not save {folder}/last.ckpt: [Errno 28] No space left on device") and told.endswith(REMEDY)
    assert sorted(contents(folder)) == ["epoch=0.ckpt"]


@pytest.mark.parametrize("operation", ["open", "write", "fsync"])
def test_metrics_that_cannot_be_written_do_not_stop_a_training(tmp_path, failing, operation):
    disk = failing(operation, errno.ENOSPC)
    logger = CSVLogger(tmp_path / "files", flush_logs_every_n_steps=1)

    def arm():
        disk.armed = True

    with pytest.warns(FulmenWarning) as caught:
        trainer, _ = run(WRITERS["last"](tmp_path / "checkpoints"), arm, logger=logger, log_every_n_steps=1)
    assert trainer.status == "finished" and trainer.current_epoch == EPOCHS
    texts = {str(warning.message) for warning in caught}
    assert texts and all(text.startswith("[logger-failed] CSVLogger: OSError: [Errno 28] No space left") for text in texts)
    assert all("The training goes on" in text for text in texts)
    assert not list((tmp_path / "files").rglob("*.tmp"))


# ---- Files that were damaged later


def damages(content, seed):
    """Ways to damage a file: cut short, one bit changed, a block of zeros, emptied, replaced."""
    rng = random.Random(seed)
    yield "empty", b""
    yield "text", b"not a checkpoint\n" * 50
    for _ in range(6):
        yield "cut", content[: rng.randrange(len(content))]
    for _ in range(12):
        at = rng.randrange(len(content))
        yield f"bit at {at}", content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
    at = rng.randrange(len(content) - 512)
    yield "zeros", content[:at] + bytes(512) + content[at + 512 :]


def test_last_passes_over_what_is_damaged_and_says_so(tmp_path, undisturbed):
    """Each damage of the newest file; also of the newest two."""
    writer = WRITERS["trainer.save_checkpoint"]
    run(writer(tmp_path), max_epochs=3)
    paths = [tmp_path / f"mine-{epoch}.ckpt" for epoch in range(3)]
    whole, refused = [path.read_bytes() for path in paths], 0
    for seed, (how, content) in enumerate(damages(whole[2], 7)):
        hurt = paths[1:] if seed % 3 == 0 else paths[2:]
        for path in {*tmp_path.iterdir()} - {*paths}:
            path.unlink()  # of the training before
        for path, original in zip(paths, whole, strict=True):
            path.write_bytes(content if path in hurt else original)
            os.utime(path, (1e9 + int(path.stem[-1]), 1e9 + int(path.stem[-1])))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer, module = run(writer(tmp_path), ckpt_path="last")
        told = [str(each.message) for each in caught]
        skipped = [f"{path}" for path in reversed(hurt)]
        if not told:  # a bit that means nothing, such as one in the padding between records
            assert how.startswith("bit")
        else:
            refused += 1
            assert len(told) == len(hurt), how
            assert all(text.startswith(f"[checkpoint-skipped] {path} ") for text, path in zip(told, skipped, strict=True)), how
        assert weights(module) == undisturbed and trainer.current_epoch == EPOCHS
    assert refused >= 12
