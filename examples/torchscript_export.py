"""Export a network as a torch.export program, and as TorchScript for runtimes that still need it; load both elsewhere.

python examples/torchscript_export.py --folder runs/export      # some 15 seconds
python examples/torchscript_export.py --quick                   # less training
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fulmen


class Digits(fulmen.Module):
    """A small network for images of handwritten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))

    def forward(self, pixels):
        return self.net(pixels)

    def training_step(self, batch, batch_idx):
        pixels, labels = batch
        return cross_entropy(self(pixels), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


ELSEWHERE = """
import sys, warnings, torch
warnings.simplefilter("ignore")
sys.modules["fulmen"] = None  # whoever imports it fails
pixels, labels = torch.load(sys.argv[1])
model = torch.export.load(sys.argv[2]).module() if sys.argv[2].endswith(".pt2") else torch.jit.load(sys.argv[2])
print((model(pixels).argmax(1) == labels).float().mean().item())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Export with torch.export and TorchScript.")
    parser.add_argument("--folder", default="runs/export", help="where files go")
    parser.add_argument("--quick", action="store_true", help="a smaller job")
    args = parser.parse_args()

    fulmen.seed_everything(0)
    pixels, labels = (torch.tensor(each) for each in load_digits(return_X_y=True))
    pixels = pixels.float() / 16
    train = DataLoader(TensorDataset(pixels[:1400], labels[:1400]), batch_size=64, shuffle=True)
    module = Digits()
    fulmen.Trainer(max_epochs=3 if args.quick else 15, logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(
        module, train
    )

    folder, sample = Path(args.folder), pixels[:2]
    files = [module.to_torch_export(folder / "digits.pt2", sample, dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}})]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\[torchscript-deprecated\]")  # it says what the line above does
        files.append(module.to_torchscript(folder / "digits.pt"))

    torch.save((pixels[1400:], labels[1400:]), folder / "test.pt")
    expected = float((module.eval()(pixels[1400:]).argmax(1) == labels[1400:]).float().mean())
    for path in files:
        command = [sys.executable, "-c", ELSEWHERE, str(folder / "test.pt"), str(path)]
        found = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{path.name}: accuracy {found:.3f} in a process without fulmen")
        if abs(found - expected) > 1e-6 or found < 0.8:
            raise SystemExit(f"{path} should be as good as the module: {expected:.3f}")
    for path in files:
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
