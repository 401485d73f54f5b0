"""A program that the tests start in several processes, by whatever means: ``python ddp_job.py STRATEGY FOLDER NAME ...``."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fulmen import Callback, Trainer
from fulmen.testing import Regression, mse, quiet, without_dropout

torch.set_num_threads(1)


class Job(Regression):
    """Trains by means, or by weighted sums, and logs over all ranks."""

    def __init__(self, sums: bool = False, batchnorm: bool = False) -> None:
        super().__init__()
        without_dropout(self)
        if batchnorm:
            self.net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
        self.sums = sums

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        losses = (self.net(x) - y).square().squeeze(1)
        self.log("train_loss", losses.mean(), on_epoch=True, sync_dist=True)
        if not self.sums:
            return losses.mean()
        weights = 1 + x[:, 0].abs()
        return (losses * weights).sum(), weights.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", mse(self.net, batch), sync_dist=True)
        self.log("val_max", batch[0].max(), sync_dist=True, reduce_fx="max")
        self.log("val_count", float(len(batch[0])), sync_dist=True, reduce_fx="sum")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", mse(self.net, batch), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0])


class Failing(Job):
    """On rank 1, in batch 3: raises, dies, hangs or is stopped."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_rank == 1 and self.trainer.progress.batches == 3:
            if self.how == "raise":
                raise ValueError("boom on rank 1")
            if self.how == "hang":
                time.sleep(1000)
            os.kill(os.getpid(), signal.SIGSTOP if self.how == "stop" else signal.SIGKILL)
        return super().training_step(batch, batch_idx)


class Skipping(Job):
    """Gives no loss for some batches: on ``"some"`` ranks, on ``"all"``, on ``"mixed"``, or for the ``"first"`` of a rank."""

    def __init__(self, how: str = "none", sums: bool = False) -> None:
        super().__init__(sums=sums)
        self.how = how

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        last = self.trainer.global_rank == self.trainer.world_size - 1
        skips = {
            "none": False,
            "some": last and batch_idx % 3 == 1,
            "all": batch_idx % 3 == 1,
            "mixed": batch_idx % 3 == 1 or (last and batch_idx % 4 == 0),
            "first": last and batch_idx < 2,
        }
        loss = super().training_step(batch, batch_idx)
        return None if skips[self.how] else loss


class Echo(Job):
    """Predicts what it was given."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch[0]


class Unused(Job):
    """Has a layer that takes no part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(2, 2)


class Manual(Job):
    """Two backward passes per step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = mse(self.net, batch)
        self.manual_backward(loss / 2)
        self.manual_backward(mse(self.net, batch) / 2)
        optimizer.step()


class Uneven(IterableDataset[Any]):
    """Another number of samples on each rank."""

    def __init__(self, counts: list[int], rank: int | None = None) -> None:
        self.counts, self.rank = counts, rank

    def __iter__(self) -> Any:
        rank = dist.get_rank() if self.rank is None else self.rank
        generator = torch.Generator().manual_seed(rank)
        for _ in range(self.counts[rank]):
            x = torch.randn(3, generator=generator)
            yield x, x.sum().view(1)


class SizedUneven(Uneven):
    """Says how many they are."""

    def __len__(self) -> int:
        return self.counts[dist.get_rank() if self.rank is None else self.rank]


class Report(Callback):
    """What each rank has at the end, in a file of its own."""

    def __init__(self, folder: str, name: str) -> None:
        self.path = Path(folder) / name

    def on_fit_end(self, trainer: Trainer, module: Any) -> None:
        weights = {key: value.detach().clone() for key, value in module.state_dict().items()}
        torch.save({"weights": weights, "batches": trainer.progress.batches}, f"{self.path}.{trainer.global_rank}")


class Slow(Callback):
    """Leaves time for a signal, and says that training goes on."""

    def __init__(self, folder: str, seconds: float = 0.05) -> None:
        self.folder, self.seconds = Path(folder), seconds

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        (self.folder / f"pid.{trainer.global_rank}").write_text(str(os.getpid()))
        time.sleep(self.seconds)


def samples(count: int, batch_size: int, seed: int = 3) -> DataLoader[Any]:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "accumulated": ({"accumulate_grad_batches": 5, "gradient_clip_val": 0.1}, {}),
    "sums": ({"accumulate_grad_batches": 5}, {"sums": True}),
    "manual": ({}, {}),
    "batchnorm": ({}, {"batchnorm": True}),
}
"""Name -> options of the trainer, arguments of the module."""


def module_for(name: str) -> Job:
    torch.manual_seed(0)
    return Manual() if name == "manual" else Job(**CASES[name][1])


def one_process(name: str, size: int) -> tuple[Job, Trainer]:
    """The same training in one process, on the same global batches."""
    module = module_for(name)
    trainer = quiet(max_epochs=2, accelerator="cpu", strategy="single_device", **CASES[name][0])
    trainer.fit(module, samples(96, 4 * size), samples(53, 4 * size, 5))
    return module, trainer


def train(strategy: Any, devices: int, name: str, folder: str, **options: Any) -> tuple[Job, Trainer]:
    module = module_for(name)
    trainer = quiet(
        max_epochs=2, accelerator="cpu", strategy=strategy, devices=devices, callbacks=[Report(folder, name)],
        **CASES[name][0], **options,
    )  # fmt: skip
    trainer.fit(module, samples(96, 4), samples(53, 4, 5))
    return module, trainer


def ends(what: str, strategy: Any, folder: Path, devices: int) -> None:
    """How processes and modules end: with which threads, by a signal, with which layers."""
    options = {"max_steps": 3, "accelerator": "cpu", "strategy": strategy, "devices": devices, "limit_val_batches": 0}
    if what == "synced":
        options["strategy"] = {"name": strategy, "sync_batchnorm": True}
    trainer, module = quiet(**options), module_for("batchnorm" if what == "synced" else "plain")
    rank = os.environ.get("RANK", "0")
    if what == "threads":  # this is called after what is registered later
        names = lambda: [path.joinpath("comm").read_text() for path in Path("/proc/self/task").iterdir()]  # noqa: E731
        atexit.register(lambda: folder.joinpath(f"threads.{rank}").write_text("".join(names())))
        main.trainer = trainer  # type: ignore[attr-defined]
    elif what == "abort" and rank == "1":
        atexit.register(lambda: os.kill(os.getpid(), signal.SIGABRT))
    trainer.fit(module, samples(96, 4))
    if what == "synced":
        layer, before = module.net[1], {key: value.clone() for key, value in module.state_dict().items()}
        found = [type(layer).__name__, layer.weight is trainer.optimizers[0].param_groups[0]["params"][2]]
        second = quiet(**options)
        second.fit(module, samples(96, 4))
        moved = not torch.equal(before["net.1.running_mean"], module.state_dict()["net.1.running_mean"])
        failing = Failing("raise")
        failing.net = module.net
        try:
            quiet(**{**options, "max_steps": 9}).fit(failing, samples(96, 4))
        except ValueError as error:
            found.append(str(error))
        found += [type(module.net[1]).__name__, module.net[1] is layer, moved]
        folder.joinpath(f"synced.{rank}").write_text(json.dumps(found))


def main(strategy: Any, folder: str, what: str, devices: int = 2) -> None:
    if what in ("raise", "kill", "hang"):
        chosen = {"name": strategy, "timeout_s": 10} if what == "hang" else strategy
        trainer = quiet(max_epochs=2, accelerator="cpu", strategy=chosen, devices=devices)
        trainer.fit(Failing(what), samples(96, 4))
    elif what == "late":
        strategy = {"name": strategy, "timeout_s": 6}
        quiet(max_steps=2, accelerator="cpu", strategy=strategy, devices=devices).fit(Job(), samples(96, 4))
    elif what in ("threads", "abort", "synced"):
        ends(what, strategy, Path(folder), devices)
    elif what == "predict":
        trainer = quiet(accelerator="cpu", strategy=strategy, devices=devices)
        numbers = TensorDataset(torch.arange(10.0).view(-1, 1))
        found = trainer.predict(Echo(), DataLoader(numbers, 2))
        torch.save(torch.cat(found), Path(folder, f"predicted.{trainer.global_rank}"))
    elif what == "stuck":
        chosen = {"name": strategy, "stop_timeout_s": 4}
        trainer = quiet(max_epochs=2, accelerator="cpu", strategy=chosen, devices=devices, callbacks=[Slow(folder, 1000)])
        trainer.fit(Job(), samples(96, 4))
    elif what == "signal":
        trainer = quiet(max_epochs=200, accelerator="cpu", strategy=strategy, devices=devices, callbacks=[Slow(folder)])
        trainer.fit(Job(), samples(96, 4))
        if trainer.is_global_zero:
            Path(folder, "stopped").write_text(f"{trainer.status}: {trainer.stop_reason}")
    else:
        for name in what.split(","):
            _, trainer = train(strategy, devices, name, folder)
        if trainer.is_global_zero:
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
            Path(folder, "metrics.json").write_text(json.dumps([metrics, trainer.global_step, trainer.world_size]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
