from __future__ import annotations

import pytest
import torch

from fulmen.errors import CheckpointError, ConfigurationError
from fulmen.likeness import check_like, restoring

EXAMPLE = {"count": 0, "name": "", "parts": [{"id": ""}], "inner": {"value": 0.0, "any": None}, "state": torch.empty(0)}


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"count": True, "name": "a", "parts": [], "inner": {}},
        {"count": torch.tensor(3), "parts": ({"id": "a", "more": 1},), "inner": {"value": 1, "any": [1]}},
        {"count": None, "name": None, "parts": None, "inner": None, "state": torch.zeros(5), "other": object()},
    ],
)
def test_what_is_alike_passes(saved):
    assert check_like(saved, EXAMPLE, "a.ckpt") is None


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"count": "a"}, "count is a str, and must be a number"),
        ({"count": torch.zeros(2)}, "count is a Tensor, and must be a number"),
        ({"name": 1}, "name is a int, and must be text"),
        ({"parts": {}}, "parts is a dict, and must be a list"),
        ({"parts": [{"id": "a"}, 1]}, "parts[1] is a int, and must be a dictionary"),
        ({"parts": [{"id": 1}]}, "parts[0].id is a int, and must be text"),
        ({"inner": {"value": []}}, "inner.value is a list, and must be a number"),
    ],
)
def test_what_is_not_names_the_file_and_the_key(saved, message):
    with pytest.raises(CheckpointError) as caught:
        check_like(saved, EXAMPLE, "a.ckpt")
    assert str(caught.value) == f"a.ckpt cannot be used: {message}"


def test_what_is_missing_is_named_where_all_must_be_there():
    with pytest.raises(CheckpointError) as caught:
        check_like({"inner": {"value": 1}}, {"inner": {"value": 0, "more": {}}}, "a.ckpt", complete=True)
    assert str(caught.value) == "a.ckpt cannot be used: it has no inner.more"


def test_what_fails_while_a_part_is_taken_over_names_it():
    with pytest.raises(CheckpointError) as caught, restoring("a.ckpt", "loops"):
        raise IndexError("list index out of range")
    assert str(caught.value) == (
        "a.ckpt cannot be restored: what it holds as loops does not do (IndexError: list index out of range)"
    )
    assert isinstance(caught.value.__cause__, IndexError)
    with pytest.raises(ConfigurationError, match=r"^own$"), restoring("a.ckpt", "loops"):
        raise ConfigurationError("own")
    with pytest.raises(KeyboardInterrupt), restoring("a.ckpt", "loops"):
        raise KeyboardInterrupt
