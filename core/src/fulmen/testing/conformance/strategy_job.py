"""The program that the suite for strategies runs: as a user's script, it may be started once or once per rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, Checkpoint, Trainer
from fulmen.testing import FailingModule, Regression, mse, quiet, without_dropout

NUM_SAMPLES = 96


class Even(Regression):
    """A regression without dropout, so that how the data is shared makes no difference; ``losses`` stay on the device."""

    def __init__(self, double: bool) -> None:
        super().__init__()
        without_dropout(self)
        if double:
            self.double()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss."""
        return mse(self, batch)


def loader(batch_size: int, double: bool) -> DataLoader[Any]:
    """All samples, in order."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(NUM_SAMPLES, 3, generator=generator, dtype=torch.float64 if double else torch.float32)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size, shuffle=False)


def trained(batch_size: int, double: bool, options: dict[str, Any]) -> Even:
    """The module after two epochs on the processor, in one process."""
    module = Even(double)
    trainer = quiet(max_epochs=2, accelerator="cpu", strategy="single_device", devices=1, **options)
    trainer.fit(module, loader(batch_size, double))
    return module


class Collectives(Callback):
    """Tries every collective when fitting starts."""

    report: dict[str, Any]

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        """Each rank brings its own numbers."""
        strategy = trainer.runtime.strategy
        rank, device = strategy.global_rank, strategy.root_device
        own = torch.tensor([rank + 1.0, 0.0], device=device)
        strategy.barrier("suite")
        text: Any = strategy.broadcast({"from": rank, "text": "é" if rank == 0 else "wrong"})
        self.report = {
            "ranks": [rank, strategy.world_size],
            "reduced": {op: float(strategy.all_reduce(own.clone(), op)[0]) for op in ("sum", "mean", "min", "max")},
            "gathered": strategy.all_gather(own).tolist(),
            "broadcast": {**text, "tensor": strategy.broadcast(torch.tensor([float(rank)], device=device)).tolist()},
            "agreed": strategy.agree(1 << rank),
        }


class SaveAndStop(Checkpoint):
    """Saves after a batch in the middle of an epoch, and ends the training there."""

    def __init__(self, batch: int, path: str) -> None:
        self.batch, self.path = batch, path

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save and stop."""
        if trainer.progress.batches == self.batch:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


class Report(Callback):
    """Writes what this rank has to say when its fit ends: the parent process may never see its objects."""

    runs_last = True

    def __init__(self, folder: str, collectives: Collectives) -> None:
        self.folder, self.collectives = folder, collectives

    def on_fit_end(self, trainer: Trainer, module: Any) -> None:
        """Write it."""
        state = {name: value.detach().cpu().clone() for name, value in trainer.runtime.strategy.module_state(module).items()}
        path = Path(self.folder) / f"{trainer.global_rank}.report"
        torch.save({**self.collectives.report, "state_dict": state}, path)


def main(settings: dict[str, Any]) -> None:
    """Do what the suite asks for."""
    what, checkpoint = settings["what"], settings.get("checkpoint")
    collectives = Collectives()
    callbacks: list[Callback] = [collectives, Report(settings["folder"], collectives)]
    if checkpoint:
        callbacks.append(SaveAndStop(5 if what == "cut" else -1, checkpoint))
    trainer = quiet(
        max_epochs=2,
        strategy=settings["strategy"],
        accelerator=settings["accelerator"],
        devices=settings["devices"],
        callbacks=callbacks,
        enable_checkpointing=bool(checkpoint),
        **settings["options"],
    )
    double = settings["double"] and what != "fail"
    module = Even(double) if what != "fail" else FailingModule(at=2, rank=settings["rank"])
    trainer.fit(module, loader(4, double), ckpt_path=checkpoint if what == "resume" else None)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
