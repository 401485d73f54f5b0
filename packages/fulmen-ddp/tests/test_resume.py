"""What a run of several ranks leaves in a checkpoint, and how it goes on from there."""

from __future__ import annotations

import warnings

import pytest
import torch
from ddp_job import Job, Report, samples
from torch import nn

from fulmen import Callback, rank_state
from fulmen.testing import mse, quiet


class Dropping(Job):
    """Draws random numbers in each step, others on each rank."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(self.drop(x)), y)


class Seeded(Callback):
    """Another random state on each rank, and a checkpoint after some batch."""

    def __init__(self, folder, at=None):
        self.folder, self.at = folder, at

    def on_train_start(self, trainer, module):
        if trainer.progress.batches == 0:
            torch.manual_seed(100 + trainer.global_rank)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == self.at:
            trainer.save_checkpoint(self.folder / "cut.ckpt")

    def on_fit_end(self, trainer, module):
        torch.save(torch.rand(3), self.folder / f"drawn.{trainer.global_rank}")


def fit(folder, module, *, at=None, path=None, strategy="ddp_fork", **options):
    """Two forked ranks; the weights of rank 0 and what each rank draws at random at the end."""
    trainer = quiet(
        max_epochs=2, accelerator="cpu", devices=2, strategy=strategy, limit_val_batches=0,
        callbacks=[Report(str(folder), "end"), Seeded(folder, at)], **options,
    )  # fmt: skip
    trainer.fit(module, samples(96, 4), ckpt_path=path)
    ranks = [torch.load(folder / f"end.{rank}", weights_only=True)["weights"] for rank in range(2)]
    assert far(*ranks) == 0
    return ranks[0], [torch.load(folder / f"drawn.{rank}", weights_only=True) for rank in range(2)]


def far(one, other):
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def fresh(kind):
    torch.manual_seed(0)
    return kind()


@pytest.mark.parametrize("at", [5, 17])
def test_each_rank_goes_on_with_its_own_random_numbers(tmp_path, at):
    whole, drawn = fit(tmp_path, fresh(Dropping), at=at)
    assert not torch.equal(*drawn)
    resumed, again = fit(tmp_path, fresh(Dropping), path=tmp_path / "cut.ckpt")
    assert far(whole, resumed) == 0
    assert all(torch.equal(*pair) for pair in zip(drawn, again, strict=True))


@pytest.mark.parametrize("at", [1, 6, 7, 11, 14])
def test_a_window_that_was_cut_goes_on_with_the_gradients_of_each_rank(tmp_path, at):
    """Windows of 4, of 4 and of 4 batches in an epoch of 12: cut after 1, 2 and 3 batches of one, and in the second epoch."""
    options = {"accumulate_grad_batches": 4}
    whole, _ = fit(tmp_path, fresh(Job), at=at, **options)
    resumed, _ = fit(tmp_path, fresh(Job), path=tmp_path / "cut.ckpt", **options)
    assert far(whole, resumed) == 0


class Unequal(Job):
    """Sparse gradients, and a layer that one of the ranks alone uses."""

    def __init__(self):
        super().__init__()
        self.table, self.own = nn.Embedding(4, 3, sparse=True), nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        found = self.net(x + self.table((x[:, 0] > 0).long() + batch_idx % 3))
        return nn.functional.mse_loss(found + self.own(x) if self.trainer.global_rank else found, y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.mark.parametrize("kept", [2**30, 0], ids=["own", "mean"])
def test_gradients_that_are_sparse_or_that_one_rank_has(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(rank_state, "OWN_GRADIENTS_BYTES", kept)
    options = {"accumulate_grad_batches": 4, "strategy": "ddp_fork?find_unused_parameters=true"}
    whole, _ = fit(tmp_path, fresh(Unequal), at=6, **options)
    saved = torch.load(tmp_path / "cut.ckpt", weights_only=True)["loops"]["fit_loop"]["gradients"]
    assert saved["table.weight"].is_sparse and saved["own.weight"].abs().sum() > 0
    resumed, _ = fit(tmp_path, fresh(Unequal), path=tmp_path / "cut.ckpt", **options)
    assert far(whole, resumed) == 0 if kept else far(whole, resumed) < 1e-6


def test_large_gradients_are_kept_as_their_mean_and_the_resume_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(rank_state, "OWN_GRADIENTS_BYTES", 100)
    options = {"accumulate_grad_batches": 4}
    whole, _ = fit(tmp_path, fresh(Job), at=6, **options)
    saved = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["gradients"]
    assert all("gradients" not in rank["unfinished"] for rank in saved["ranks"])
    resumed, _ = fit(tmp_path, fresh(Job), path=tmp_path / "cut.ckpt", **options)
    assert far(whole, resumed) < 1e-6
    printed = capfd.readouterr().out
    assert "the resume is not exact:\n- the checkpoint was saved inside an accumulation window, with the mean of the" in printed


class Newton(Job):
    """Evaluates each batch several times."""

    def training_step(self, batch, batch_idx):
        self.calls = getattr(self, "calls", 0) + 1
        return mse(self.net, batch)

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")

    def on_train_end(self):
        assert self.calls > 24  # of 24 batches


def test_lbfgs_equals_one_process(tmp_path):
    found, _ = fit(tmp_path, fresh(Newton).double(), precision="64-true")
    alone = fresh(Newton).double()
    quiet(max_epochs=2, accelerator="cpu", strategy="single_device", limit_val_batches=0, precision="64-true").fit(
        alone, samples(96, 8)
    )
    assert far(found, alone.state_dict()) < 1e-7


# ---- Sequences of batches


def of_batches(ranks, *, at=None, folder=None, path=None):
    """Three epochs over 25 batches of 4 samples, of which each step has two: of both ranks, or of one."""
    module, callbacks = fresh(Job), [] if at is None else [SaveAt(at, folder)]
    where = {"devices": 2, "strategy": "ddp_fork"} if ranks == 2 else {"strategy": "single_device"}
    options = {"max_epochs": 3, "limit_val_batches": 0, "accumulate_grad_batches": 3 - ranks, "callbacks": callbacks}
    quiet(accelerator="cpu", **where, **options).fit(module, list(samples(96, 4)), ckpt_path=path)
    return module.state_dict()


class SaveAt(Callback):
    def __init__(self, at, folder):
        self.at, self.folder = at, folder

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == self.at:
            trainer.save_checkpoint(self.folder / "cut.ckpt")


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1), (2, 2)])
def test_a_list_of_batches_goes_on_with_any_number_of_ranks(tmp_path, ranks):
    before, after = ranks
    whole = of_batches(before, at=17 * (3 - before), folder=tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\[resume-(ranks|batch-size)\]")
        resumed = of_batches(after, path=tmp_path / "cut.ckpt")
    assert far(whole, resumed) < (1e-5 if before != after else 1e-12)
    assert far(whole, of_batches(after)) < 1e-5


@pytest.mark.parametrize("at", [2, 7, 14])
def test_buffers_that_a_validation_has_evened_are_those_of_the_resume(tmp_path, at):
    """In the middle of an accumulation window, in which ranks have means of their own."""
    found = []
    for path in (None, tmp_path / "cut.ckpt"):
        torch.manual_seed(0)
        module, options = Job(batchnorm=True), {"accumulate_grad_batches": 4, "val_check_interval": 3}
        trainer = quiet(
            max_epochs=2, accelerator="cpu", devices=2, strategy="ddp_fork", callbacks=[SaveAt(at, tmp_path)], **options
        )
        trainer.fit(module, samples(96, 4), samples(53, 4, 5), ckpt_path=path)
        found.append((module.state_dict(), float(trainer.callback_metrics["val_loss"])))
    assert far(found[0][0], found[1][0]) == 0
    assert found[0][1] == found[1][1]
