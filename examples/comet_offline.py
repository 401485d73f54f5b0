"""Train without a network, and keep everything in an archive that is sent to Comet later.

python examples/comet_offline.py --folder runs/comet      # some 10 seconds
python examples/comet_offline.py --quick                  # fewer epochs
comet upload runs/comet/digits/KEY/KEY.zip                # from a machine with a network and an account
"""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.loggers import CometLogger


class Classifier(fulmen.Module):
    def __init__(self, lr: float = 1e-2, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def losses_in(archive: Path) -> list[float]:
    """The training losses that Comet will show, in the order of their steps."""
    with zipfile.ZipFile(archive) as content:
        messages = [json.loads(line) for line in content.read("messages.json").splitlines()]
    metrics = [message["payload"]["metric"] for message in messages if message["type"] == "metric_msg"]
    return [metric["metricValue"] for metric in metrics if metric["metricName"] == "train_loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train without a network, for Comet.")
    parser.add_argument("--folder", default="runs/comet", help="where the archive and the checkpoints go")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    args = parser.parse_args()

    fulmen.seed_everything(0)
    pixels, labels = load_digits(return_X_y=True)
    digits = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    nothing_about_this_machine = {"log_env_details": False, "log_git_metadata": False}
    logger = CometLogger(
        project="digits", online=False, save_dir=args.folder, tags=["mlp"], experiment_config=nothing_about_this_machine
    )
    trainer = fulmen.Trainer(max_epochs=1 if args.quick else 5, logger=logger, log_every_n_steps=5, enable_progress_bar=False)
    trainer.fit(Classifier(), DataLoader(digits, batch_size=64, shuffle=True))

    archive = Path(logger.offline_directory) / f"{logger.version}.zip"
    losses = losses_in(archive)
    print(f"{len(losses)} losses, from {losses[0]:.2f} to {losses[-1]:.2f}")
    if len(losses) != trainer.global_step // 5 or not losses[-1] < 0.6 * losses[0]:
        raise SystemExit("each logging step should have a loss, and it should fall")
    print(f"wrote {archive}")


if __name__ == "__main__":
    main()
