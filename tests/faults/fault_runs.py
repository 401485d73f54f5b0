"""Small trainings that save in every way there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fulmen import Callback, Checkpoint, Trainer
from fulmen.callbacks import ModelCheckpoint, RecoveryCheckpoint
from fulmen.testing import Regression, batches

EPOCHS = 5
SCORES = [5.0, 4.0, 3.0, 2.0, 1.0]


class Scored(Regression):
    """Its score falls from epoch to epoch, so that each is among the best."""

    others = 0  # metrics besides, to make rows of them long

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", SCORES[self.trainer.current_epoch])
        self.log_dict({f"other{index}": 1 / (index + 3) for index in range(self.others)})


class Never(RecoveryCheckpoint):
    """Takes the place of the one that every trainer has, and saves nothing."""

    def save(self, trainer: Any) -> None:
        pass


class Saving(Checkpoint):
    """Calls ``trainer.save_checkpoint`` at the end of each epoch, as a user's callback does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.save_checkpoint(self.folder / f"mine-{trainer.current_epoch}.ckpt")

    def folders(self, trainer: Any) -> list[Path]:
        return [self.folder]


class Arming(Callback):
    """Does something when the third epoch starts, when all that was saved before is written."""

    def __init__(self, action: Any) -> None:
        self.action = action

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 2:
            trainer.writer.finish()
            self.action()


WRITERS = {
    "best": lambda folder: ModelCheckpoint(folder, "{epoch}", "score", save_top_k=2, save_last=True),
    "best, asynchronous": lambda folder: ModelCheckpoint(folder, "{epoch}", "score", save_top_k=2, asynchronous=True),
    "last": lambda folder: ModelCheckpoint(folder, save_top_k=0, save_last=True),
    "recovery": lambda folder: RecoveryCheckpoint(folder, max_cost=None, asynchronous=False),
    "recovery, asynchronous": lambda folder: RecoveryCheckpoint(folder, max_cost=None),
    "trainer.save_checkpoint": Saving,
}


def run(
    writer: Checkpoint, action: Any = lambda: None, ckpt_path: Any = None, others: int = 0, **options: Any
) -> tuple[Trainer, Scored]:
    """A trainer that has run, or raises what its training raises."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    trainer, module = made(writer, action, **options)
    module.others = others
    trainer.fit(module, batches(3), batches(1), ckpt_path=ckpt_path)
    return trainer, module


def made(writer: Checkpoint, action: Any = lambda: None, **options: Any) -> tuple[Trainer, Scored]:
    savers = [writer] if isinstance(writer, RecoveryCheckpoint) else [writer, Never()]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": EPOCHS}
    return Trainer(**{**quiet, **options}, accelerator="cpu", callbacks=[*savers, Arming(action)]), Scored()


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every file, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def weights(module: torch.nn.Module) -> dict[str, list[float]]:
    return {name: value.flatten().tolist() for name, value in module.state_dict().items()}
