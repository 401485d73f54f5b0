"""A study as a script, for one process or, under torchrun, for several ranks of one trial."""

from __future__ import annotations

import json
import os
import sys

import optuna
import torch
from fulmen_optuna import optimize
from job import Classifier, loader

RATES = [0.03, 0.1, 1e-5, 0.05]


class Tuned(Classifier):
    def __init__(self, lr):
        super().__init__()
        self.lr = lr

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def build(trial):
    return Tuned(trial.suggest_float("lr", 1e-6, 1.0))


def main(folder, batch_size):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{folder}/study.db"
    if os.environ.get("RANK", "0") == "0":
        study = optuna.create_study(storage=storage, study_name="fulmen", direction="minimize")
        for rate in RATES:
            study.enqueue_trial({"lr": rate})
    options = {"max_epochs": 4, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    study = optimize(
        build,
        loader(batch_size, 1),
        loader(batch_size, 2),
        n_trials=len(RATES),
        monitor="val_loss",
        storage=storage,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2),
        trainer={**options, "enable_checkpointing": False, "enable_model_summary": False},
        folder=folder,
    )
    if study is not None:
        found = [[trial.state.name, trial.last_step, trial.value] for trial in study.trials]
        with open(f"{folder}/study.json", "w") as file:
            json.dump({"trials": found, "checkpoint": study.best_trial.user_attrs["checkpoint"]}, file)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
