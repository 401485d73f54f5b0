"""What an import costs: seconds and modules in a fresh process, against the libraries one would use instead.

Each round starts every statement once, in turn; the median counts. Time is that of the import alone, without starting Python.

    python benchmarks/imports.py             # print
    python benchmarks/imports.py --write     # and keep the table in benchmarks/results/imports.md
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys

from _results import machine, report, table

STATEMENTS = {
    "import torch": "torch",
    "import fulmen": "fulmen",
    "from fulmen import Trainer, Module": "fulmen",
    "from fulmen.cli import main; main(['plugins'])": "fulmen",
    "from ignite.engine import Engine": "ignite",
    "from accelerate import Accelerator": "accelerate",
    "from lightning import Trainer, LightningModule": "lightning",
}
PROBE = """
import contextlib, io, sys, time, warnings
warnings.simplefilter("ignore")
before, start = len(sys.modules), time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    exec({statement!r})
print(time.perf_counter() - start, len(sys.modules) - before)
"""


def measure(statement: str) -> tuple[float, int]:
    """Seconds, and modules that came with it, in a process of its own."""
    code = PROBE.format(statement=statement)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    seconds, modules = done.stdout.split()[-2:]
    return float(seconds), int(modules)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of imports.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="keep the table")
    given = parser.parse_args()
    statements = [statement for statement, module in STATEMENTS.items() if importlib.util.find_spec(module)]
    for statement in statements:
        measure(statement)  # compiles to bytecode
    found: dict[str, list[tuple[float, int]]] = {statement: [] for statement in statements}
    for _ in range(given.rounds):
        for statement in statements:
            found[statement].append(measure(statement))
    medians = {statement: statistics.median(seconds for seconds, _ in runs) for statement, runs in found.items()}
    torch_seconds = medians["import torch"]
    rows = [
        (f"`{statement}`", f"{medians[statement] * 1000:.0f} ms", f"{medians[statement] / torch_seconds:.2f}", runs[0][1])
        for statement, runs in found.items()
    ]
    text = table(("statement", "time", "relative to torch", "modules"), rows)
    report("imports", "What an import costs", f"{text}\n\nMedian of {given.rounds} rounds. {machine()}.", given.write)


if __name__ == "__main__":
    main()
