"""One training with all that must survive a cut, and the record of it that two runs are compared by."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import sys
import zlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resume_data import loaders_for
from torch import nn
from torchmetrics import MeanMetric

from fulmen import Callback, Module, Trainer
from fulmen.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, RecoveryCheckpoint, StochasticWeightAveraging
from fulmen.rng import random_state
from fulmen.testing import QUIET

torch.set_num_threads(1)


@dataclass(frozen=True)
class Setup:
    """What varies between trainings; the default is the standard job: 42 steps of up to two batches."""

    averaging: str | None = "swa"
    module: str = "automatic"
    loaders: str = "one"
    accumulate: Any = 2
    epochs: int = 7
    batch_size: int = 3
    precision: str | None = "16-mixed"
    workers: int = 0
    persistent: bool = False
    prefetch: int | None = None
    val_workers: int = 0
    val_check_interval: Any = 0.5
    check_val_every_n_epoch: int | None = 1
    reload_every: int = 0
    log_every: int = 3
    patience: int = 30
    save_every: int | None = None
    save_on_exception: bool = False
    options: dict[str, Any] = field(default_factory=dict)


# ---- Modules


class Standard(Module):
    """Dropout, two schedulers, metrics by step and by epoch, and once a gradient that overflows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 1))
        self.mean, self.val_mean = MeanMetric(), MeanMetric()
        self.trained: list[list[int]] = []

    def loss(self, batch: Any) -> Any:
        _, x, y = batch
        return nn.functional.mse_loss(self.net(x).float(), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batch = note(self, batch)
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("largest", batch[1].max(), on_step=False, on_epoch=True, reduce_fx="max")
        self.log("rate", self.trainer.optimizers[0].param_groups[0]["lr"], on_step=True, prog_bar=True)
        self.mean(loss.detach())
        self.log("mean", self.mean, on_step=True, on_epoch=True)
        overflows = self.trainer.progress.batches == 22 and hasattr(self.trainer.runtime.precision, "scaler")
        return loss * (float("inf") if overflows else 1.0)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch), prog_bar=True, add_dataloader_idx=False)
        self.log("val_each", batch[1].sum(), on_step=True, on_epoch=True, add_dataloader_idx=False)
        self.val_mean.update(batch[1])
        self.log("val_mean", self.val_mean, add_dataloader_idx=False)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        by_step = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return [optimizer], [
            {"scheduler": by_step, "interval": "step", "frequency": 2},
            {"scheduler": plateau, "monitor": "val_loss", "reduce_on_plateau": True},
        ]


class Adversarial(Standard):
    """Two optimizers, used by hand, one of them in every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.judge = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        batch = note(self, batch)
        first, second = self.optimizers()
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        for optimizer, value in ((first, loss), (second, self.judge(self.net(batch[1]).detach().float()).square().mean())):
            if optimizer is first or batch_idx % 2:
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(value)
                optimizer.step()
                self.untoggle_optimizer(optimizer)
        if batch_idx % 3 == 2:
            for scheduler in self.lr_schedulers():
                scheduler.step()

    def configure_optimizers(self) -> Any:
        optimizers = [torch.optim.Adam(part.parameters(), lr=0.02) for part in (self.net, self.judge)]
        return optimizers, [torch.optim.lr_scheduler.ExponentialLR(each, 0.97) for each in optimizers]


class Quasi(Standard):
    """LBFGS, which evaluates each batch several times."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(note(self, batch))
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=3, history_size=4)


class Plain(Standard):
    """The shortest step: one optimizer, nothing in between."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Sums(Plain):
    """Losses are sums with their weights; some batches are skipped."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batch = note(self, batch)
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return None if batch_idx == 4 else (loss * len(batch[0]), len(batch[0]))


class Reloading(Standard):
    """Gives its loaders itself, anew in some epochs."""

    setup_of_loaders: Any = None

    def train_dataloader(self) -> Any:
        return loaders_for(self.setup_of_loaders)[0]

    def val_dataloader(self) -> Any:
        return loaders_for(self.setup_of_loaders)[1]


MODULES = {"automatic": Standard, "reloading": Reloading, "manual": Adversarial, "lbfgs": Quasi, "plain": Plain, "sums": Sums}


def note(module: Any, batch: Any) -> Any:
    """Write down what is trained on; of several loaders, they are joined."""
    if isinstance(batch, dict):
        parts = [part for part in batch.values() if part is not None]
        module.trained.append([index for part in parts for index in part[0].tolist()])
        return [torch.cat(column) for column in zip(*parts, strict=True)]
    module.trained.append(batch[0].tolist())
    return batch


# ---- The record


class Witness(Callback):
    """Writes down everything after each batch, validation and epoch, and where in that record a checkpoint was made."""

    def __init__(self) -> None:
        self.events: dict[Any, Any] = {}
        self.resumed_at = 0

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        progress = trainer.progress
        self._note(("train", progress.batches), trainer, module, (progress.epoch, batch_idx, module.trained[-1], digest(batch)))

    def on_validation_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.phase == "validate":
            place = trainer.progress.batches, dataloader_idx, batch_idx
            self._note(("validate", *place), trainer, module, (trainer.progress.evaluated, digest(batch)))

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        if trainer.phase == "validate":
            self._note(("validated", trainer.progress.batches), trainer, module, ())

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        if trainer.progress.epoch_is_complete:
            self._note(("epoch", trainer.progress.epoch), trainer, module, ())

    def _note(self, key: Any, trainer: Trainer, module: Any, what: Any) -> None:
        shown = {name: value for name, value in trainer.progress_bar_metrics.items() if name != "v_num"}
        self.events[key] = {
            "what": what,
            "steps": (trainer.progress.step, trainer.progress.updates),
            "random": digest(random_state()),
            "weights": digest(module.state_dict()),
            "optimizers": digest([optimizer.state_dict() for optimizer in trainer.optimizers]),
            "rates": [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups],
            "schedulers": digest([config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]),
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "shown": shown,
            "callbacks": {each.state_key: digest(state) for each in self._others(trainer) if (state := each.state_dict())},
        }

    def _others(self, trainer: Trainer) -> list[Callback]:
        """Without those whose state is what was saved when: a cut saves."""
        return [each for each in trainer.callbacks if each is not self and not isinstance(each, RecoveryCheckpoint)]

    def state_dict(self) -> dict[str, Any]:
        return {"events": self.resumed_at + len(self.events)}

    def load_state_dict(self, state_dict: Any) -> None:
        self.resumed_at = state_dict["events"]


def digest(value: Any) -> int:
    """One number for nested plain data, equal only where all of it is equal, bit for bit."""
    if isinstance(value, torch.Tensor):
        whole = value.detach().contiguous()
        return zlib.crc32(f"{whole.dtype}{tuple(whole.shape)}".encode() + whole.numpy().tobytes())
    if isinstance(value, dict):
        return zlib.crc32(repr([(str(key), digest(value[key])) for key in value]).encode())
    if isinstance(value, (list, tuple)):
        return zlib.crc32(repr([digest(each) for each in value]).encode())
    return zlib.crc32(repr(value).encode()) if not callable(value) else 0


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Where two nested values differ, by name. Nothing is rounded; NaN equals NaN."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if digest(first) == digest(second) else [f"{place}: {first} != {second}"]
    if isinstance(first, dict) and isinstance(second, dict):
        found = [f"{place}.{key}: only in one" for key in first.keys() ^ second.keys()]
        return found + [
            text for key in first if key in second for text in differences(first[key], second[key], f"{place}.{key}")
        ]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [text for index, (a, b) in pairs for text in differences(a, b, f"{place}[{index}]")]
    return [] if first == second or first != first != second != second else [f"{place}: {first!r} != {second!r}"]


# ---- A training


@dataclass
class Result:
    """A training that has ended, by itself or by a cut."""

    module: Any
    trainer: Trainer
    witness: Witness
    end: dict[str, Any]
    rows: list[dict[str, str]]
    error: BaseException | None

    def differs(self, other: Result) -> list[str]:
        """What differs between the ends of two trainings and their logged rows."""
        return differences(self.end, other.end) + differences(self.rows, other.rows, "rows")


def seed(number: int = 5) -> None:
    torch.manual_seed(number), random.seed(number), np.random.seed(number)


def train(
    setup: Setup, folder: Path, path: Any = None, extra: tuple[Callback, ...] = (), end: bool = True, **options: Any
) -> Result:
    """One training of a fresh module by a fresh trainer; from a checkpoint, the process stands elsewhere."""
    seed()
    module, witness = MODULES[setup.module](), Witness()
    training, validation = loaders_for(setup)
    if path is not None:
        seed(99), torch.rand(7), random.random(), np.random.rand()
    trainer = make_trainer(setup, folder, witness, extra, options)
    error = None
    try:
        if setup.reload_every:
            module.setup_of_loaders = setup
            trainer.fit(module, ckpt_path=path)
        else:
            trainer.fit(module, training, validation, ckpt_path=path)
    except (CutError, KeyboardInterrupt) as caught:
        error = caught
    ended: dict[str, Any] = {}
    if end:
        trainer.save_checkpoint(folder.parent / "end.ckpt")
        ended = comparable(torch.load(folder.parent / "end.ckpt", weights_only=True))
    return Result(module, trainer, witness, ended, rows_in(folder), error)


class CutError(Exception):
    """What ends a training that is cut."""


def make_trainer(setup: Setup, folder: Path, witness: Witness, extra: tuple[Callback, ...], options: Any) -> Trainer:
    callbacks: list[Callback] = [witness, *extra]
    if setup.averaging == "swa":
        callbacks.append(StochasticWeightAveraging(0.01, swa_epoch_start=4, annealing_epochs=2, evaluate_averaged=True))
    if setup.averaging == "ema":
        callbacks.append(EMAWeightAveraging(decay=0.8, update_every_n_steps=2))
    callbacks.append(EarlyStopping("val_loss", patience=setup.patience))
    name = "{epoch}-{step}-{val_loss:.4f}"
    keeps_two = ModelCheckpoint(monitor="val_loss", save_top_k=2, filename=name, save_on_exception=setup.save_on_exception)
    newest = RecoveryCheckpoint(every_seconds=None, every_n_steps=setup.save_every, max_cost=None, asynchronous=False)
    callbacks += [keeps_two, newest]
    precision: Any = setup.precision
    if precision == "16-mixed":
        precision = {"name": "16-mixed", "init_scale": 256.0, "growth_interval": 4}
    given: dict[str, Any] = {
        **QUIET, "enable_checkpointing": True, "logger": None, "default_root_dir": folder, "accelerator": "cpu",
        "max_epochs": setup.epochs, "precision": precision, "log_every_n_steps": setup.log_every,
        "accumulate_grad_batches": setup.accumulate, "val_check_interval": setup.val_check_interval,
        "check_val_every_n_epoch": setup.check_val_every_n_epoch, "reload_dataloaders_every_n_epochs": setup.reload_every,
        **setup.options, **options,
    }  # fmt: skip
    return Trainer(callbacks=callbacks, **given)


def comparable(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without what is new in every run: its id."""
    checkpoint["run"].pop("id")
    checkpoint["callbacks"].pop("RecoveryCheckpoint", None)
    for state in checkpoint["callbacks"].values():
        state.pop("events", None)
    for logger in checkpoint["loggers"]:
        logger["state"].pop("run", None)
    return checkpoint


def rows_in(folder: Path) -> list[dict[str, str]]:
    """All rows that were logged, without those that a resume discarded."""
    found = []
    for path in sorted(folder.rglob("metrics.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            found += list(csv.DictReader(file))
    return found


# ---- Cuts

MOMENTS = (
    "on_train_start", "on_train_epoch_start", "on_train_batch_end", "on_validation_start", "on_validation_batch_end",
    "on_validation_epoch_end", "on_validation_end", "on_train_epoch_end", "on_train_end",
)  # fmt: skip


class Cutter(Callback):
    """Ends a training after so many batches, as a person or an accident would."""

    def __init__(self, how: str = "", batches: int = -1) -> None:
        self.how, self.batches = how, batches

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.progress.batches == self.batches:
            if self.how == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            elif self.how == "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
            elif self.how == "stop":
                trainer.should_stop = True
            elif self.how == "error":
                raise CutError

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.progress.batches == self.batches and self.how == "error inside":
            torch.rand(3)
            raise CutError


class Keeper(Callback):
    """Saves at every moment of a kind, and keeps the folder as it was then: a process that died there left these files.

    Without a folder it does nothing: a training that is resumed has the same callbacks.
    """

    def __init__(self, moments: tuple[str, ...], late: bool, folder: Path | None = None, every: int = 1) -> None:
        self.moments, self.runs_last, self.every, self.count, self.cuts = moments, late, every, 0, []
        self.folder: Any = folder
        for name in moments:
            setattr(self, name, partial(self._keep, name))

    def _keep(self, moment: str, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self.folder is None or trainer.phase == "sanity_check":
            return
        self.count += 1
        if self.count % self.every:
            return
        target = self.folder.parent / f"cuts-{self.runs_last}" / f"{len(self.cuts):03}"
        trainer.save_checkpoint(target / "cut.ckpt")
        self._copy(trainer, target)
        self.cuts.append((f"{moment} after {trainer.progress.batches} batches", target))

    def _copy(self, trainer: Trainer, target: Path) -> None:
        shutil.copytree(self.folder, target / "folder")

    def idle(self) -> Keeper:
        return type(self)(self.moments, self.runs_last)


def uncut(setup: Setup, folder: Path, *extra: Callback) -> Result:
    """The training as it is without a cut, in the folder that the others use after it."""
    whole = train(setup, folder, extra=extra)
    shutil.rmtree(folder)
    return whole


def go_on(setup: Setup, folder: Path, target: Path, keeper: Keeper, *extra: Callback) -> Result:
    """Continue a cut training in the folder that it left."""
    shutil.rmtree(folder)
    shutil.copytree(target / "folder", folder)
    return train(setup, folder, target / "cut.ckpt", (keeper.idle(), *extra))


def check_union(whole: Result, before: Result, after: Result, name: str, but: tuple[str, ...] = ()) -> None:
    """The part before a cut and the part after it are the training that was never cut, ``but`` for what these names say."""
    kept = dict(list(before.witness.events.items())[: after.witness.resumed_at])
    repeated = {key: (kept[key], after.witness.events[key]) for key in kept.keys() & after.witness.events.keys()}
    found = [text for key, (a, b) in repeated.items() for text in differences(a, b, f"repeated {key}")]
    assert not [key for key in repeated if key[0] in ("train", "validated", "epoch")], f"{name}: trained twice: {repeated}"
    found += differences(whole.witness.events, {**kept, **after.witness.events}, "events") + whole.differs(after)
    found = [text for text in found if not any(each in text for each in but)]
    assert not found, f"cut {name}: {len(found)} differences:\n" + "\n".join(text[:400] for text in found[:12])


if __name__ == "__main__":
    train(Setup(), Path(sys.argv[1]), "last" if Path(sys.argv[1]).exists() else None, (Cutter(sys.argv[2], int(sys.argv[3])),))
