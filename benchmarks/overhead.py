"""What a training step costs on top of the mathematics: ratios to a loop by hand, measured in one process.

Linear(16, 1), SGD, mean squared error, batches prepared beforehand, one thread. Time: the difference of a long and a short
training, so that setting up cancels out, in alternating rounds; the median of the ratios within each round. Calls: the same
difference as cProfile counts them. Libraries that are not installed are left out by name.

    python benchmarks/overhead.py             # print
    python benchmarks/overhead.py --write     # and keep the table in benchmarks/results/overhead.md
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import importlib.util
import io
import logging
import pstats
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from _results import machine, report, table
from torch import nn

SHORT, LONG = 200, 2200
Fit = Callable[["Prepared", Path], None]


class Prepared:
    """Batches that are there already. Not a list, which Lightning takes for several loaders."""

    def __init__(self, batches: list) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def first(self, count: int) -> Prepared:
        return Prepared(self.batches[:count])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(16, 1)


def by_hand(data: Prepared, folder: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    for x, y in data:
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def module_of(base: type, logs: bool) -> type:
    """The same module for fulmen and Lightning."""

    class Regression(base):
        def __init__(self) -> None:
            super().__init__()
            self.layer = network()

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = nn.functional.mse_loss(self.layer(x), y)
            if logs:
                self.log("train_loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Regression


QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def with_fulmen(logs: bool) -> Fit:
    from fulmen import Module, Trainer

    module = module_of(Module, logs)

    def fit(data: Prepared, folder: Path) -> None:
        options = {"default_root_dir": folder} if logs else QUIET
        Trainer(max_epochs=1, accelerator="cpu", **options).fit(module(), data)

    return fit


def with_lightning(logs: bool) -> Fit:
    import lightning
    from lightning.pytorch.loggers import CSVLogger

    module = module_of(lightning.LightningModule, logs)

    def fit(data: Prepared, folder: Path) -> None:
        options = {"default_root_dir": folder, "logger": CSVLogger(folder)} if logs else QUIET
        lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, **options).fit(module(), data)

    return fit


def with_ignite() -> Fit:
    from ignite.engine import create_supervised_trainer

    def fit(data: Prepared, folder: Path) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        create_supervised_trainer(model, optimizer, nn.functional.mse_loss).run(data, max_epochs=1)

    return fit


def with_accelerate() -> Fit:
    from accelerate import Accelerator

    def fit(data: Prepared, folder: Path) -> None:
        accelerator = Accelerator(cpu=True)
        model = network()
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))
        model.train()
        for x, y in data:
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()

    return fit


def contestants() -> dict[str, Fit]:
    found: dict[str, Fit] = {"by hand": by_hand, "fulmen": with_fulmen(logs=False)}
    makers = {"Ignite": ("ignite", with_ignite), "Accelerate": ("accelerate", with_accelerate)}
    makers["Lightning"] = ("lightning", lambda: with_lightning(logs=False))
    for name, (package, make) in makers.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name} is not installed and is left out")
        else:
            found[name] = make()
    found["fulmen, one log, CSV, bar, checkpoint"] = with_fulmen(logs=True)
    if "Lightning" in found:
        found["Lightning, one log, CSV, bar, checkpoint"] = with_lightning(logs=True)
    return found


def quietly(fit: Fit, data: Prepared) -> float:
    """Seconds of a training whose output nobody wants to see."""
    ignored = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(ignored), contextlib.redirect_stderr(ignored):
        start = time.perf_counter()
        fit(data, Path(folder))
        return time.perf_counter() - start


def seconds_per_step(fit: Fit, data: Prepared) -> float:
    return (quietly(fit, data) - quietly(fit, data.first(SHORT))) / (LONG - SHORT)


def calls_per_step(fit: Fit, data: Prepared) -> float:
    def calls(count: int) -> int:
        profile = cProfile.Profile()
        profile.runcall(quietly, fit, data.first(count))
        return pstats.Stats(profile).total_calls

    return (calls(600) - calls(100)) / 500


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of a step.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="keep the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "ignite", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.manual_seed(0)
    data = Prepared([(torch.randn(8, 16), torch.randn(8, 1)) for _ in range(LONG)])
    fits = contestants()
    for fit in fits.values():
        quietly(fit, data.first(SHORT))
    ratios: dict[str, list[float]] = {name: [] for name in fits}
    base: list[float] = []
    for _ in range(given.rounds):
        measured = {name: seconds_per_step(fit, data) for name, fit in fits.items()}
        again = seconds_per_step(by_hand, data)  # the machine's speed drifts: compare with before and after
        hand = (measured["by hand"] + again) / 2
        base.append(hand)
        for name, seconds in measured.items():
            ratios[name].append(seconds / hand)
    rows = []
    for name, fit in fits.items():
        low, middle, high = statistics.quantiles(ratios[name], n=4)
        rows.append((name, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"{calls_per_step(fit, data):.0f}"))
    text = table(("loop", "time per step, relative", "quartiles", "calls per step"), rows)
    hand = f"by hand {statistics.median(base) * 1e6:.0f} us per step"
    text = f"{text}\n\nMedian of {given.rounds} rounds; {hand}. {machine()}, one thread."
    report("overhead", "What a step costs", text, given.write)


if __name__ == "__main__":
    main()
