"""A training may be cut anywhere: what was done before and what is done after is the training that was never cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from resume_job import MOMENTS, Keeper, Setup, check_union, go_on, train, uncut


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("averaging", ["swa", "ema"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_training_can_be_cut_at_every(tmp_path: Path, moment, averaging, late):
    setup, folder = Setup(averaging=averaging), tmp_path / "run"
    keeper = Keeper((moment,), late, folder)
    whole = uncut(setup, folder, keeper.idle())
    before = train(setup, folder, extra=(keeper,))
    assert whole.trainer.global_step == 42
    assert keeper.cuts
    for name, target in keeper.cuts:
        check_union(whole, before, go_on(setup, folder, target, keeper), name)
