"""A training with averaged or pruned weights, as a script: started once, or once per rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch._dynamo  # as the first optimizer does, for 1.5 s: here, so that ranks that are forked have it
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.callbacks import EMAWeightAveraging, ModelPruning, StochasticWeightAveraging
from fulmen.testing import quiet

torch.set_num_threads(1)


class Net(fulmen.Module):
    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        middle = [nn.BatchNorm1d(8)] if norm else []
        self.net = nn.Sequential(nn.Linear(4, 8), *middle, nn.Tanh(), nn.Linear(8, 1)).double()

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loader(batch_size):
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size)


CALLBACKS = {
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=2, annealing_epochs=2),
    "swa_norm": lambda: StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=2, annealing_epochs=2),
    "ema": lambda: EMAWeightAveraging(decay=0.9),
    "pruning": lambda: ModelPruning("l1_unstructured", amount=0.2),
}


def main(text):
    given = json.loads(text)
    for name in given["names"]:
        norm = name == "swa_norm"
        strategy = {"name": "ddp_fork", "sync_batchnorm": norm} if given["ranks"] > 1 else "single_device"
        trainer = quiet(
            accelerator="cpu", devices=given["ranks"], strategy=strategy, precision="64-true", max_epochs=5,
            accumulate_grad_batches=given["accumulate"], callbacks=[CALLBACKS[name]()],
        )  # fmt: skip
        module, size = Net(norm), 16 // given["ranks"]
        trainer.fit(module, loader(size), loader(size))
        report = {"weights": dict(module.state_dict()), "val_loss": float(trainer.callback_metrics["val_loss"])}
        torch.save(report, Path(given["folder"]) / f"{name}.{given['ranks']}")


if __name__ == "__main__":
    main(sys.argv[1])
