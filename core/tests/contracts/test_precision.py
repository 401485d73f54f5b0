"""The defaults of a precision."""

from __future__ import annotations

import torch
from torch import nn

from fulmen import Precision


def test_the_defaults_of_a_precision_change_nothing():
    precision, layer, loss = Precision(), nn.Linear(1, 1), torch.ones(1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    assert precision.name == "32-true"
    assert precision.convert_module(layer) is layer
    assert precision.convert_input(loss) is precision.scale_loss(loss) is loss
    assert precision.wrap_step(len) is len
    assert (precision.state_dict(), precision.load_state_dict({}), precision.unscale(optimizer)) == ({}, None, None)
    layer.weight.grad = torch.ones(1, 1)
    before = layer.weight.item()
    with precision.forward_context(), precision.init_context():
        precision.optimizer_step(optimizer)
    assert layer.weight.item() == before - 0.5
    assert precision.optimizer_step(optimizer, lambda: 3.0) == 3.0
    assert precision.teardown() is None


def test_casting_leaves_what_is_no_floating_point_number():
    batch = {"x": torch.ones(2), "y": torch.ones(2, dtype=torch.int64), "name": "a", "mask": torch.ones(1, dtype=torch.bool)}
    found = Precision.cast(batch, torch.bfloat16)
    assert [found[key].dtype for key in ("x", "y", "mask")] == [torch.bfloat16, torch.int64, torch.bool]
    assert found["name"] == "a"
