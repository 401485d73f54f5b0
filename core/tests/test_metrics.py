"""self.log: which keys, which values, when they are sent, and what they cost."""

from __future__ import annotations

import csv
from collections.abc import Mapping

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from fulmen import FulmenWarning, Logger, ModuleError, Trainer
from fulmen.testing import QUIET, Regression, Validated, batches, quiet


class Memory(Logger):
    """Keeps rows in a list; fails when told."""

    name, version = "memory", 0

    def __init__(self, fails=False, required=False):
        self.rows, self.fails, self.required = [], fails, required
        self.status = None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if self.fails:
            raise OSError("the disk is full")
        assert all(type(value) is float for value in metrics.values())
        self.rows.append((step, dict(metrics)))

    def finalize(self, status):
        self.status = status


def logged(module, data=8, logger=None, **options):
    logger = logger or Memory()
    trainer = Trainer(**{**QUIET, "logger": logger, "max_epochs": 1, "log_every_n_steps": 1, **options})
    trainer.fit(module, batches(data) if isinstance(data, int) else data)
    return logger, trainer


def logging(*names, **options):
    """A module that logs the mean of its inputs in training_step."""

    class Logging(Regression):
        def training_step(self, batch, batch_idx):
            for name in names:
                self.log(name, batch[0].mean(), **options)
            return super().training_step(batch, batch_idx)

    return Logging()


def test_single_values_by_default_and_both_on_request():
    _, trainer = logged(logging("a"))
    means = [x.mean() for x, _ in batches(8)]
    assert set(trainer.callback_metrics) == {"a"}
    assert trainer.callback_metrics["a"] == means[-1]
    logger, trainer = logged(logging("a", on_step=True, on_epoch=True))
    assert set(trainer.callback_metrics) == {"a", "a_step", "a_epoch"}
    assert trainer.callback_metrics["a"] == pytest.approx(sum(means).item() / 8)
    assert [row["a_step"] for _, row in logger.rows[:-1]] == [mean.item() for mean in means]
    assert logger.rows[-1] == (7, {"a_epoch": pytest.approx(sum(means).item() / 8), "epoch": 0.0})


def test_means_are_exact_for_ragged_batches():
    x = torch.randn(10, 3)
    data = [(part, part[:, :1]) for part in x.split(4)]
    _, trainer = logged(logging("a", on_step=False, on_epoch=True), data)
    assert trainer.callback_metrics["a"] == pytest.approx(x.mean().item(), rel=1e-6)
    _, trainer = logged(logging("a", on_step=False, on_epoch=True, batch_size=1), data)
    assert trainer.callback_metrics["a"] == pytest.approx(sum(p.mean().item() for p in x.split(4)) / 3, rel=1e-6)


@pytest.mark.parametrize(("reduce", "function"), [("min", min), ("max", max), ("sum", sum), (torch.max, max)])
def test_other_reductions(reduce, function):
    _, trainer = logged(logging("a", on_step=False, on_epoch=True, reduce_fx=reduce))
    expected = function([x.mean() for x, _ in batches(8)])
    assert trainer.callback_metrics["a"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_step_axis_counts_batches_that_stepped():
    logger, _ = logged(logging("a"), data=110, log_every_n_steps=50)
    assert [step for step, _ in logger.rows] == [49, 99]
    logger, _ = logged(logging("a"), data=8, accumulate_grad_batches=2)
    assert [step for step, _ in logger.rows] == [0, 1, 2, 3]


def test_objects_are_computed_and_reset_at_the_end_of_an_epoch():
    class Objects(Regression):
        def __init__(self):
            super().__init__()
            self.mean = MeanMetric()
            self.seen = []

        def training_step(self, batch, batch_idx):
            self.mean.update(batch[0])
            self.log("mean", self.mean, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def on_train_epoch_start(self):
            self.seen.append(self.mean.update_count)

    module = Objects()
    _, trainer = logged(module, max_epochs=2)
    assert trainer.callback_metrics["mean"] == pytest.approx(torch.cat([x for x, _ in batches(8)]).mean().item(), rel=1e-5)
    assert module.seen == [0, 0]


def test_loaders_have_a_suffix_unless_told_otherwise():
    class Several(Regression):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            self.log("a", batch[0].mean())
            self.log(f"own_{dataloader_idx}", 1.0, add_dataloader_idx=False)

        def on_validation_epoch_end(self):
            self.log("all", 3.0)

    loaders = [DataLoader(batches(2), None), DataLoader(batches(3), None)]
    first, second = quiet().validate(Several(), loaders, verbose=False)
    assert set(first) == {"a/dataloader_idx_0", "own_0", "all"}
    assert set(second) == {"a/dataloader_idx_1", "own_1", "all"}


def test_values_are_kept_as_they_were():
    class Changing(Regression):
        def training_step(self, batch, batch_idx):
            value = torch.ones(())
            self.log("a", value, on_step=True, on_epoch=True)
            value.zero_()
            return super().training_step(batch, batch_idx)

    _, trainer = logged(Changing())
    assert {name: value.item() for name, value in trainer.callback_metrics.items()} == {"a": 1, "a_step": 1, "a_epoch": 1}


def test_what_is_read_is_a_copy():
    _, trainer = logged(logging("a"))
    trainer.callback_metrics["a"].zero_()
    assert trainer.callback_metrics["a"] != 0


class CountReads(TorchDispatchMode):
    """Counts the operations that would wait for a device."""

    reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_logging_reads_nothing_back_from_the_device():
    class Plain(Validated):
        def training_step(self, batch, batch_idx):
            loss = torch.nn.functional.mse_loss(self(batch[0]), batch[1])
            self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            return loss

    trainer = Trainer(**{**QUIET, "logger": Memory()}, max_epochs=2, log_every_n_steps=2)
    with CountReads() as counted:
        trainer.fit(Plain(), batches(), batches(2))
    assert counted.reads == 0


def test_one_row_per_moment_and_its_epoch(tmp_path):
    trainer = Trainer(max_epochs=2, default_root_dir=tmp_path, log_every_n_steps=4, enable_progress_bar=False)
    trainer.fit(Validated(), batches(), batches(2))
    with open(f"{trainer.log_dir}/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["epoch"]) for row in rows if row["train_loss_step"]] == [
        ("3", "0.0"),
        ("7", "0.0"),
        ("11", "1.0"),
        ("15", "1.0"),
    ]
    assert [row["step"] for row in rows if row["val_loss"]] == ["7", "15"]
    assert [row["step"] for row in rows if row["train_loss_epoch"]] == ["7", "15"]
    assert trainer.logged_metrics["val_loss"] == float(next(row["val_loss"] for row in reversed(rows) if row["val_loss"]))
    assert set(trainer.progress_bar_metrics) == {"train_loss_step", "train_loss_epoch"}


def test_a_logger_that_fails_is_a_warning_unless_it_is_required():
    failing = Memory(fails=True)
    with pytest.warns(FulmenWarning, match=r"\[logger-failed\] Memory: OSError: the disk is full. The training goes on"):
        logged(logging("a"), logger=failing)
    assert failing.status == "success"
    required = Memory(fails=True, required=True)
    with pytest.raises(OSError, match="the disk is full"):
        logged(logging("a"), logger=required)
    assert required.status == "failed"


FAULTS = {
    "same name, other arguments": (
        lambda self: (self.log("a", 1.0), self.log("a", 1.0, prog_bar=True)),
        "self.log('a') was called before with other arguments in the same kind of hook: ",
    ),
    "not a scalar": (
        lambda self: self.log("a", torch.ones(2)),
        "self.log('a'): the value must have one element, and has shape (2,); log its mean, or its parts by name",
    ),
    "text": (
        lambda self: self.log("a", "b"),
        "self.log('a', str): the value must be a number, a tensor with one element, or an object with update, compute and "
        "reset; for a mapping use log_dict",
    ),
    "nothing kept": (
        lambda self: self.log("a", 1.0, on_step=False, on_epoch=False),
        "self.log('a', on_step=False, on_epoch=False) would keep nothing; set one of them",
    ),
    "reserved": (
        lambda self: self.log("a/dataloader_idx_0", 1.0),
        "self.log('a/dataloader_idx_0'): the name must not contain '/dataloader_idx_', which fulmen appends itself",
    ),
    "reduction": (
        lambda self: self.log("a", 1.0, reduce_fx="median"),
        "self.log('a', reduce_fx='median'): allowed are mean, sum, min, max; for anything else log an object with update, "
        "compute and reset, such as a torchmetrics Metric",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_wrong_call_says_what_is_wrong(case):
    action, message = FAULTS[case]

    class Wrong(Regression):
        def training_step(self, batch, batch_idx):
            action(self)
            return super().training_step(batch, batch_idx)

    with pytest.raises(ModuleError) as caught:
        logged(Wrong())
    assert str(caught.value).startswith(message)


def test_single_values_around_an_epoch_are_refused():
    class Wrong(Regression):
        def on_train_epoch_end(self):
            self.log("a", 1.0, on_step=True)

    with pytest.raises(ModuleError) as caught:
        logged(Wrong())
    assert str(caught.value) == "self.log('a', on_step=True) is not possible in a hook around an epoch, which has no step"


def test_without_a_trainer_it_is_a_warning():
    with pytest.warns(FulmenWarning, match=r"\[log-without-trainer\] Regression.log\('a'\): no trainer runs this module"):
        Regression().log("a", 1.0)


def test_a_training_that_is_too_short_to_log_says_so():
    with pytest.warns(FulmenWarning, match=r"\[log-interval\] a never reached the loggers: the training had 8 steps"):
        logged(logging("a"), log_every_n_steps=50)


def test_a_plateau_without_its_metric_lists_what_was_logged():
    class Plateau(Validated):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_los"}}

    with pytest.raises(ModuleError) as caught:
        quiet(max_epochs=1).fit(Plateau(), batches(), batches(1))
    assert str(caught.value) == (
        "the scheduler ReduceLROnPlateau monitors 'val_los', which was never logged; logged are: train_loss, "
        "train_loss_epoch, train_loss_step, val_loss"
    )
