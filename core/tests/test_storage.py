"""Files that are whole or absent, and hold plain data only."""

from __future__ import annotations

import collections
import os
import pickle
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from fulmen import CheckpointError, FulmenWarning
from fulmen.storage import (
    check_plain,
    copy_checkpoint,
    is_url,
    newest_checkpoint,
    read_checkpoint,
    remove_file,
    verify_checkpoint,
    write_checkpoint,
)
from fulmen.testing.conformance.measure import full_disk

PLAIN = {
    "none": None,
    "numbers": [True, 1, 0.5, 1j, "text", b"bytes"],
    "tensors": (torch.arange(3), nn.Parameter(torch.zeros(2))),
    "set": {1, 2},
    "ordered": collections.OrderedDict(a=1),
    "counter": collections.Counter("aab"),
    "kinds": [torch.float16, torch.device("cpu"), torch.Size([2])],
    3: {"nested": {(1, "a"): []}},
}
ALLOWED = (
    "allowed are None, bool, int, float, complex, str, bytes, tensors, and lists, tuples, sets and dictionaries of these. "
    "Convert it, or leave it out"
)
REFUSED = [
    (
        {"a": {"b": [1, nn.ReLU()]}},
        f"a.b[1] is a torch.nn.modules.activation.ReLU, which a checkpoint cannot hold; {ALLOWED} "
        "(in the state_dict or on_save_checkpoint that gives it)",
    ),
    (
        {"hyper_parameters": {"activation": nn.ReLU()}},
        f"hyper_parameters.activation is a torch.nn.modules.activation.ReLU, which a checkpoint cannot hold; {ALLOWED} "
        "(save_hyperparameters(ignore=['activation']))",
    ),
    (
        {"a": np.float64(1)},
        f"a is a numpy.float64, which a checkpoint cannot hold; {ALLOWED} "
        "(in the state_dict or on_save_checkpoint that gives it)",
    ),
    (
        {"a": collections.defaultdict(list)},
        f"a is a collections.defaultdict, which a checkpoint cannot hold; {ALLOWED} "
        "(in the state_dict or on_save_checkpoint that gives it)",
    ),
    (
        {"a": {len: 1}},
        f"a: the key {len!r} is a builtins.builtin_function_or_method, which a checkpoint cannot hold; {ALLOWED} "
        "(in the state_dict or on_save_checkpoint that gives it)",
    ),
]


def test_plain_data_come_back(tmp_path):
    write_checkpoint(PLAIN, tmp_path / "a.ckpt")
    found = read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(found.pop("tensors")[0], torch.arange(3))
    assert found == {key: value for key, value in PLAIN.items() if key != "tensors"}
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["counter"] == {"a": 2, "b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize(("payload", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_plain_is_refused_by_name(tmp_path, payload, message):
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(payload, tmp_path / "folder" / "a.ckpt")
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


class Deep(dict):
    """A dictionary of some subclass."""


def test_subclasses_are_refused_because_a_reader_would_need_their_code():
    for value in (Deep(), type("Name", (str,), {})("a"), collections.namedtuple("Pair", "a")(1), True.__class__):
        with pytest.raises(CheckpointError, match="which a checkpoint cannot hold"):
            check_plain({"a": value})
    assert check_plain({"a": True}) is None


# ---- Files that do not do


def good(tmp_path):
    path = tmp_path / "good.ckpt"
    write_checkpoint({"state_dict": {"w": torch.arange(1000.0)}, "epoch": 3}, path)
    return path


def flipped(path):
    """One bit of the largest record differs. Between records there is padding, where nothing would be damaged."""
    with zipfile.ZipFile(path) as archive:
        name = max(archive.infolist(), key=lambda info: info.file_size).filename
        content = archive.read(name)
    data = bytearray(path.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 1
    path.write_bytes(data)


def compressed(path):
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)


class Evil:
    def __reduce__(self):
        return (os.system, ("echo unreachable",))


DAMAGED = {
    "flipped": (flipped, "{path} is damaged or no checkpoint: the checksum of the record 'archive/data/0' does not match"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "{path} is damaged or no checkpoint: File is not a zip file"),
    "empty": (lambda p: p.write_bytes(b""), "{path} is not a checkpoint: it is not in the format of torch.save"),
    "compressed": (compressed, "{path} is damaged or no checkpoint: a record is compressed, which torch.save never does"),
    "text": (
        lambda p: p.write_text("epoch,loss\n1,0.5\n"),
        "{path} is not a checkpoint: it is not in the format of torch.save",
    ),
    "a pickle": (
        lambda p: p.write_bytes(pickle.dumps({"a": 1})),
        "{path} is not a checkpoint: it is not in the format of torch.save",
    ),
    "a tensor": (
        lambda p: torch.save(torch.zeros(1), p),
        "{path} is not a checkpoint: it holds a Tensor, not a dictionary",
    ),
    "code": (
        lambda p: torch.save({"a": Evil()}, p),
        "{path} holds more than plain data and was not opened, because reading it could run code: ",
    ),
    "a module": (
        lambda p: torch.save(nn.Linear(1, 1), p),
        "{path} holds more than plain data and was not opened, because reading it could run code: ",
    ),
    "missing": (
        lambda p: p.rename(p.with_name("other.ckpt")),
        "there is no checkpoint at {path}; checkpoints in that folder: {folder}/other.ckpt",
    ),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "there is no checkpoint at {path}; checkpoints in that folder: {path}"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_that_does_not_do_says_why(tmp_path, case):
    change, message = DAMAGED[case]
    path = good(tmp_path)
    change(path)
    for read in (read_checkpoint, verify_checkpoint):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        expected = message.format(path=path, folder=tmp_path)
        assert str(caught.value)[: len(expected)] == expected


def test_every_flipped_byte_of_the_weights_is_noticed(tmp_path):
    path = good(tmp_path)
    data = path.read_bytes()
    start = data.index(torch.arange(1000.0).numpy().tobytes())
    for position in range(start, start + 4000, 97):
        path.write_bytes(data[:position] + bytes([data[position] ^ 64]) + data[position + 1 :])
        with pytest.raises(CheckpointError, match="checksum"):
            verify_checkpoint(path)
    path.write_bytes(data)
    assert verify_checkpoint(path) is None


def test_files_of_old_torch_are_read(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.ckpt")["state_dict"]["w"].tolist() == [1, 1]


# ---- Writing that fails


def test_a_write_that_fails_leaves_the_earlier_file(tmp_path):
    path = good(tmp_path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError):
        write_checkpoint({"a": object()}, path)
    assert path.read_bytes() == before
    blocked = path / "a.ckpt"
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint({"a": 1}, blocked)
    assert str(caught.value).startswith(f"could not save {blocked}: ")
    assert str(caught.value).endswith(
        ". An earlier file of that name is untouched; check the free space and the permissions of the folder"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["good.ckpt"]
    assert path.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_full_disk_leaves_the_earlier_file(tmp_path):
    path = good(tmp_path)
    before = path.read_bytes()
    with full_disk(10_000), pytest.raises(CheckpointError, match="could not save"):
        write_checkpoint({"w": torch.zeros(100_000)}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["good.ckpt"]


def test_a_process_that_is_killed_while_it_writes_leaves_the_earlier_file(tmp_path):
    path = good(tmp_path)
    before = path.read_bytes()
    code = f"""
import os, signal, fulmen.storage
fulmen.storage.verify_checkpoint = lambda path: os.kill(os.getpid(), signal.SIGKILL)
fulmen.storage.write_checkpoint({{"epoch": 4}}, {str(path)!r})
"""
    process = subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert newest_checkpoint([tmp_path]) == path


# ---- URLs


def test_a_url_is_written_read_and_removed():
    url = "memory://fulmen/storage/a.ckpt"
    write_checkpoint({"a": 1}, url)
    assert read_checkpoint(url) == {"a": 1}
    remove_file(url)
    remove_file(url)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(url)
    assert str(caught.value).startswith(f"could not read {url}: FileNotFoundError: ")
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint({"a": 1}, "nowhere://a/b.ckpt")
    assert str(caught.value) == "cannot use nowhere://a/b.ckpt: Protocol not known: nowhere"
    assert [is_url(path) for path in (url, "/tmp/a", "C:\\a")] == [True, False, False]


def test_a_damaged_file_behind_a_url_is_named_by_its_url(tmp_path):
    path = good(tmp_path)
    flipped(path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(f"file://{path}")
    assert str(caught.value).startswith(f"file://{path} is damaged or no checkpoint: ")


# ---- The newest


def test_the_newest_is_by_time_and_verifies(tmp_path):
    first, second = tmp_path / "b.ckpt", tmp_path / "a.ckpt"
    for number, path in enumerate((first, second)):
        write_checkpoint({"number": number}, path)
        os.utime(path, (1000 + number, 1000 + number))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.ckpt").mkdir()
    assert newest_checkpoint([tmp_path, tmp_path / "none"]) == second
    assert newest_checkpoint([tmp_path], accept=lambda checkpoint: checkpoint["number"] == 0) == first
    assert newest_checkpoint([tmp_path], accept=lambda checkpoint: False) is None
    flipped(second)
    with pytest.warns(FulmenWarning) as caught:
        assert newest_checkpoint([tmp_path]) == first
    (text,) = [str(warning.message) for warning in caught]
    assert text.startswith(f"[checkpoint-skipped] {second} is damaged or no checkpoint: ")
    assert text.endswith("; taking an older one")
    assert newest_checkpoint([]) is None


@pytest.mark.parametrize("link", [False, True])
def test_another_name_for_a_checkpoint(tmp_path, link):
    path, other = good(tmp_path), tmp_path / "other" / "last.ckpt"
    for _ in range(2):  # a name that exists is replaced
        copy_checkpoint(path, other, link)
        assert read_checkpoint(other, "meta").keys() == read_checkpoint(path, "meta").keys()
        assert other.is_symlink() is link and (link or other.samefile(path))
        assert [file.name for file in other.parent.iterdir()] == ["last.ckpt"]
    if not link:
        path.unlink()
        assert verify_checkpoint(other) is None


def test_another_name_for_what_is_not_there(tmp_path):
    path = good(tmp_path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=f"could not save {path}: .*No such file"):
        copy_checkpoint(tmp_path / "missing.ckpt", path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["good.ckpt"]
