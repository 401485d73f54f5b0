"""What counts as having a state."""

from __future__ import annotations

from torch import nn

from fulmen import DataModule, Stateful


def test_anything_with_a_state_is_stateful():
    assert isinstance(nn.Linear(1, 1), Stateful)
    assert isinstance(DataModule(), Stateful)
    assert not isinstance({}, Stateful)
