"""What a row of metrics costs when many rows are there already: fulmen's CSV logger and Lightning's.

Each logger, with its defaults, writes a history of rows and then the rows that are timed. A cost that grows with the history
makes a long run slower and slower.

    python benchmarks/csv_rows.py             # print
    python benchmarks/csv_rows.py --write     # and keep the table in benchmarks/results/csv_rows.md
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _results import machine, report, table

SIZES = (100, 1_000, 10_000)
TIMED = 1_000


def rows(first: int, count: int) -> list[dict[str, float]]:
    return [{"epoch": 0.0, "train_loss": 1.0 / (step + 1), "lr": 0.1} for step in range(first, first + count)]


def loggers() -> dict[str, Callable[[Path], Any]]:
    from fulmen.loggers import CSVLogger

    found: dict[str, Callable[[Path], Any]] = {"fulmen": CSVLogger}
    if importlib.util.find_spec("lightning"):
        from lightning.pytorch.loggers import CSVLogger as Other

        found["Lightning"] = Other
    return found


def seconds_per_row(make: Callable[[Path], Any], size: int) -> float:
    """The mean over the rows that follow ``size`` others; writing to the file, in batches, is part of it."""
    with tempfile.TemporaryDirectory() as folder:
        logger = make(Path(folder))
        logger.log_hyperparams({})
        for step, row in enumerate(rows(0, size)):
            logger.log_metrics(row, step)
        following = rows(size, TIMED)
        start = time.perf_counter()
        for step, row in enumerate(following, size):
            logger.log_metrics(row, step)
        return (time.perf_counter() - start) / TIMED


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of a row of metrics.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="keep the table")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    found = []
    for name, make in loggers().items():
        seconds = [statistics.median(seconds_per_row(make, size) for _ in range(given.rounds)) for size in SIZES]
        found.append((name, *(f"{value * 1e6:.0f} us" for value in seconds), f"{seconds[-1] / seconds[0]:.1f}"))
    text = table(("logger", *(f"after {size:,} rows" for size in SIZES), "last to first"), found)
    note = f"Mean of {TIMED:,} rows, median of {given.rounds} rounds. {machine()}."
    report("csv_rows", "What a row of metrics costs", f"{text}\n\n{note}", given.write)


if __name__ == "__main__":
    main()
