"""Whatever one rank decides or runs out of, all ranks stop after the same step."""

from __future__ import annotations

import time

import optuna
import pytest
import torch
from fulmen_optuna import OptunaPruning
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fulmen
from fulmen.callbacks import EarlyStopping
from fulmen.testing import quiet

RANKS = 3
torch.set_num_threads(1)


class Apart(fulmen.Module):
    """What it logs differs by rank."""

    def __init__(self, values=None):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.values = nn.Linear(2, 1), values

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        rank, epoch = self.trainer.global_rank, self.trainer.current_epoch
        self.log("val_loss", float(self.values[rank][min(epoch, len(self.values[rank]) - 1)]), sync_dist=False)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Ends(fulmen.Callback):
    """Where each rank stood at the end."""

    def __init__(self, folder):
        self.folder = folder

    def teardown(self, trainer, module, stage):
        found = {"at": [trainer.progress.epoch, trainer.progress.batches, trainer.global_step], "reason": trainer.stop_reason}
        torch.save({**found, "weights": dict(module.state_dict())}, self.folder / f"end.{trainer.global_rank}")


def data(count=6):
    return DataLoader(TensorDataset(torch.randn(count, 2, generator=torch.Generator().manual_seed(1))), 1)


def fit(folder, module, train=None, *callbacks, **options):
    """Train on forked ranks; where each of them ended."""
    options = {"max_epochs": 50, "num_sanity_val_steps": 0, "limit_val_batches": 1.0 if module.values else 0, **options}
    strategy = {"name": "ddp_fork", "timeout_s": 60, **options.pop("strategy", {})}
    trainer = quiet(accelerator="cpu", devices=RANKS, strategy=strategy, callbacks=[Ends(folder), *callbacks], **options)
    try:
        trainer.fit(module, data() if train is None else train, data(3) if module.values else None)
    finally:
        ends = [torch.load(folder / f"end.{rank}", weights_only=True) for rank in range(RANKS)]
        for end in ends[1:]:
            assert end["at"] == ends[0]["at"], [end["at"] for end in ends]
            assert all(torch.equal(value, ends[0]["weights"][key]) for key, value in end["weights"].items())
    return ends


@pytest.mark.parametrize("worse_on", range(RANKS))
@pytest.mark.filterwarnings(r"ignore:\[sync-dist\]")
def test_early_stopping_decides_by_the_value_of_rank_0(tmp_path, worse_on):
    falling, rising = [5, 4, 3, 2, 1, 1, 1], [1, 2, 3]
    values = [rising if rank == worse_on else falling for rank in range(RANKS)]
    ends = fit(tmp_path, Apart(values), None, EarlyStopping("val_loss", patience=2))
    assert ends[0]["at"][0] == (3 if worse_on == 0 else 7)
    assert "val_loss" in ends[0]["reason"]


class StopOn(fulmen.Callback):
    """One rank asks to stop, in the middle of an epoch."""

    def __init__(self, rank, batch):
        self.rank, self.batch = rank, batch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_rank == self.rank and trainer.progress.batches == self.batch:
            trainer.request_stop("this rank has seen enough")


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_stop_that_one_rank_asks_for(tmp_path, rank):
    ends = fit(tmp_path, Apart(), None, StopOn(rank, 3))
    assert ends[0]["at"] == [1, 3, 3]
    assert ends[rank]["reason"] == "this rank has seen enough"


class Late(fulmen.Callback):
    """The clock of each rank has begun at another time."""

    def on_train_start(self, trainer, module):
        time.sleep(0.2 * trainer.global_rank)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        time.sleep(0.01)


def test_max_time_ends_all_ranks_after_the_same_step(tmp_path):
    ends = fit(tmp_path, Apart(), None, Late(), max_epochs=-1, max_time=1.0)
    assert ends[0]["at"][1] > 0
    assert any("max_time" in end["reason"] for end in ends)


@pytest.mark.filterwarnings(r"ignore:\[sync-dist\]")
def test_optuna_prunes_on_all_ranks_what_rank_0_says(tmp_path):
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=10.0))
    trial = study.ask()
    values = [[1, 1, 100], [100, 100, 100], [1, 1, 1]]
    with pytest.raises(optuna.TrialPruned, match="pruned at step 2: val_loss = 100"):
        fit(tmp_path, Apart(values), None, OptunaPruning(trial, "val_loss"))
    assert torch.load(tmp_path / "end.1", weights_only=True)["at"] == [3, 6, 6]


class Shards(IterableDataset):
    """Each rank has another number of batches, and does not know it."""

    def __init__(self, counts):
        self.counts = counts

    def __iter__(self):
        rank = torch.distributed.get_rank()
        yield from [(torch.full((2,), float(rank)),)] * self.counts[rank]


@pytest.mark.parametrize(("uneven", "batches"), [(None, 4), ("drop", 4), ("pad", 9), ("join", 9)])
@pytest.mark.parametrize("counts", [[4, 9, 6], [9, 4, 5]])
def test_uneven_data_hangs_nobody(tmp_path, uneven, batches, counts):
    ends = fit(tmp_path, Apart(), DataLoader(Shards(counts), 1), max_epochs=2, strategy={"uneven": uneven})
    assert ends[0]["at"] == [2, 2 * batches, 2 * batches]


def test_an_early_stop_while_only_one_rank_has_data_left(tmp_path):
    ends = fit(tmp_path, Apart(), DataLoader(Shards([2, 9, 2]), 1), StopOn(1, 5), strategy={"uneven": "join"})
    assert ends[0]["at"] == [0, 5, 5]
