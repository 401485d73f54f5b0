"""Random states are seeded, taken and put back, and survive a file."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fulmen import ConfigurationError, seed_everything
from fulmen.rng import isolated, random_state, set_random_state


def draw():
    """A number from every generator, normal ones too, which keep a second one back."""
    return [
        random.random(),
        random.gauss(0, 1),
        torch.rand(1).item(),
        torch.randn(1).item(),
        np.random.rand(),
        np.random.randn(),
    ]


def test_the_same_seed_gives_the_same_numbers(capsys):
    assert seed_everything(7) == 7
    first = draw()
    assert capsys.readouterr().out == ""
    assert seed_everything(7, workers=True, verbose=True) == 7
    assert draw() == first
    assert capsys.readouterr().out == "seed: 7\n"
    seed_everything(8)
    assert draw() != first


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "7", None, True])
def test_a_wrong_seed_says_which_are_right(seed):
    with pytest.raises(ConfigurationError) as caught:
        seed_everything(seed)
    assert str(caught.value) == f"seed={seed!r} must be a whole number from 0 to 4294967295"


@pytest.mark.parametrize("before", [0, 1])
def test_a_state_is_put_back_from_a_file(tmp_path, before):
    seed_everything(3)
    [draw() for _ in range(before)]
    random.gauss(0, 1)  # the second of its pair is still to come
    torch.save(random_state(), tmp_path / "state.pt")
    expected = [draw(), draw()]
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draw(), draw()] == expected


def test_what_is_drawn_in_isolation_does_not_show():
    seed_everything(3)
    expected = draw()
    seed_everything(3)
    with pytest.raises(KeyError), isolated():
        draw()
        raise KeyError
    assert draw() == expected
