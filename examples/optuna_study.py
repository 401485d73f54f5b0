"""Look for a good learning rate and width with Optuna, end bad trials early, and draw how it went.

python examples/optuna_study.py --folder runs/optuna      # some 40 seconds; run it again to continue the study
python examples/optuna_study.py --quick                   # fewer trials
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import optuna
import torch
from fulmen_optuna import optimize
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fulmen


class Digits(fulmen.Module):
    """A network for handwritten digits with two things to choose."""

    def __init__(self, lr: float, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


def build(trial: optuna.Trial) -> Digits:
    fulmen.seed_everything(0)
    return Digits(lr=trial.suggest_float("lr", 1e-4, 1.0, log=True), width=trial.suggest_int("width", 8, 128, log=True))


def draw(study: optuna.Study, path: Path) -> None:
    """Each trial's learning curve, and the best value over time."""
    plt.switch_backend("agg")  # no window
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for trial in study.trials:
        pruned = trial.state is optuna.trial.TrialState.PRUNED
        left.plot(
            *zip(*sorted(trial.intermediate_values.items()), strict=True),
            color="tab:red" if pruned else "tab:blue",
            marker=".",
            alpha=0.5,
        )
    left.set(title="Trials (red: pruned)", xlabel="epoch", ylabel="validation accuracy")
    done = [trial for trial in study.trials if trial.state is optuna.trial.TrialState.COMPLETE]
    best = [max(each.value for each in done[: index + 1]) for index in range(len(done))]
    right.plot([each.number for each in done], [each.value for each in done], "o", label="trial")
    right.step([each.number for each in done], best, where="post", label="best so far")
    right.set(title="History of the study", xlabel="trial")
    right.legend()
    plt.savefig(path, dpi=120)
    plt.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Search learning rate and width.")
    parser.add_argument("--folder", default="runs/optuna", help="where the study goes")
    parser.add_argument("--quick", action="store_true", help="a smaller job")
    args = parser.parse_args()

    pixels, labels = (torch.tensor(each) for each in load_digits(return_X_y=True))
    data = TensorDataset(pixels.float() / 16, labels)
    train, val = torch.utils.data.random_split(data, [1400, 397], torch.Generator().manual_seed(0))
    folder, trials = Path(args.folder), 8 if args.quick else 24
    options = {"max_epochs": 3 if args.quick else 8, "logger": False, "enable_checkpointing": False}
    options |= {"enable_progress_bar": False, "enable_model_summary": False}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optimize(
        build, DataLoader(train, batch_size=64), DataLoader(val, batch_size=397), n_trials=trials, monitor="val_acc",
        direction="maximize", trainer=options, folder=folder, storage=folder / "study.journal",
        sampler=optuna.samplers.TPESampler(seed=0), pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )  # fmt: skip
    pruned = sum(trial.state is optuna.trial.TrialState.PRUNED for trial in study.trials)
    print(f"{len(study.trials)} trials, {pruned} pruned; best accuracy {study.best_value:.3f} with {study.best_params}")
    module = Digits.load_from_checkpoint(study.best_trial.user_attrs["checkpoint"])
    found = float((module.net(val[:][0]).argmax(1) == val[:][1]).float().mean())
    if len(study.trials) < trials or study.best_value < 0.85 or abs(found - study.best_value) > 1e-4:
        raise SystemExit(f"the weights that were kept have accuracy {found:.3f}; they should be those of the best trial")
    draw(study, folder / "history.png")
    print(f"wrote {study.best_trial.user_attrs['checkpoint']}")
    print(f"wrote {folder / 'history.png'}")


if __name__ == "__main__":
    main()
