"""Batches that are taken before they are used: in order, no more than allowed, and without a trace after a resume."""

from __future__ import annotations

import pytest
import torch
from fulmen_cuda import CUDAAccelerator
from fulmen_cuda.prefetch import knows, prefetched
from torch.utils.data import DataLoader, Dataset

from fulmen import Callback
from fulmen.testing import Regression, batches, quiet, same_weights


def taken_when_used(count, ahead):
    """For each batch, how many were started when it was used."""
    started = []
    return [len(started) for _ in prefetched(iter(range(count)), lambda x: started.append(x) or x, lambda x: x, ahead)]


@pytest.mark.parametrize(("ahead", "expected"), [(0, [1, 2, 3, 4]), (1, [2, 3, 4, 4]), (3, [4, 4, 4, 4]), (9, [4, 4, 4, 4])])
def test_so_many_are_started_early(ahead, expected):
    assert taken_when_used(4, ahead) == expected


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_order_and_end_are_kept(ahead):
    finished = prefetched(iter("abc"), str.upper, lambda text: text * 2, ahead)
    assert list(finished) == ["AA", "BB", "CC"]
    assert list(prefetched(iter(()), str, str, ahead)) == []


def test_an_error_is_raised_when_its_batch_is_asked_for():
    def loader():
        yield from (1, 2)
        raise OSError("disk gone")

    found = prefetched(loader(), lambda x: x, lambda x: x, 2)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(OSError, match="disk gone"):
        next(found)


def test_ctrl_c_is_not_kept_back():
    def loader():
        yield 1
        raise KeyboardInterrupt

    found = prefetched(loader(), lambda x: x, lambda x: x, 1)
    with pytest.raises(KeyboardInterrupt):
        next(found)


def test_only_plain_tensors_are_copied_on_the_side():
    x = torch.ones(4, 2)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x.view(2, 2, 2), torch.tensor([2, 1]))
    assert knows({"x": [x], "name": "a", "y": (x, None)})
    assert not knows([x, packed])
    assert not knows(x.to_sparse())


# ---- In a training, on the host


class Ahead(CUDAAccelerator):
    """Takes batches ahead, on the processor."""

    is_available = staticmethod(lambda: True)
    num_available = staticmethod(lambda: 1)

    def devices(self, indices):
        return [torch.device("cpu") for _ in indices]

    def setup_device(self, device):
        pass

    def batches(self, batches, move, ahead):
        self.ahead = ahead
        return prefetched(batches, move, lambda batch: batch, self.prefetch_batches if ahead else 0)


class Noisy(Dataset):
    """Draws a random number for each sample, wherever it is loaded."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.full((3,), float(index)) / 24 + torch.rand(3) / 10, torch.rand(1)


def loader(workers):
    return batches(6) if workers is None else DataLoader(Noisy(), 4, shuffle=True, num_workers=workers)


class Save(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == 8:  # in the second epoch
            trainer.save_checkpoint(self.path)


def trained(accelerator, workers, **options):
    torch.manual_seed(5)
    module = Regression()
    data = loader(workers)
    quiet(accelerator=accelerator, max_epochs=3, **options).fit(module, data)
    return module


@pytest.mark.parametrize(("workers", "ahead"), [(None, True), (0, False), (2, True)])
def test_weights_are_the_same_with_and_without_and_after_a_resume(tmp_path, workers, ahead):
    accelerator = Ahead(prefetch_batches=3)
    whole = trained(accelerator, workers, callbacks=Save(tmp_path / "a.ckpt"))
    assert accelerator.ahead is ahead
    assert same_weights(whole, trained("cpu", workers))

    torch.manual_seed(99)
    resumed = Regression()
    trainer = quiet(accelerator=Ahead(prefetch_batches=3), max_epochs=3)
    trainer.fit(resumed, loader(workers), ckpt_path=tmp_path / "a.ckpt")
    assert same_weights(whole, resumed)
