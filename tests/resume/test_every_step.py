"""A training may be cut anywhere: what was done before and what is done after is the training that was never cut."""

from __future__ import annotations

import pytest
from resume_job import MOMENTS, Keeper, Setup, check_union, go_on, train, uncut


def check(folder, moment, averaging, late, every=1):
    setup, keeper = Setup(averaging=averaging), Keeper((moment,), late, folder, every)
    whole = uncut(setup, folder, keeper.idle())
    before = train(setup, folder, extra=(keeper,))
    assert whole.trainer.global_step == 42
    assert keeper.cuts
    for name, target in keeper.cuts:
        check_union(whole, before, go_on(setup, folder, target, keeper), name)
    return len(keeper.cuts)


def test_a_training_can_be_cut_after_every_batch(tmp_path):
    """Every boundary of the 77 batches in 42 steps: between steps, inside of accumulation windows, at the ends of epochs."""
    assert check(tmp_path / "run", "on_train_batch_end", "swa", late=True) == 77


@pytest.mark.parametrize(("moment", "averaging", "late", "every"), [
    ("on_train_start", "ema", False, 1),
    ("on_train_epoch_start", "swa", True, 2),
    ("on_train_batch_end", "ema", False, 7),
    ("on_validation_start", "swa", False, 5),
    ("on_validation_batch_end", "ema", True, 9),
    ("on_validation_batch_end", "swa", False, 11),
    ("on_validation_epoch_end", "swa", True, 5),
    ("on_validation_end", "ema", False, 4),
    ("on_validation_end", "swa", True, 4),
    ("on_train_epoch_end", "swa", False, 2),
    ("on_train_epoch_end", "ema", True, 3),
    ("on_train_end", "swa", True, 1),
])  # fmt: skip
def test_a_training_can_be_cut_in_other_hooks(tmp_path, moment, averaging, late, every):
    check(tmp_path / "run", moment, averaging, late, every)


@pytest.mark.nightly
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("averaging", ["swa", "ema"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_training_can_be_cut_in_every_hook(tmp_path, moment, averaging, late):
    check(tmp_path / "run", moment, averaging, late)
