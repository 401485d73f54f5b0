"""What is admitted of a pickle, and what is refused before anything follows it. Whole files are in ``tests/hostile``."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile

import pytest
import torch
from torch import nn

from fulmen.pickled import DEPTH, EXPANDED, KEY_SIZE, RefusedError
from fulmen.screening import screen


def saved(value):
    """The pickle that ``torch.save`` writes, and the sizes of its storages."""
    torch.save(value, buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as archive:
        sizes = {info.filename.rpartition("/")[2]: info.file_size for info in archive.infolist() if "/data/" in info.filename}
        return archive.read("archive/data.pkl"), sizes


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


PARAMETER = nn.Parameter(torch.zeros(2))
PARAMETER.note = {"a": [1]}
ADMITTED = {
    "scalars": [None, True, 0, 255, 65535, -1, 2**31, 2**100, -(2**70), 0.5, 1j, "text", "\ud800", b"bytes", "a" * 300],
    "containers": [(), (1,), (1, 2), (1, 2, 3), (1, "a", 3, 4), [], {}, {1, 2}, collections.Counter("aab"), {(1, "a"): {}}],
    "many": [list(range(3000)), {number: [number] for number in range(3000)}],
    "shared": [[1, 2]] * 5,
    "torch": [torch.float16, torch.Size([2, 3]), torch.device("cpu"), torch.per_tensor_affine],
    "tensors": [
        torch.zeros(2, 3).T,
        torch.tensor(1),
        torch.zeros(0, 5),
        torch.zeros(9)[3:5],
        torch.zeros(2, dtype=torch.uint16),
    ],
    "views": [torch.ones(1).expand(1000), torch.arange(6).as_strided((2, 2), (1, 1))],
    "complex": torch.zeros(2, dtype=torch.complex64).conj(),
    "parameters": [nn.Parameter(torch.ones(2), requires_grad=False), PARAMETER],
    "sparse": torch.eye(2).to_sparse(),
    "state_dict": nn.BatchNorm1d(2).state_dict(),
    "deep": nested(DEPTH - 1),
    "key": {tuple(range(KEY_SIZE)): 1},
}


@pytest.mark.parametrize("name", ADMITTED)
def test_what_torch_saves_is_admitted(name):
    data, sizes = saved({"value": ADMITTED[name]})
    assert screen(data, sizes) == len(data)
    assert screen(b"before" + data, sizes, 6) == len(data) + 6


REFUSED = {
    "too deep": (nested(DEPTH + 1), "a value is nested more than 100 levels deep"),
    "a long key": ({tuple(range(KEY_SIZE + 1)): 1}, "a key holds more than 100 values"),
    "odd keys": ({number + 0.5: 0 for number in range(10_001)}, "it has more than 10000 keys that are neither text nor"),
    "expanded": (torch.ones(1).expand(EXPANDED), "its tensors repeat 4 bytes until they are 1073741824"),
    "meta": (torch.zeros(1, device="meta"), "a tensor on the device 'meta' has no values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_asks_for_more_than_it_explains_is_refused(name):
    value, message = REFUSED[name]
    with pytest.raises(RefusedError) as caught:
        screen(*saved({"value": value}))
    assert str(caught.value).startswith(message)


def test_the_sizes_of_storages_are_those_of_the_file():
    data, sizes = saved({"value": torch.zeros(3)})
    assert sizes == {"0": 12}
    for wrong, said in (({"0": 8}, "8"), ({}, "no")):
        with pytest.raises(RefusedError) as caught:
            screen(data, wrong)
        assert str(caught.value) == f"the storage '0' has {said} bytes, and the pickle says 12"


def test_what_is_no_plain_data_is_named():
    with pytest.raises(pickle.UnpicklingError, match=r"^Unsupported global: torch.nn.modules.linear.Linear was not an allowed"):
        screen(*saved({"value": nn.Linear(1, 1)}))


class Allowed:
    """A class of the user."""


def test_what_the_user_allows_for_torch_is_allowed_here():
    data, sizes = saved({"value": Allowed()})
    with pytest.raises(pickle.UnpicklingError, match="Allowed was not an allowed global"):
        screen(data, sizes)
    with torch.serialization.safe_globals([Allowed]):
        assert screen(data, sizes) == len(data)
    with torch.serialization.safe_globals([(Allowed, f"{Allowed.__module__}.Allowed")]):
        assert screen(data, sizes) == len(data)


def test_every_cut_is_noticed():
    data, sizes = saved({key: ADMITTED[key] for key in ("scalars", "tensors", "parameters", "state_dict")})
    for end in range(0, len(data), 11):
        with pytest.raises((RefusedError, pickle.UnpicklingError)):
            screen(data[:end], sizes)
