"""Several processes learn what one process learns."""

from __future__ import annotations

import json
import math
import multiprocessing
import sys

import pytest
import torch
from ddp_checks import JOB, check_weights, finished
from ddp_job import Job, module_for, one_process, samples, train
from fulmen_ddp import DDPStrategy

from fulmen import ConfigurationError, Trainer
from fulmen.testing import quiet


@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
def test_two_ranks_equal_one_process(script, tmp_path, strategy):
    """With accumulation, a ragged last window, clipping, weighted sums, manual optimization; epoch metrics too."""
    names = ["plain", "manual", "accumulated", "sums"]
    status, output = finished(script(JOB, strategy, tmp_path, ",".join(names)))
    assert status == 0, output
    for name in names:
        trainer = check_weights(tmp_path, name, 2)
    metrics, steps, size = json.loads((tmp_path / "metrics.json").read_text())
    assert (steps, size) == (trainer.global_step, 2)
    for key in ("train_loss_epoch", "val_loss", "val_max", "val_count"):
        assert math.isclose(metrics[key], float(trainer.callback_metrics[key]), rel_tol=1e-6), key
    assert metrics["val_count"] == 53  # no sample twice


def test_four_ranks_equal_one_process(script, tmp_path):
    status, output = finished(script(JOB, "ddp_fork", tmp_path, "plain,accumulated", 4))
    assert status == 0, output
    for name in ("plain", "accumulated"):
        check_weights(tmp_path, name, 4)


def test_spawned_processes_learn_the_same(tmp_path):
    train("ddp_spawn", 2, "plain", str(tmp_path))
    check_weights(tmp_path, "plain", 2)


@pytest.mark.filterwarnings(r"ignore:\[resume-ranks\]")
def test_everything_comes_back_from_other_processes(tmp_path):
    """Weights, metrics, position and predictions reach the caller's objects, and a checkpoint of them continues."""
    multiprocessing.set_forkserver_preload(["torch._dynamo", "fulmen_ddp.strategy"])  # so that torch is imported once
    module, trainer = train(DDPStrategy("forkserver"), 2, "plain", str(tmp_path))
    alone, other = one_process("plain", 2)
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], value, rtol=1e-6, atol=1e-6)
    assert (trainer.global_step, trainer.current_epoch, trainer.status) == (24, 2, "finished")
    assert trainer.stop_reason == "max_epochs=2 reached"
    assert set(trainer.callback_metrics) == set(other.callback_metrics)
    torch.testing.assert_close(trainer.callback_metrics["val_loss"], other.callback_metrics["val_loss"])
    trainer.save_checkpoint(tmp_path / "spawned.ckpt")
    resumed, single = module_for("plain"), quiet(max_epochs=3, accelerator="cpu", strategy="single_device")
    single.fit(resumed, samples(96, 8), samples(53, 8, 5), ckpt_path=tmp_path / "spawned.ckpt")
    assert (single.global_step, single.current_epoch) == (36, 3)
    longer = quiet(max_epochs=3, accelerator="cpu", strategy="single_device")
    longer.fit(whole := module_for("plain"), samples(96, 8), samples(53, 8, 5))
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=2e-6, atol=2e-6)


def test_a_notebook_needs_nothing_that_can_be_pickled(tmp_path, monkeypatch):
    """Classes and functions of its cells do not exist in any file."""

    class Cell(Job):
        loss = staticmethod(lambda output, y: (output - y).square().mean())

        def training_step(self, batch, batch_idx):
            return self.loss(self.net(batch[0]), batch[1])

    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    for strategy in ("ddp_notebook", "ddp"):
        torch.manual_seed(0)
        module = Cell()
        trainer = quiet(max_epochs=1, accelerator="cpu", devices=2, strategy=strategy, limit_val_batches=0)
        before = {key: value.clone() for key, value in module.state_dict().items()}
        trainer.fit(module, samples(96, 4))
        assert (trainer.runtime.strategy.launcher.method, trainer.global_step) == ("fork", 12)
        assert all(not torch.equal(value, before[key]) for key, value in module.state_dict().items())
    monkeypatch.delattr(sys, "ps1")
    with pytest.raises(ConfigurationError, match="cannot be sent"):
        quiet(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_spawn").fit(Cell(), samples(96, 4))


def test_one_device_starts_nothing():
    trainer = Trainer(strategy="ddp", accelerator="cpu", devices=1, logger=False)
    assert (trainer.world_size, trainer.global_rank, trainer.runtime.must_launch) == (1, 0, False)
