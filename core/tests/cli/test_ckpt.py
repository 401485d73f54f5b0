"""`fulmen ckpt`: what files hold, whether they verify, in what they differ."""

from __future__ import annotations

import pytest
import torch

from fulmen.cli import main
from fulmen.storage import write_checkpoint
from fulmen.testing import Validated, batches, quiet


@pytest.fixture
def saved(tmp_path):
    trainer = quiet(max_epochs=1, limit_train_batches=3)
    trainer.fit(Validated(), batches(), batches(1))
    trainer.save_checkpoint(tmp_path / "all.ckpt")
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    return tmp_path


def lines(capsys):
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_what_a_checkpoint_holds(saved, capsys):
    assert main(["ckpt", "show", str(saved / "all.ckpt")]) == 0
    shown = lines(capsys)
    assert shown[0] == f"{saved / 'all.ckpt'}: verifies"
    assert "module Validated" in shown
    assert "position epoch 1, step 3" in shown
    assert "continues yes: fit(ckpt_path=...), exactly" in shown
    assert "state_dict 4 tensors with 26 numbers, 104 bytes" in shown
    assert "hyper_parameters {'lr': 0.1}" in shown
    assert main(["ckpt", "show", str(saved / "weights.ckpt")]) == 0
    assert "continues no: it holds weights only" in lines(capsys)


def test_a_damaged_file_is_named(saved, capsys):
    whole, damaged = saved / "all.ckpt", saved / "cut.ckpt"
    damaged.write_bytes(whole.read_bytes()[:500])
    assert main(["ckpt", "verify", str(whole)]) == 0
    assert lines(capsys) == [f"{whole} verifies"]
    assert main(["ckpt", "verify", str(whole), str(damaged)]) == 1
    shown = " ".join(lines(capsys))
    assert f"{whole} verifies" in shown
    assert "is damaged or no checkpoint" in shown
    assert main(["ckpt", "show", str(damaged)]) == 1
    assert capsys.readouterr().err.startswith(f"fulmen: {damaged} is damaged or no checkpoint: ")


def test_what_differs(tmp_path, capsys):
    nan = float("nan")
    first = {"a": {"w": torch.tensor([1.0, 2.0, nan]), "n": torch.tensor([1, 2])}, "list": [1, 2], "nan": nan, "gone": 1}
    second = {"a": {"w": torch.tensor([1.0, 2.5, nan]), "n": torch.tensor([1, 3])}, "list": [1, "2"], "nan": nan, "new": []}
    one, other = str(tmp_path / "1.ckpt"), str(tmp_path / "2.ckpt")
    write_checkpoint(first, one)
    write_checkpoint(second, other)
    assert main(["ckpt", "diff", one, one]) == 0
    assert lines(capsys) == [f"{one} and {one} hold the same 6 values"]
    assert main(["ckpt", "diff", one, other]) == 1
    assert lines(capsys) == [
        "5 of 7 values differ",
        "gone only in the first",
        "new only in the second",
        "a.w 1 of 3 elements, by at most 0.5",
        "a.n 1 of 2 elements",
        "list[1] int and str",
    ]


def test_shapes_and_scalars_that_differ(tmp_path, capsys):
    one, other = str(tmp_path / "1.ckpt"), str(tmp_path / "2.ckpt")
    write_checkpoint({"w": torch.zeros(2), "epoch": 1, "text": "a" * 100}, one)
    write_checkpoint({"w": torch.zeros(2, 1), "epoch": 2, "text": "a" * 100 + "b"}, other)
    assert main(["ckpt", "diff", one, other]) == 1
    assert lines(capsys)[1:3] == ["w (2,) of torch.float32 and (2, 1) of torch.float32", "epoch 1 and 2"]


@pytest.mark.parametrize("arguments", [["ckpt"], ["ckpt", "show"], ["ckpt", "verify"], ["ckpt", "diff", "one"]])
def test_what_is_missing_is_an_error_of_the_command(arguments, capsys):
    assert main(arguments) == 2
    assert "required" in capsys.readouterr().err
