"""Masks, too: a training that prunes may be cut at every moment around the end of an epoch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from resume_job import MOMENTS, Keeper, Setup, check_union, go_on, train, uncut

from fulmen.callbacks import ModelPruning

SETUP = Setup(averaging=None, module="plain", accumulate=1, epochs=3, batch_size=6, precision=None, val_check_interval=1.0)
PRUNINGS = {
    "plain": {"use_lottery_ticket_hypothesis": False},
    "not permanent": {"use_lottery_ticket_hypothesis": False, "make_pruning_permanent": False},
    "by epoch": {"use_lottery_ticket_hypothesis": lambda epoch: epoch == 1, "amount": lambda epoch: (0.2, 2, 0.1)[epoch]},
    "lottery": {"use_lottery_ticket_hypothesis": True},
    "resampled": {"resample_parameters": True},
    "random": {"pruning_fn": "random_unstructured", "use_lottery_ticket_hypothesis": False},
    "slices": {"pruning_fn": "ln_structured", "use_global_unstructured": False, "pruning_dim": 0, "pruning_norm": 2},
    "after validations": {"prune_on_train_epoch_end": False, "use_lottery_ticket_hypothesis": False},
}
AT_THE_END = tuple(moment for moment in MOMENTS if moment not in ("on_train_start", "on_train_batch_end"))


def check(folder, pruning, moments, late=False, every=1, setup=SETUP):
    make = lambda: ModelPruning(**{"pruning_fn": "l1_unstructured", "amount": 0.2, **PRUNINGS[pruning]})  # noqa: E731
    keeper = Keeper(moments, late, folder, every)
    whole = uncut(setup, folder, keeper.idle(), make())
    before = train(setup, folder, extra=(keeper, make()))
    assert 0 < float(whole.trainer.callback_metrics["sparsity"]) < 1
    for name, target in keeper.cuts:
        check_union(whole, before, go_on(setup, folder, target, keeper, make()), name)
    return len(keeper.cuts)


@pytest.mark.parametrize(("pruning", "late", "every"), [
    ("plain", False, 1),
    ("not permanent", False, 3),
    ("by epoch", True, 3),
    ("resampled", False, 4),
    ("after validations", True, 4),
])  # fmt: skip
def test_a_pruning_can_be_cut_around_the_end_of_an_epoch(tmp_path, pruning, late, every):
    assert check(tmp_path / "run", pruning, AT_THE_END, late, every) > 4


@pytest.mark.parametrize("interval", [1.0, 4], ids=["validated last", "trained last"])
def test_a_pruning_can_be_cut_after_its_last_step(tmp_path, interval):
    """An epoch has six batches: after the last one, layers show what they were before that, until they are called."""
    setup = replace(SETUP, val_check_interval=interval)
    assert check(tmp_path / "run", "plain", ("on_train_batch_end",), True, 3, setup) == 6


@pytest.mark.nightly
@pytest.mark.parametrize("interval", [1.0, 4])
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("pruning", PRUNINGS)
def test_every_pruning_can_be_cut_in_every_hook(tmp_path, pruning, late, interval):
    check(tmp_path / "run", pruning, MOMENTS, late, setup=replace(SETUP, val_check_interval=interval))
