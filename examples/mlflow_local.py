"""Compare learning rates in MLflow, in a database on this machine: nothing to set up, nothing leaves it.

python examples/mlflow_local.py --folder runs/mlflow      # some 20 seconds
python examples/mlflow_local.py --quick                   # fewer epochs
mlflow ui --backend-store-uri sqlite:///runs/mlflow/mlflow.db
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

import fulmen
from fulmen.loggers import MLFlowLogger


class Classifier(fulmen.Module):
    def __init__(self, lr: float, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_acc", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare learning rates in MLflow.")
    parser.add_argument("--folder", default="runs/mlflow", help="where the database and the checkpoints go")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    args = parser.parse_args()

    pixels, labels = load_digits(return_X_y=True)
    digits = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    rates = (1e-5, 1e-2)
    for lr in rates:
        fulmen.seed_everything(0)
        train, val = random_split(digits, [1500, 297])
        logger = MLFlowLogger("digits", run_name=f"lr {lr}", save_dir=args.folder, tags={"data": "digits"}, log_model=True)
        trainer = fulmen.Trainer(
            max_epochs=2 if args.quick else 10, logger=logger, log_every_n_steps=5, enable_progress_bar=False
        )
        trainer.fit(Classifier(lr), DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=297))

    client = logger.experiment  # a mlflow.MlflowClient
    best, *others = client.search_runs([logger.experiment_id], order_by=["metrics.val_acc DESC"])
    for run in (best, *others):
        print(f"{run.info.run_name}: {run.info.status}, val_acc {run.data.metrics['val_acc']:.3f}")
    if best.data.params["lr"] != "0.01" or len(others) < len(rates) - 1:
        raise SystemExit("the larger learning rate should have won")
    steps = [point.step for point in client.get_metric_history(best.info.run_id, "train_loss")]
    if best.info.status != "FINISHED" or not steps or not client.list_artifacts(best.info.run_id, "checkpoints"):
        raise SystemExit("the best run should be finished, with a loss per logging step and a checkpoint")
    print(f"wrote {Path(args.folder) / 'mlflow.db'}")


if __name__ == "__main__":
    main()
