"""A training of two ranks under SLURM, slow enough to be interrupted: ``python slurm_job.py FOLDER SECONDS``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from fulmen import Callback, Trainer
from fulmen.callbacks import RecoveryCheckpoint
from fulmen.testing import QUIET, Validated, batches


class Slow(Callback):
    """Takes its time, and says which step is done."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        time.sleep(self.seconds)
        if trainer.is_global_zero:
            with open(self.folder / "steps.txt", "a", encoding="utf-8") as file:
                file.write(f"{os.environ.get('SLURM_RESTART_COUNT', '0')} {trainer.global_step}\n")


def main(folder: Path, seconds: float) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(
        **{**QUIET, "enable_checkpointing": True}, max_epochs=3, accelerator="cpu", devices=2, strategy="ddp",
        default_root_dir=folder, callbacks=[RecoveryCheckpoint(), Slow(folder, seconds)],
    )  # fmt: skip
    module = Validated()
    trainer.fit(module, batches(16), batches(2), ckpt_path="last")  # 8 for each rank
    if trainer.is_global_zero:
        torch.save(module.state_dict(), folder / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
