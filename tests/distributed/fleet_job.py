"""A training that is started once per rank, by torchrun or what stands for it: ``fleet_job.py SETTINGS`` (JSON).

Rank ``at[0]`` fails when it has trained ``at[1]`` batches, once for each of the ``failures``. ``"wait"`` is for what the test
does to the node where ``FLEET_FAILS`` is set.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.callbacks import RecoveryCheckpoint
from fulmen.testing import quiet

torch.set_num_threads(1)
BATCHES = 12  # of each rank in an epoch
EPOCHS = 3


class Noisy(fulmen.Module):
    """Draws random numbers in every step, others on each rank."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self.net(batch[0] + 0.01 * torch.randn_like(batch[0])), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]


class Fails(fulmen.Callback):
    """Fails after some batch, before what follows it; a file for each failure says that it has happened."""

    runs_last = False

    def __init__(self, folder, failures, at):
        self.folder, self.failures, self.at = Path(folder), failures, at

    def on_train_start(self, trainer, module):
        if trainer.progress.batches == 0:
            torch.manual_seed(50 + trainer.global_rank)
        (self.folder / f"pid.{trainer.global_rank}").write_text(f"{os.getpid()}")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        with open(self.folder / f"batches.{trainer.global_rank}", "a") as file:
            file.write(f"{trainer.progress.batches}\n")
        here = "FLEET_FAILS" in os.environ if "wait" in self.failures else trainer.global_rank == self.at[0]
        if not here or trainer.progress.batches != self.at[1]:
            return
        for number, how in enumerate(self.failures):
            mark = self.folder / f"failed.{number}"
            if not mark.exists():
                mark.write_text(f"{os.getpid()}")
                fail(how)


def fail(how):
    if how == "raise":
        raise ValueError("the disk of this node is on fire")
    if how == "hang":
        time.sleep(1000)
    if how == "wait":  # until the test has killed something
        time.sleep(1000)
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[how])


def data():
    x = torch.randn(2 * BATCHES * 4, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 4, shuffle=True)


def main(text):
    given = json.loads(text)
    folder = Path(given["folder"])
    saving = RecoveryCheckpoint(folder / "checkpoints", every_n_steps=5)
    trainer = quiet(
        accelerator="cpu",
        devices=given["devices"],
        num_nodes=given.get("num_nodes", 1),
        strategy={"name": "ddp", "timeout_s": given.get("timeout_s", 60)},
        max_epochs=EPOCHS,
        enable_checkpointing=True,
        callbacks=[saving, Fails(folder, given.get("failures", []), given.get("at", [1, 17]))],
    )
    module = Noisy()
    trainer.fit(module, data(), ckpt_path="last")
    report = {
        "weights": dict(module.state_dict()),
        "random": torch.rand(4),
        "batches": trainer.progress.batches,
        "loss": float(trainer.callback_metrics["train_loss"]),
    }
    torch.save(report, folder / f"report.{trainer.global_rank}")


if __name__ == "__main__":
    main(sys.argv[1])
