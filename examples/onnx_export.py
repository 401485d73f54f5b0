"""Train a small network on handwritten digits and export it to ONNX, in 32 bits and in 8.

python examples/onnx_export.py --folder runs/onnx      # some 15 seconds
python examples/onnx_export.py --quick                 # less training
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnxruntime
import torch
from fulmen_onnx import read_report
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fulmen


class Digits(fulmen.Module):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2))
        self.head = nn.Sequential(nn.Linear(16 * 36, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, images):
        return self.head(self.body(images))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def accuracy(path: Path, images: torch.Tensor, labels: torch.Tensor) -> float:
    """How many digits onnxruntime gets right with the file, which needs neither fulmen nor PyTorch for it."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    return float((torch.from_numpy(logits).argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on digits and export to ONNX.")
    parser.add_argument("--folder", default="runs/onnx", help="where files go")
    parser.add_argument("--quick", action="store_true", help="a smaller job")
    args = parser.parse_args()

    fulmen.seed_everything(0)
    pixels, targets = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)
    train = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=64, shuffle=True)
    trainer = fulmen.Trainer(
        max_epochs=3 if args.quick else 15, default_root_dir=args.folder, logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(Digits(), train)

    sample, any_batch = images[1400:1402], {"images": {0: "batch"}}
    files = [
        trainer.export("onnx", Path(args.folder) / "digits.onnx", sample, dynamic_shapes=any_batch),
        trainer.export("onnx", Path(args.folder) / "digits-int8.onnx", sample, dynamic_shapes=any_batch, quantize="int8"),
    ]
    scores = [accuracy(path, images[1400:], labels[1400:]) for path in files]
    for path, score in zip(files, scores, strict=True):
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB, accuracy {score:.3f}, {read_report(path)}")
    if min(scores) < 0.8 or abs(scores[0] - scores[1]) > 0.02:
        raise SystemExit("the files should recognise digits, and 8 bits about as well as 32")
    if files[1].stat().st_size > files[0].stat().st_size / 2:
        raise SystemExit("8 bits should take less room")
    for path in files:
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
