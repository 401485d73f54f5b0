from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.builtin.json_text import json_text

np = pytest.importorskip("numpy")
yaml = pytest.importorskip("yaml", reason="reads what must be YAML")

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=10,
)


@given(value=PLAIN)
@settings(max_examples=300, deadline=None)
def test_plain_values_read_back_from_json_and_from_yaml(value: Any) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert yaml.safe_load(text) == value


def test_floats_without_a_point_are_numbers_in_yaml_too() -> None:
    assert json_text([1e-05, 1e16, 2.5]) == "[\n  1.0e-05,\n  1.0e+16,\n  2.5\n]"
    assert yaml.safe_load(json_text(1e-05)) == 1e-05


class Color(Enum):
    RED = 1


class Loud:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), '"nan"'),
        (float("-inf"), '"-inf"'),
        (np.float32(0.5), "0.5"),
        (torch.tensor(3), "3"),
        (torch.tensor([1, 2]), '"tensor([1, 2])"'),
        (np.int64(7), "7"),
        (Path("a/b"), '"a/b"'),
        (torch.float16, '"torch.float16"'),
        (torch.device("cpu"), '"cpu"'),
        (torch.nn.ReLU, '"torch.nn.modules.activation.ReLU"'),
        (torch.nn.functional.relu, '"torch.nn.functional.relu"'),
        (Color.RED, '"Color.RED"'),
        ({3, 1}, "[\n  1,\n  3\n]"),
        ((), "[]"),
        ({}, "{}"),
        ({(1, 2): None, 3: True}, '{\n  "(1, 2)": null,\n  "3": true\n}'),
    ],
)
def test_other_values_become_strings_or_their_nearest(value: Any, text: str) -> None:
    assert json_text(value) == text


def test_an_object_that_cannot_be_shown_costs_only_itself() -> None:
    assert json.loads(json_text({"a": Loud(), "b": 1}))["b"] == 1
    assert "Loud" in json_text(Loud())


def test_a_collection_that_contains_itself_ends() -> None:
    value: list[Any] = [1]
    value.append(value)
    assert json.loads(json_text(value)) == [1, "(contains itself)"]
