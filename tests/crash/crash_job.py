"""A training with everything that a cut can spoil. :func:`train` runs it, in this process, until it ends or is killed.

Shuffling, random augmentation, dropout, batch normalisation, accumulation, a scheduler per step, a float16 scaler on the
CPU, averaged weights, early stopping, the best files and the newest, recovery saves every other step, metrics per step.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fulmen
from fulmen.callbacks import EarlyStopping, ModelCheckpoint, RecoveryCheckpoint
from fulmen.loggers import CSVLogger

SAMPLES, BATCH_SIZE, EPOCHS, ACCUMULATE = 48, 4, 6, 2
STEPS = SAMPLES // BATCH_SIZE // ACCUMULATE * EPOCHS
Tell = Callable[[str], None]


class Noisy(Dataset):
    """Samples that are augmented with random numbers, new ones in each epoch."""

    def __init__(self, shape: tuple[int, ...], noise: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(SAMPLES, *shape, generator=generator)
        self.y = self.x.flatten(1)[:, :3].sum(1, keepdim=True)
        self.noise = noise

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index] + self.noise * torch.randn(self.x.shape[1:]), self.y[index]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Wide(nn.Module):
    """Four megabytes of weights, so that a save takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 1 << 17), nn.Linear(1 << 17, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x)) / 1024)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1)), (6,)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(4 * 16, 1)
        ),
        (1, 6, 6),
    ),
    "rnn": (lambda: nn.Sequential(nn.Dropout(0.1), Recurrent()), (5, 4)),
    "wide": (lambda: nn.Sequential(nn.Dropout(0.1), Wide()), (6,)),
}


class Fitted(fulmen.Module):
    """Fits one of :data:`NETWORKS`."""

    def __init__(self, network: str, seed: int, lr: float = 0.02) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(seed)
        self.net = NETWORKS[network][0]()

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch[0]).float(), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("sample_mean", batch[0].mean())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.hparams.lr, total_steps=STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Reporting(fulmen.Callback):
    """Tells the driver where the training is, and what lay about when it started."""

    runs_last = True

    def __init__(self, folder: Path, tell: Tell) -> None:
        self.folder, self.tell = folder, tell

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.tell(f"leftovers {' '.join(sorted(map(str, temporaries(self.folder))))}")
        self.tell(f"start {trainer.progress.batches}")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.tell(f"step {trainer.progress.batches}")


class TellingLogger(CSVLogger):
    """A save of which loggers are told is complete: from now on, no start may go back behind it."""

    def __init__(self, folder: Path, tell: Tell) -> None:
        super().__init__(folder, flush_logs_every_n_steps=3)
        self.tell = tell

    def after_save_checkpoint(self, callback: Any, path: str) -> None:
        checkpoint = torch.load(path, "meta", weights_only=True, mmap=True)
        self.tell(f"saved {checkpoint['loops']['fit_loop']['progress']['batches']}")


def temporaries(folder: Path) -> list[Path]:
    """What a writer has not finished, anywhere in the folder."""
    return [path for path in folder.rglob(".*") if path.name.endswith(".tmp")]


def job_of(options: dict[str, Any]) -> tuple[fulmen.Module, Any, Any]:
    """Module and loaders: of :data:`NETWORKS`, or what ``FILE.py:FUNCTION`` returns for a seed and a number of workers."""
    name, seed, workers = options["model"], options["seed"], options["workers"]
    if ":" in name:
        path, function = name.rsplit(":", 1)
        spec = importlib.util.spec_from_file_location("model_of_the_user", path)
        assert spec is not None and spec.loader is not None, path
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        found: tuple[fulmen.Module, Any, Any] = getattr(made, function)(seed, workers)
        return found
    shape = NETWORKS[name][1]
    train = DataLoader(Noisy(shape, 0.1, seed), BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return Fitted(name, seed), train, DataLoader(Noisy(shape, 0.0, seed + 1), 24)


def callbacks_of(options: dict[str, Any]) -> list[fulmen.Callback]:
    """Everyone who keeps state or files."""
    from fulmen_swa import EMAWeightAveraging, StochasticWeightAveraging

    averaging: dict[str, Callable[[], fulmen.Callback]] = {
        "swa": lambda: StochasticWeightAveraging(0.01, swa_epoch_start=4, annealing_epochs=2),
        "ema": lambda: EMAWeightAveraging(decay=0.9),
    }
    best = ModelCheckpoint(
        monitor="val_loss", save_top_k=2, save_last=options["save_last"], asynchronous=options["asynchronous"]
    )
    recovery = RecoveryCheckpoint(
        every_n_steps=2, every_seconds=options["every_seconds"], max_cost=None, asynchronous=options["asynchronous"]
    )
    stopping = EarlyStopping("val_loss", patience=options["patience"])
    return [averaging[options["averaging"]](), stopping, best, recovery]


def train(options: dict[str, Any], folder: Path, tell: Tell) -> None:
    """Train in ``folder`` from the newest checkpoint there, and leave what came out in ``folder/report``."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=r"\[no-checkpoint\]")  # killed before the first save
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step")  # a scaler skips first steps
    fulmen.seed_everything(options["seed"], verbose=False)
    module, train_loader, val_loader = job_of(options)
    trainer = fulmen.Trainer(
        accelerator="cpu",
        precision="16-mixed",
        max_epochs=EPOCHS,
        accumulate_grad_batches=ACCUMULATE,
        gradient_clip_val=1.0,
        val_check_interval=0.5,
        log_every_n_steps=1,
        default_root_dir=folder,
        logger=TellingLogger(folder, tell),
        callbacks=[*callbacks_of(options), Reporting(folder, tell)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train_loader, val_loader, ckpt_path="last")
    checkpoint_callback = next(each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint))
    report = {
        "weights": dict(module.state_dict()),
        "run": os.path.abspath(trainer.log_dir),
        "ended": [trainer.global_step, trainer.current_epoch, trainer.stop_reason, trainer.status],
        "metrics": {name: value.clone() for name, value in trainer.callback_metrics.items()},
        "best": checkpoint_callback.best_model_path,
        "last": checkpoint_callback.last_model_path,
        "leftovers": [str(path) for path in temporaries(folder)],
    }
    torch.save(report, folder / "report")
    tell("done")
