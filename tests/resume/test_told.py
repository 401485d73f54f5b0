"""Where a user's own code makes an exact resume impossible, a warning says so once, by name, with the way to get it."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from fulmen import Callback, FulmenWarning
from fulmen.testing import Regression, quiet

SIZE = 12
DATA = [(torch.full((3,), index / SIZE), torch.ones(1)) for index in range(SIZE)]


class Endless(IterableDataset):
    def __iter__(self):
        return iter(DATA)


class OwnGenerator(Sampler):
    """Draws from a generator that nobody else knows of."""

    def __init__(self, seed=None):
        self.draw = np.random.default_rng(seed)

    def __len__(self):
        return SIZE

    def __iter__(self):
        return iter(self.draw.permutation(SIZE).tolist())


class Saved(OwnGenerator):
    """The same, with its state."""

    def state_dict(self):
        return {"state": repr(self.draw.bit_generator.state)}

    def load_state_dict(self, state):
        self.draw.bit_generator.state = eval(state["state"])


class Late(Sampler):
    """Draws each index when it is asked for."""

    def __len__(self):
        return SIZE

    def __iter__(self):
        left = list(range(SIZE))
        while left:
            yield left.pop(random.randrange(len(left)))


class Batches(OwnGenerator):
    """A batch sampler without a seed."""

    def __len__(self):
        return SIZE // 2

    def __iter__(self):
        return iter(self.draw.permutation(SIZE).reshape(-1, 2).tolist())


class Save(Callback):
    runs_last = True

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == 8:
            trainer.save_checkpoint(self.path)


def resume(tmp_path, make):
    """What a resume in the middle of the second epoch warns of, and the losses of it and of the training without a cut."""
    random.seed(1), np.random.seed(1)
    found = []
    for path in (None, tmp_path / "cut.ckpt"):
        module = Regression()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            quiet(max_epochs=3, callbacks=Save(tmp_path / "cut.ckpt" if path is None else tmp_path / "x")).fit(
                module, make(), ckpt_path=path
            )
        found.append((module.losses, [str(each.message) for each in caught if each.category is FulmenWarning]))
    return found[1][1], found[1][0] == found[0][0][8:]


@pytest.mark.parametrize(("make", "code", "name"), [
    (lambda: DataLoader(Endless(), 2), "resume-replay", "train_dataloader"),
    (lambda: DataLoader(DATA, 2, sampler=OwnGenerator()), "resume-order", "OwnGenerator"),
    (lambda: DataLoader(DATA, 2, sampler=Late()), "resume-order", "Late"),
    (lambda: DataLoader(DATA, batch_sampler=Batches()), "resume-order", "Batches"),
], ids=["iterable", "own generator", "draws late", "batch sampler"])  # fmt: skip
def test_what_cannot_be_exact_is_said_once_by_name(tmp_path, make, code, name):
    told, _ = resume(tmp_path, make)
    (text,) = [each for each in told if each.startswith("[resume")]
    assert text.startswith(f"[{code}]")
    assert name in text
    assert "state_dict and load_state_dict" in text


def test_a_sampler_with_a_state_is_exact(tmp_path):
    told, exact = resume(tmp_path, lambda: DataLoader(DATA, 2, sampler=Saved(3)))
    assert not [each for each in told if each.startswith("[resume")]
    assert exact
