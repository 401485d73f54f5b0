"""Predictions of all ranks reach the caller, in the order of the data."""

from __future__ import annotations

import pytest
import torch
from ddp_checks import JOB, finished
from ddp_job import Echo, Job, Uneven
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback
from fulmen.testing import quiet


class Numbers(Job):
    """Predicts the numbers themselves, with a text that is no tensor."""

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return {"numbers": batch[0].flatten(), "text": f"from {int(batch[0][0])}"}


def loader(count, batch_size=2, **options):
    return DataLoader(TensorDataset(torch.arange(float(count)).view(-1, 1)), batch_size, **options)


class SampleByIndex:
    """Has no ``__iter__``."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def predict(data, ranks, **options):
    where = {"devices": ranks, "strategy": "ddp_fork"} if ranks > 1 else {"strategy": "single_device"}
    arguments = {"return_predictions": options.pop("return_predictions")} if "return_predictions" in options else {}
    return quiet(accelerator="cpu", **where, **options).predict(Numbers(), data, **arguments)


def plain(found):
    return [(output["numbers"].tolist(), output["text"]) for output in found]


@pytest.mark.parametrize(("count", "ranks"), [(7, 2), (8, 2), (11, 3), (3, 3), (1, 2)])
def test_they_are_those_of_one_process(count, ranks):
    assert plain(predict(loader(count), ranks)) == plain(predict(loader(count), 1))


def test_drop_last_and_single_samples_are_those_of_one_process_too():
    for options in ({"drop_last": True}, {"batch_size": None}):
        found = [predict(loader(7, **options), ranks) for ranks in (1, 2)]
        assert plain(found[0]) == plain(found[1])


@pytest.mark.parametrize("kind", [list, tuple, SampleByIndex, torch.stack])
def test_sequences_of_batches_are_dealt_out(kind):
    batches = [torch.full((1, 2), float(number)) for number in range(5)]
    found = [predict(kind(batches), ranks) for ranks in (1, 2)]
    assert plain(found[0]) == plain(found[1])
    assert len(found[1]) == 5


def test_several_loaders_give_a_list_each():
    found = [predict([loader(5), loader(4)], ranks) for ranks in (1, 2)]
    assert [plain(one) for one in found[0]] == [plain(one) for one in found[1]]


class Written(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        (self.folder / outputs["text"]).write_text(str(trainer.global_rank))


def test_nothing_is_kept_where_nothing_is_wanted(tmp_path):
    assert predict(loader(8), 2, return_predictions=False, callbacks=[Written(tmp_path)]) is None
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "from 0": "0",
        "from 2": "1",
        "from 4": "0",
        "from 6": "1",
    }


def test_data_that_ranks_share_by_themselves_comes_in_turn():
    found = quiet(accelerator="cpu", devices=2, strategy="ddp_fork").predict(Echo(), DataLoader(Uneven([2, 4]), 1))
    shares = [list(DataLoader(Uneven([2, 4], rank), 1)) for rank in range(2)]
    order = [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2), (1, 3)]
    assert all(torch.equal(one, shares[rank][index][0]) for one, (rank, index) in zip(found, order, strict=True))


def test_every_rank_gets_all_of_them(script, tmp_path):
    status, output = finished(script(JOB, "ddp", tmp_path, "predict"))
    assert status == 0, output
    assert (tmp_path / "predicted.1").exists(), output
    ranks = [torch.load(tmp_path / f"predicted.{rank}", weights_only=True) for rank in range(2)]
    assert torch.equal(ranks[0], ranks[1])
    assert ranks[0].flatten().tolist() == [float(number) for number in range(10)]
