"""`fulmen runs`: how far trainings came, and what they go on from."""

from __future__ import annotations

import os

import pytest

from fulmen import Callback, Trainer
from fulmen.cli import main
from fulmen.storage import write_checkpoint
from fulmen.testing import QUIET, Validated, batches


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.request_stop("enough")


def train(folder, callbacks=(), **options):
    options = {**QUIET, "enable_checkpointing": True, "default_root_dir": folder, **options}
    Trainer(**options, callbacks=list(callbacks)).fit(Validated(), batches(), batches(1))
    (path,) = folder.rglob("*.ckpt")
    now = os.path.getmtime(path)
    os.utime(path, (now - 3600 * 5, now - 3600 * 5))
    return path


def test_each_training_with_its_newest_checkpoint(tmp_path, capsys):
    done = train(tmp_path / "done", max_epochs=2)
    steps = train(tmp_path / "steps", max_epochs=2, max_steps=8)
    between = train(tmp_path / "between", [StopAt(8)], max_epochs=2)
    inside = train(tmp_path / "inside", [StopAt(11)], max_epochs=2)
    capsys.readouterr()
    assert main(["runs", str(tmp_path)]) == 0
    expected = [
        ("between", between, "epoch 0, step 8, saved 5 h ago: enough; goes on"),
        ("done", done, "epoch 1, step 16, saved 5 h ago: finished: max_epochs=2"),
        ("inside", inside, "epoch 1, step 11, saved 5 h ago: enough; goes on after batch 3 of the epoch"),
        ("steps", steps, "epoch 0, step 8, saved 5 h ago: finished: max_steps=8"),
    ]
    lines = [f"{tmp_path}/{name}\n  Validated, {text}\n  {path}\n" for name, path, text in expected]
    assert capsys.readouterr().out == "".join(lines)


def test_a_damaged_one_is_said_and_the_one_before_it_is_shown(tmp_path, capsys):
    path = train(tmp_path / "here", max_epochs=1)
    damaged = path.with_name("newer.ckpt")
    damaged.write_bytes(path.read_bytes()[:2000])
    capsys.readouterr()
    assert main(["runs", str(tmp_path)]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[2].strip() == str(path)
    assert shown[3].strip().startswith(f"{damaged} is damaged")


def test_files_that_are_no_trainings(tmp_path, capsys):
    write_checkpoint({"state_dict": {}}, tmp_path / "weights.ckpt")
    write_checkpoint({"state_dict": {}, "run": [1], "loops": {"fit_loop": 3}}, tmp_path / "odd" / "strange.ckpt")
    assert main(["runs", str(tmp_path)]) == 0
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()[1::3]] == ["holds weights only"] * 2


def test_where_there_is_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "no checkpoints below .\n"
    assert main(["runs", "gone"]) == 1
    assert capsys.readouterr().err == (
        "fulmen: there is no folder 'gone'; give one below which trainings were saved, such as '.'\n"
    )


@pytest.mark.parametrize("command", [["runs", "--help"], ["--help"]])
def test_the_help_says_what_it_does(command, capsys):
    assert main(command) == 0
    assert "trainings" in capsys.readouterr().out
