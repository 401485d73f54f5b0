"""Train on handwritten digits in 32 bits, in bfloat16 and in float16, and compare.

python examples/precision.py                # some ten seconds
python examples/precision.py --folder runs/precision --quick
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fulmen

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class Classifier(fulmen.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        logits = self.net(images)  # in 16 bits where the precision is mixed; cross_entropy is in 32 again
        self.format = logits.dtype
        return cross_entropy(logits, labels)

    def test_step(self, batch, batch_idx):
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def loaders():
    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    train, test = TensorDataset(images[:1400], labels[:1400]), TensorDataset(images[1400:], labels[1400:])
    return DataLoader(train, 32, shuffle=True), DataLoader(test, 397)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train in several precisions and compare.")
    parser.add_argument("--folder", default="runs/precision", help="where the table goes")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    args = parser.parse_args()

    rows = []
    for name in PRECISIONS:
        fulmen.seed_everything(0)
        train, test = loaders()
        module = Classifier()
        trainer = fulmen.Trainer(
            precision=name, max_epochs=3 if args.quick else 10, logger=False, enable_checkpointing=False, gradient_clip_val=1.0
        )
        trainer.fit(module, train)
        accuracy = trainer.test(module, test)[0]["accuracy"]
        skipped = getattr(trainer.runtime.precision, "num_skipped_steps", 0)  # steps whose float16 gradients overflowed
        rows.append({"precision": name, "computed in": module.format, "accuracy": accuracy, "skipped steps": skipped})

    print("".join(f"{key:>16}" for key in rows[0]))
    for row in rows:
        print("".join(f"{value if key != 'accuracy' else f'{value:.4f}'!s:>16}" for key, value in row.items()))
    spread = max(row["accuracy"] for row in rows) - min(row["accuracy"] for row in rows)
    if spread > 0.03:
        raise SystemExit(f"the accuracies differ by {spread:.3f}, and should by less than 0.03")
    path = Path(args.folder) / "precision.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
