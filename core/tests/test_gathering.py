"""Objects with update, compute and reset: when they are read and begin anew, and that a cut does not change what they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MaxMetric, MeanMetric, MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryPrecision, BinaryRecall

from fulmen import Callback, CheckpointError, FulmenError, FulmenWarning, Trainer, read_checkpoint, write_checkpoint
from fulmen.contracts.ranks import Nothing
from fulmen.gathering import gathered, put_back
from fulmen.testing import Regression, batches, quiet


class Rows(Callback):
    """Notes the values of each epoch when training has ended it."""

    def __init__(self):
        self.rows = []

    def on_train_epoch_end(self, trainer, module):
        self.rows.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def fitted(module, *callbacks, path=None, data=4, val=None, **options):
    rows = Rows()
    trainer = quiet(callbacks=[*callbacks, rows], **{"max_epochs": 3, **options})
    trainer.fit(module, batches(data), val, ckpt_path=path)
    return rows.rows, trainer


# ---- When they are read, and begin anew


class Watched(Regression):
    """Logs the mean of numbers that are known: in epoch e, e is added at each batch."""

    def __init__(self, *, on_step, on_epoch):
        super().__init__()
        self.mean, self.options, self.seen = MeanMetric(), {"on_step": on_step, "on_epoch": on_epoch}, []

    def training_step(self, batch, batch_idx):
        self.mean(float(self.current_epoch))
        self.log("mean", self.mean, **self.options)
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self):
        self.seen.append(self.mean.compute().item())
        self.log("by_hand", self.mean.compute())


@pytest.mark.parametrize(("on_step", "on_epoch"), [(True, False), (False, True), (True, True)])
def test_in_training_they_are_whole_in_the_last_hook_and_then_begin_anew(on_step, on_epoch):
    module = Watched(on_step=on_step, on_epoch=on_epoch)
    rows, _ = fitted(module)
    assert module.seen == [0.0, 1.0, 2.0] == [row["mean"] for row in rows] == [*(row["by_hand"] for row in rows[1:]), 2.0]


class Validates(Regression):
    """Of several loaders, loader n gives numbers from n on."""

    def __init__(self, resets):
        super().__init__()
        self.mean, self.resets, self.seen = MeanMetric(), resets, []

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.mean.update(float(10 * dataloader_idx + batch_idx))
        self.log("mean", self.mean)

    def on_validation_epoch_end(self):
        self.seen.append(self.mean.compute().item())
        if self.resets:
            self.mean.reset()


@pytest.mark.parametrize("resets", [True, False])
def test_the_value_of_an_evaluation_stands_before_its_last_hooks(resets):
    module = Validates(resets)
    rows, trainer = fitted(module, val=batches(3), num_sanity_val_steps=2)
    assert [row["mean"] for row in rows] == [1.0, 1.0, 1.0] and module.seen == [0.5, 1.0, 1.0, 1.0]
    assert trainer.validate(module, batches(3)) == [{"mean": 1.0}]
    assert module.mean.update_count == 0


def test_one_object_says_for_each_loader_what_it_gathered_there():
    loaders = [DataLoader(batches(count), batch_size=None) for count in (3, 2)]
    found = quiet().validate(Validates(False), loaders)
    assert found == [{"mean/dataloader_idx_0": 1.0}, {"mean/dataloader_idx_1": 10.5}]


# ---- A cut changes nothing


class Gathers(Regression):
    """Metrics that are logged in all manners, a collection whose metrics share what they hold, and one that nobody logs."""

    def __init__(self):
        super().__init__()
        self.mean, self.step, self.silent, self.ranking = MeanMetric(), MeanMetric(), MaxMetric(), BinaryAUROC()
        self.both = MetricCollection({"precision": BinaryPrecision(), "recall": BinaryRecall()})
        self.val = MeanMetric()
        self.own = Count()

    def training_step(self, batch, batch_idx):
        truth, guess = batch[0][:, 0] > 0, torch.sigmoid(batch[0].sum(1))
        for metric in (self.ranking, self.both):
            metric.update(guess, truth)
        self.silent.update(batch[0])
        self.own.update(batch_idx)
        self.mean.update(batch[0])
        self.step(batch[0])
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log("step", self.step, on_step=True, on_epoch=True)
        self.log("ranking", self.ranking, on_step=False, on_epoch=True)
        self.log("own", self.own, on_step=False, on_epoch=True)
        self.log_dict(dict(self.both.items()), on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.val.update(batch[0])
        self.log("val", self.val)

    def on_train_epoch_end(self):
        self.log("silent", self.silent.compute())
        self.silent.reset()


class Count:
    """An object of one's own, which is no module."""

    def __init__(self):
        self.total = 0

    def update(self, value):
        self.total += value

    def compute(self):
        return self.total

    def reset(self):
        self.total = 0

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]


class Saves(Callback):
    """Saves once, in a hook, when so many batches are done; and stops nothing."""

    def __init__(self, path, hook, at):
        self.path, self.at = path, at
        setattr(self, hook, self.save)

    def save(self, trainer, module, *rest):
        if trainer.progress.batches >= self.at and not self.path.exists():
            trainer.save_checkpoint(self.path)


HOOKS = {
    "on_train_batch_end": range(1, 13),
    "on_validation_batch_end": (4, 8),
    "on_validation_epoch_end": (4, 8),
    "on_validation_end": (4, 12),
    "on_train_epoch_end": (4, 8, 12),
}


@pytest.mark.parametrize(("hook", "at"), [(hook, at) for hook, moments in HOOKS.items() for at in moments])
def test_a_training_that_is_cut_measures_the_same(tmp_path, capsys, hook, at):
    path = tmp_path / "cut.ckpt"
    whole, _ = fitted(Gathers(), Saves(path, hook, at), val=batches(2))
    capsys.readouterr()
    rest, _ = fitted(Gathers(), Saves(path, hook, at), val=batches(2), path=path, enable_progress_bar=False)
    assert rest == whole[len(whole) - len(rest) :]
    assert len(rest) == 3 - (at - 1) // 4 or (hook == "on_train_epoch_end" and len(rest) == 3 - at // 4 + 1)
    assert "the resume is exact" in capsys.readouterr().out


class Unknown:
    """Gathers, and cannot say what."""

    update = compute = reset = lambda self, *values: 0.0


def test_what_cannot_be_saved_is_named(tmp_path, capsys):
    class Blind(Regression):
        def __init__(self):
            super().__init__()
            self.unknown = Unknown()

    _, trainer = fitted(Blind(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    fitted(Blind(), path=tmp_path / "a.ckpt", max_epochs=2)
    reason = "- Blind.unknown gathers values (update, compute, reset) that are in no checkpoint: give it buffers, or state_dict"
    assert reason in capsys.readouterr().out


def test_an_object_that_has_every_attribute_is_none(tmp_path):
    """As what a logger shows on other ranks and in a fast development run, which modules keep."""

    class Keeps(Regression):
        def on_fit_start(self):
            self.writer = Nothing()

    _, trainer = fitted(Keeps(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["loops"]["fit_loop"]["gathered"] == {}


def test_an_object_that_is_no_attribute_is_named_when_it_is_saved(tmp_path):
    class Hidden(Regression):
        def __init__(self):
            super().__init__()
            self.hidden = [MeanMetric()]

        def training_step(self, batch, batch_idx):
            self.hidden[0].update(batch[0])
            self.log("hidden", self.hidden[0], on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    with pytest.warns(FulmenWarning, match=r"\[metric-not-saved\] self\.log\('hidden'\) was given an object "):
        fitted(Hidden(), Saves(tmp_path / "a.ckpt", "on_train_batch_end", 2), max_epochs=1)


def test_a_metric_that_is_gone_or_another_is_named(tmp_path, capsys):
    class Other(Regression):
        metric_class: type = MeanMetric

        def __init__(self):
            super().__init__()
            self.metric = self.metric_class() if self.metric_class else None

        def training_step(self, batch, batch_idx):
            if self.metric is not None:
                self.metric.update(batch[0])
            return super().training_step(batch, batch_idx)

    path = tmp_path / "a.ckpt"
    fitted(Other(), Saves(path, "on_train_batch_end", 2), max_epochs=1)
    Other.metric_class = None
    fitted(Other(), path=path, max_epochs=1)
    assert "- metric holds values of before (update, compute, reset) no more" in capsys.readouterr().out
    Other.metric_class = MaxMetric
    with pytest.raises(CheckpointError, match="metric has no mean_value such as the checkpoint holds: another metric"):
        fitted(Other(), path=path, max_epochs=1)


WRONG = [[1], "a", 7, -1.0, torch.zeros(2), {"a": 1}, {1: {2: 3}}]
INSIDE = ["", "mean", "mean/values", "mean/values/mean_value", "mean/updates", "ranking/values/preds", "own/state/total"]


def failure_of(path):
    try:
        fitted(Gathers(), path=path, val=batches(2), max_epochs=1)
    except FulmenError as error:
        return error
    return None


@pytest.mark.parametrize("key", INSIDE)
def test_what_a_file_says_of_them_is_looked_at(tmp_path, key):
    """What cannot be used is an error that names the file."""
    path, wrong, refused = tmp_path / "a.ckpt", tmp_path / "wrong.ckpt", 0
    fitted(Gathers(), Saves(path, "on_train_batch_end", 2), val=batches(2), max_epochs=1)
    for value in WRONG:
        checkpoint = read_checkpoint(path)
        part, steps = checkpoint["loops"]["fit_loop"], ["gathered", *filter(None, key.split("/"))]
        for step in steps[:-1]:
            part = part[step]
        part[steps[-1]] = value
        write_checkpoint(checkpoint, wrong)
        error = failure_of(wrong)
        refused += isinstance(error, CheckpointError)
        assert error is None or str(wrong) in str(error) or "must have one element" in str(error)  # a tensor of another shape
    assert refused >= 2


@pytest.mark.parametrize("name", ["update", "forward", "_defaults", "device", "training", "__class__"])
def test_a_file_sets_nothing_else(tmp_path, name):
    module = nn.Module()
    module.mean = MeanMetric()
    with pytest.raises(ValueError, match=f"mean has no {name} such as the checkpoint holds"):
        put_back(module, {"mean": {"values": {name: torch.zeros(1)}, "updates": 1}}, torch.device("cpu"), "a.ckpt")


def test_what_is_held_is_a_copy_and_comes_back():
    module = nn.Module()
    module.mean, module.list = MeanMetric(), BinaryAUROC()
    module.mean.update(3.0)
    module.list.update(torch.tensor([0.3]), torch.tensor([1]))
    held = gathered(module)
    module.mean.update(5.0)
    module.list.update(torch.tensor([0.3]), torch.tensor([0]))
    assert put_back(module, held, torch.device("cpu"), "a.ckpt") == []
    assert module.mean.compute() == 3.0 and module.mean.update_count == 1 and len(module.list.preds) == 1


# ---- Around the training


def test_what_is_logged_when_the_training_starts_is_one_row(tmp_path):
    class Starts(Regression):
        def on_train_start(self):
            self.log("size", 5.0)

    _, trainer = fitted(Starts(), max_epochs=2, logger="csv", default_root_dir=tmp_path, log_every_n_steps=1)
    rows = (tmp_path / trainer.log_dir / "metrics.csv").read_text().splitlines()
    assert [row for row in rows if "5.0" in row.split(",")] == [rows[1]]
    assert trainer.callback_metrics["size"] == 5.0
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    _, again = fitted(Starts(), path=tmp_path / "a.ckpt", logger="csv", default_root_dir=tmp_path, log_every_n_steps=1)
    more = (tmp_path / again.log_dir / "metrics.csv").read_text().splitlines()
    assert len([row for row in more if "5.0" in row.split(",")]) == 1 and again.callback_metrics["size"] == 5.0


def test_rows_of_a_test_after_a_training_carry_its_epochs(tmp_path):
    class Tests(Regression):
        def test_step(self, batch, batch_idx):
            self.log("seen", 7.0)

    module = Tests()
    trainer = Trainer(max_epochs=2, default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, batches(2))
    trainer.test(module, batches(2))
    header, *rows = (line.split(",") for line in (tmp_path / trainer.log_dir / "metrics.csv").read_text().splitlines())
    assert float(rows[-1][header.index("seen")]) == 7.0 and float(rows[-1][header.index("epoch")]) == 2
