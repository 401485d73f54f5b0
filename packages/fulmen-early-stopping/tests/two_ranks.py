"""A training of two processes, each of which measures values of its own: ``python two_ranks.py FOLDER RANK``."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from fulmen_early_stopping import EarlyStopping

from fulmen import Strategy
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
    """Rank 0 sees values that stop falling, rank 1 values that go on."""

    def validation_step(self, batch, batch_idx):
        self.log("score", max(5.0 - self.trainer.current_epoch, 2.0 if self.trainer.global_rank == 0 else -9.0))


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=r"\[sync-dist\]")  # that the values differ is what this is about
    found = []
    for only_zero in (True, False):
        (folder / f"{only_zero}").mkdir(exist_ok=True)
        callback = EarlyStopping("score", patience=2, verbose=True, log_rank_zero_only=only_zero)
        trainer = quiet(max_epochs=9, callbacks=callback, strategy=Pair(folder / f"{only_zero}", rank), num_sanity_val_steps=0)
        trainer.fit(Measured(), batches(2), batches(1))
        found.append([trainer.current_epoch, callback.wait_count, float(callback.best_score), callback.stopping_reason_message])
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
