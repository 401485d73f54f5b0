"""One training on any number of ranks, which writes down the samples and the loss of every step: started by tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from fulmen import Callback, Module, Trainer
from fulmen.testing import quiet

torch.set_num_threads(1)


class Numbered(torch.utils.data.Dataset[Any]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        x = torch.tensor([index % 7 / 7.0, index % 3 / 3.0, 1.0])
        return index, x, x[:1] * x[1:2] + 0.1 * (index % 2)


class Elastic(Module):
    """Without random numbers of its own, unless it is told to have dropout."""

    def __init__(self, dropout: bool = False, sums: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3 if dropout else 0.0), nn.Linear(4, 1))
        self.sums, self.seen = sums, []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        indices, x, y = batch
        losses = (self.net(x) - y).square().squeeze(1)
        progress = self.trainer.progress
        self.seen.append([progress.epoch, progress.step, indices.tolist(), losses.tolist()])
        self.log("loss", losses.mean(), on_step=True, on_epoch=True, sync_dist=True)
        return (losses.sum(), len(losses)) if self.sums else losses.mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", (self.net(batch[1]) - batch[2]).square().mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Report(Callback):
    """Saves after so many batches; each rank writes what it saw until then, or until the end."""

    def __init__(self, folder: str, name: str, stop: int | None) -> None:
        self.path, self.stop, self.folder = Path(folder, name), stop, Path(folder)

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.stop is not None and trainer.progress.batches == self.stop:
            trainer.save_checkpoint(self.folder / f"{self.path.name}.ckpt")
            self._report(trainer, module)
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, module: Any) -> None:
        if self.stop is None:
            self._report(trainer, module)

    def _report(self, trainer: Trainer, module: Any) -> None:
        weights = {name: value.tolist() for name, value in module.state_dict().items()}
        record = {"seen": module.seen, "weights": weights, "steps": trainer.global_step}
        Path(f"{self.path}.{trainer.global_rank}").write_text(json.dumps(record), encoding="utf-8")


def train(
    folder: str, name: str, ranks: int, batch_size: int, path: str | None = None, stop: int | None = None, size: int = 48,
    dropout: bool = False, sums: bool = False, sampler: str = "shuffled", drop_last: bool = False, workers: int = 0,
    **options: Any,
) -> None:  # fmt: skip
    torch.manual_seed(7)
    module, data = Elastic(dropout, sums), Numbered(size)
    draw: dict[str, Any] = {"shuffle": sampler == "shuffled"}
    if sampler == "weighted":
        draw = {"sampler": WeightedRandomSampler([1.0 + index % 4 for index in range(size)], size)}
    if sampler == "generator":
        draw = {"shuffle": True, "generator": torch.Generator().manual_seed(11)}
    loader = DataLoader(data, batch_size, drop_last=drop_last, num_workers=workers, **draw)
    strategy = "single_device" if ranks == 1 else "ddp_fork"
    trainer = quiet(
        accelerator="cpu", devices=ranks, strategy=strategy, callbacks=[Report(folder, name, stop)], log_every_n_steps=1,
        **{"max_epochs": 3, **options},
    )  # fmt: skip
    if path is not None:
        torch.manual_seed(99)
    where = None if path is None else Path(folder, path)
    trainer.fit(module, loader, DataLoader(Numbered(12), 2), ckpt_path=where)


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        train(**case)
