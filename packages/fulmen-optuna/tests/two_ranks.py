"""A study in two processes that work on each trial together: ``python two_ranks.py FOLDER RANK``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import optuna
import torch
import torch.distributed as dist
from fulmen_optuna import optimize
from optuna_studies import DATA, Scored

from fulmen import Strategy
from fulmen.testing import QUIET, batches

FOLDER, RANK = Path(sys.argv[1]), int(sys.argv[2])


class Pair(Strategy):
    """The collectives of two processes, and nothing else."""

    name = "pair"
    root_device = torch.device("cpu")
    world_size = 2
    global_rank = RANK
    groups = 0

    def connect(self, accelerator, devices, num_nodes, environment):
        pass

    def setup_environment(self):
        Pair.groups += 1
        store = f"file://{FOLDER}/store-{Pair.groups}"
        dist.init_process_group("gloo", init_method=store, rank=RANK, world_size=2)

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


SEEN = []


class Seen(Scored):
    """Rank 1 measures what would never be pruned, and no NaN: rank 0 decides."""

    diverges = False

    def validation_step(self, batch, batch_idx):
        score = float("nan") if self.diverges else self.goal + self.trainer.current_epoch
        self.log("score", torch.tensor(score if RANK == 0 else -9.0))

    def on_fit_end(self):
        SEEN.append([self.goal, self.trainer.current_epoch])


def objective(trial):
    module = Seen(trial.suggest_float("goal", 0.0, 1.0))
    module.diverges = trial.number == 1
    return module


def main() -> None:
    torch.set_num_threads(1)
    options = {**QUIET, "max_epochs": 3, "strategy": Pair(), "num_sanity_val_steps": 0}
    study = optimize(
        objective, DATA, batches(1), n_trials=6, monitor="score", trainer=options, folder=FOLDER / "runs",
        storage=FOLDER / "study.journal", sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0),
    )  # fmt: skip
    states = None if study is None else [trial.state.name for trial in study.trials]
    (FOLDER / f"{RANK}.json").write_text(json.dumps([SEEN, states]))


if __name__ == "__main__":
    main()
