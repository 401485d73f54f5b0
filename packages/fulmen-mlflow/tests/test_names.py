"""Names and values as MLflow takes them."""

from __future__ import annotations

import math

import pytest
import torch
from fulmen_mlflow.names import allowed_name, flatten, number, param_text, storable


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val/acc", "val/acc"),
        ("a b.c-d:e_1", "a b.c-d:e_1"),
        ("acc@1", "acc_1"),
        ("größe", "größe"),
        ("a//b", "a_b"),
        ("/a", "_a"),
        ("../a", "_a"),
        (".", "_"),
        ("", "_"),
    ],
)
def test_names_are_made_such_that_mlflow_takes_them(name, expected):
    from mlflow.utils.validation import _validate_metric_name

    assert allowed_name(name) == expected
    _validate_metric_name(allowed_name(name))


def test_long_names_stay_apart():
    first, second = allowed_name("x" * 300), allowed_name("x" * 299 + "y")
    assert len(first) == len(second) == 250
    assert first != second
    assert allowed_name("x" * 250) == "x" * 250


def test_nested_parameters_become_flat():
    found = dict(flatten({"net": {"width": 3, "empty": {}}, "list": [1, 2], "parts": [{"a": 1}, 2], 7: None}))
    assert found == {"net/width": 3, "net/empty": {}, "list": [1, 2], "parts/0/a": 1, "parts/1": 2, "7": None}


class Rude:
    def __str__(self):
        raise RuntimeError


def test_any_value_has_a_text():
    assert param_text(torch.float32) == "torch.float32"
    assert param_text(torch.nn.Linear) == "torch.nn.modules.linear.Linear"
    assert param_text(Rude()).endswith("test_names.Rude>")
    assert param_text("é" * 6000) == "é" * 6000
    assert param_text("é" * 6001) == "é" * 5997 + "..."


def test_numbers():
    assert number(torch.tensor(2.5)) == 2.5
    assert type(number(3)) is float
    assert math.isnan(storable(-math.inf)) and storable(1e300) == 1e300
