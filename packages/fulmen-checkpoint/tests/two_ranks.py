"""Trainings of two processes, each of which measures values of its own: ``python two_ranks.py FOLDER RANK``."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from fulmen_checkpoint import ModelCheckpoint
from fulmen_checkpoint.places import LocalPlace

from fulmen import CheckpointError, Strategy
from fulmen.testing import Regression, batches, quiet


class Pair(Strategy):
    """The collectives of two processes, and nothing else."""

    name = "pair"
    root_device = torch.device("cpu")

    def __init__(self, folder, rank):
        self.folder, self.rank = folder, rank

    def connect(self, accelerator, devices, num_nodes, environment):
        pass

    world_size = 2

    @property
    def global_rank(self):
        return self.rank

    def setup_environment(self):
        dist.init_process_group("gloo", init_method=f"file://{self.folder}/store", rank=self.rank, world_size=2)

    def teardown(self):
        if dist.is_initialized():
            dist.destroy_process_group()

    def broadcast(self, value, source=0):
        values = [value]
        dist.broadcast_object_list(values, source)
        return values[0]

    def agree(self, flags):
        return int(self.all_reduce(torch.tensor(flags), "max"))

    def all_reduce(self, tensor, op="sum"):
        tensor = tensor.clone()
        dist.all_reduce(tensor, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[op])
        return tensor

    def barrier(self, name=""):
        dist.barrier()


class Measured(Regression):
    """Rank 0 sees values that fall, rank 1 values that rise."""

    def validation_step(self, batch, batch_idx):
        self.log("score", self.trainer.current_epoch * (-1.0 if self.trainer.global_rank == 0 else 1.0))


def train(folder, rank, name, **options):
    """What a callback on this rank knows afterwards, what it wrote, and how it ended."""
    (folder / name).mkdir(exist_ok=True)
    wrote, write = [], LocalPlace.write
    callback = ModelCheckpoint(folder / name / "files", **options)
    trainer = quiet(
        max_epochs=3, callbacks=callback, strategy=Pair(folder / name, rank), num_sanity_val_steps=0, enable_checkpointing=True
    )
    trainer._given_callbacks = [each for each in trainer._given_callbacks if type(each).__name__ != "RecoveryCheckpoint"]

    def recorded(place, payload, path):
        if name.startswith("failing") and payload["epoch"] == 1:
            raise CheckpointError("no space")
        wrote.append(Path(path).name)
        write(place, payload, path)

    LocalPlace.write = recorded
    error = ""
    try:
        trainer.fit(Measured(), batches(4), batches(1))
    except CheckpointError as failure:
        error = str(failure)
    finally:
        LocalPlace.write = write
    best = Path(callback.best_model_path).name
    return {
        "wrote": wrote,
        "best": best,
        "last": Path(callback.last_model_path).name,
        "error": error,
        "step": trainer.global_step,
    }


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=r"\[sync-dist\]")  # that the values differ is what this is about
    found = {
        "monitored": train(folder, rank, "monitored", filename="{epoch}", monitor="score", save_last=True),
        "asynchronous": train(folder, rank, "asynchronous", filename="{epoch}", monitor="score", asynchronous=True),
        "timed": train(folder, rank, "timed", filename="{step}", train_time_interval=1e-6),
        "failing": train(folder, rank, "failing", filename="{epoch}", monitor="score"),
        "failing in the thread": train(folder, rank, "failing in the thread", filename="{epoch}", asynchronous=True),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
