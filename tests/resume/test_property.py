"""Whatever the options are, and wherever it is cut: the same training."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resume_job import MOMENTS, Keeper, Setup, check_union, go_on, train, uncut

ODD_STEPS = ("manual", "lbfgs")  # no windows of the trainer, no gradient scale
UNSIZED = ("stream", "stateful stream")


@st.composite
def setups(draw):
    module = draw(st.sampled_from(["automatic", "plain", "sums", "manual", "lbfgs"]))
    loaders = draw(st.sampled_from(["one", "own generator", "dropping", "min_size", "max_size_cycle", *UNSIZED]))
    across = draw(st.booleans())
    interval = st.integers(2, 9) if across or loaders in UNSIZED else st.sampled_from([None, 1.0, 0.5, 0.34, 2, 3])
    odd = module in ODD_STEPS
    return Setup(
        module=module,
        loaders=loaders,
        averaging=draw(st.sampled_from([None, None, "ema"] if odd else [None, "swa", "ema"])),
        accumulate=1 if odd else draw(st.sampled_from([1, 2, 3, {0: 1, 1: 3, 2: 2}])),
        precision=None if odd else draw(st.sampled_from([None, "bf16-mixed", "16-mixed"])),
        epochs=draw(st.integers(2, 5)),
        batch_size=draw(st.integers(2, 5)),
        val_check_interval=draw(interval),
        check_val_every_n_epoch=None if across else draw(st.integers(1, 2)),
        log_every=draw(st.integers(1, 5)),
        save_every=draw(st.sampled_from([None, 3])),
    )


def cut_and_compare(setup, moment, late, index):
    with tempfile.TemporaryDirectory() as name:
        folder, keeper = Path(name, "run"), Keeper((moment,), late, Path(name, "run"), 1)
        whole = uncut(setup, folder, keeper.idle())
        before = train(setup, folder, extra=(keeper,))
        if keeper.cuts:
            cut, target = keeper.cuts[index % len(keeper.cuts)]
            check_union(whole, before, go_on(setup, folder, target, keeper), cut)


CASES = {"setup": setups(), "moment": st.sampled_from(MOMENTS), "late": st.booleans(), "index": st.integers(0, 999)}
IGNORED = pytest.mark.filterwarnings(r"ignore:\[(resume-replay|log-interval|val-check|batch-size)\]")
OPTIONS = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@IGNORED
@settings(max_examples=12, derandomize=True, **OPTIONS)
@given(**CASES)
def test_some_trainings_cut_somewhere(setup, moment, late, index):
    cut_and_compare(setup, moment, late, index)


@IGNORED
@pytest.mark.nightly
@settings(max_examples=int(os.environ.get("FULMEN_EXAMPLES", "300")), **OPTIONS)
@given(**CASES)
def test_many_trainings_cut_anywhere(setup, moment, late, index):
    cut_and_compare(setup, moment, late, index)
