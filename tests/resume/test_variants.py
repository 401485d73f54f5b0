"""Other kinds of training, of data and of options, cut here and there."""

from __future__ import annotations

import pytest
from resume_job import Keeper, Setup, check_union, go_on, train, uncut

SHORT = {"epochs": 3, "averaging": None}
VARIANTS = {
    "manual": Setup(module="manual", accumulate=1, **SHORT),
    "lbfgs": Setup(module="lbfgs", accumulate=1, precision=None, **SHORT),
    "plain": Setup(module="plain", accumulate=1, precision=None, **SHORT),
    "sums": Setup(module="sums", accumulate=3, precision=None, **SHORT),
    "changing accumulation": Setup(module="plain", accumulate={0: 1, 1: 3, 2: 2}, precision="bf16-mixed", **SHORT),
    "averaged": Setup(averaging="swa", module="plain", epochs=6),
    "own generator": Setup(loaders="own generator", **SHORT),
    "dropping": Setup(loaders="dropping", **SHORT),
    "min_size": Setup(loaders="min_size", **SHORT),
    "max_size_cycle": Setup(loaders="max_size_cycle", **SHORT),
    "max_size": Setup(loaders="max_size", **SHORT),
    "stateful stream": Setup(loaders="stateful stream", val_check_interval=5, **SHORT),
    "stream": Setup(loaders="stream", val_check_interval=5, **SHORT),
    "torchdata": Setup(loaders="torchdata", **SHORT),
    "reloading": Setup(module="reloading", reload_every=1, **SHORT),
    "reloading seldom": Setup(module="reloading", reload_every=2, epochs=5, averaging="ema"),
    "over epochs": Setup(val_check_interval=7, check_val_every_n_epoch=None, **SHORT),
    "every second epoch": Setup(module="plain", check_val_every_n_epoch=2, val_check_interval=None, epochs=5),
    "stopping early": Setup(patience=2, epochs=12),
    "limited": Setup(options={"limit_train_batches": 7, "max_steps": 9, "gradient_clip_val": 0.5}, **SHORT),
}
IN_WORKERS = {
    "workers": Setup(workers=2, prefetch=3, **SHORT),
    "persistent workers": Setup(workers=2, persistent=True, val_workers=1, **SHORT),
    "torchdata workers": Setup(loaders="torchdata", workers=2, **SHORT),
    "max_size_cycle in workers": Setup(loaders="max_size_cycle", workers=1, persistent=True, **SHORT),
}
WARNED = pytest.mark.filterwarnings(r"ignore:\[resume-replay\]", "ignore:'set_vital'")


def check(folder, setup, moment, every):
    keeper = Keeper((moment,), True, folder, every)
    whole = uncut(setup, folder, keeper.idle())
    before = train(setup, folder, extra=(keeper,))
    assert keeper.cuts
    for name, target in keeper.cuts:
        check_union(whole, before, go_on(setup, folder, target, keeper), name)


@WARNED
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_can_be_cut_anywhere(tmp_path, name):
    check(tmp_path / "run", VARIANTS[name], "on_train_batch_end", 10)


@WARNED
@pytest.mark.parametrize("name", IN_WORKERS)
def test_a_training_with_workers_can_be_cut_anywhere(tmp_path, name):
    check(tmp_path / "run", IN_WORKERS[name], "on_train_batch_end", 12)


@pytest.mark.nightly
@WARNED
@pytest.mark.parametrize("moment", ["on_train_batch_end", "on_validation_batch_end", "on_validation_end", "on_train_epoch_end"])
@pytest.mark.parametrize("name", [*VARIANTS, *IN_WORKERS])
def test_a_variant_can_be_cut_at_every_moment(tmp_path, name, moment):
    check(tmp_path / "run", {**VARIANTS, **IN_WORKERS}[name], moment, 1)
