"""Trainings that are ended as people and accidents end them, and go on from the newest file that fulmen wrote by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from resume_job import Cutter, Setup, check_union, comparable, differences, rows_in, train, uncut
from torch import load

from fulmen import Callback, FulmenWarning, testing

SETUPS = {
    "interrupt": Setup(),
    "stop": Setup(averaging="ema"),
    "error": Setup(save_every=1, accumulate=1, epochs=4),
}


def check(folder, how, first, every):
    setup = SETUPS[how]
    whole = uncut(setup, folder, Cutter())
    for batches in range(first, whole.trainer.progress.batches, every):
        before = train(setup, folder, extra=(Cutter(how, batches),))
        assert before.trainer.progress.batches == batches
        # A stop validates once more, after the step: rows that nobody else logs, and a file that may be among the best.
        more = f"events.('validate', {batches},", f"events.('validated', {batches})", "ModelCheckpoint", "rows", "loggers"
        but = more if how == "stop" and batches % 11 not in (0, 5, 10) else ()
        check_union(whole, before, train(setup, folder, "last", (Cutter(),)), f"{how} after {batches} batches", but)
        shutil.rmtree(folder)


@pytest.mark.filterwarnings(r"ignore:\[log-interval\]")
@pytest.mark.parametrize(("how", "first"), [("interrupt", 6), ("stop", 9), ("error", 4)])
def test_a_training_goes_on_from_its_newest_checkpoint(tmp_path, how, first):
    check(tmp_path / "run", how, first, 17)


@pytest.mark.nightly
@pytest.mark.filterwarnings(r"ignore:\[log-interval\]")
@pytest.mark.parametrize("how", SETUPS)
@pytest.mark.parametrize("first", range(2, 8))
def test_a_training_goes_on_from_its_newest_checkpoint_wherever_it_ends(tmp_path, how, first):
    check(tmp_path / "run", how, first, 6)


@pytest.mark.parametrize("ends", [(9, 10, 11), (22, 23), (5, 41, 70)], ids=str)
def test_a_training_may_be_cut_several_times(tmp_path, ends):
    setup, folder = Setup(), tmp_path / "run"
    whole, path, events = uncut(setup, folder, Cutter()), None, {}
    for batches in ends:
        part = train(setup, folder, path, (Cutter("interrupt", batches),))
        assert part.trainer.progress.batches == batches
        events, path = {**events, **part.witness.events}, "last"
    after = train(setup, folder, path, (Cutter(),))
    part.witness.events = events
    check_union(whole, part, after, f"after {ends}")


def test_a_process_that_a_signal_ends_goes_on_in_another(tmp_path):
    def child(*arguments):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
        command = [sys.executable, Path(__file__).with_name("resume_job.py"), tmp_path / "run", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)

    whole = uncut(Setup(), tmp_path / "run", Cutter())
    assert child("terminate", "37").returncode == -15
    last = child("", "-1")
    assert last.returncode == 0, last.stderr
    assert "continuing from" in last.stdout
    end = comparable(load(tmp_path / "end.ckpt", weights_only=True))
    assert differences(whole.end, end) == []
    assert whole.rows == rows_in(tmp_path / "run")


@pytest.mark.filterwarnings(r"ignore:\[batch-size\]")
@pytest.mark.parametrize("loaders", ["one", "max_size_cycle"])
def test_a_save_inside_of_a_batch_says_what_is_not_exact(tmp_path, loaders, capsys):
    """The batch is trained on again, none is left out, and with other random numbers."""
    setup, folder = Setup(save_on_exception=True, loaders=loaders, averaging=None, epochs=2), tmp_path / "run"
    whole = uncut(setup, folder, Cutter())
    before = train(setup, folder, extra=(Cutter("error inside", 7),), end=False)
    assert before.trainer.progress.batches == 7
    (path,) = folder.rglob("exception-*.ckpt")
    after = train(setup, folder, path, (Cutter(),))
    seen = [event["what"][:3] for key, event in {**before.witness.events, **after.witness.events}.items() if key[0] == "train"]
    first = [event["what"][:3] for key, event in whole.witness.events.items() if key[0] == "train"]
    assert seen == first
    assert (
        "the resume is not exact:\n- the checkpoint was saved inside a batch, which is trained on again"
        in capsys.readouterr().out
    )


def test_a_save_inside_of_a_batch_that_goes_on_is_warned_about(tmp_path):
    class Save(Callback):
        def on_before_backward(self, trainer, module, loss):
            if trainer.progress.batches == 7:
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

    with pytest.warns(FulmenWarning, match=r"^\[save-in-batch\] saved while batch 7 of epoch 0 is trained on"):
        testing.quiet(max_epochs=1, callbacks=Save()).fit(testing.Regression(), testing.batches())
