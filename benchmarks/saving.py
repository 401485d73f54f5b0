"""What saving costs a training: how long a step is blocked, the whole job, and memory. fulmen, Lightning, torch by hand.

Linear layers with Adam, one thread, 20 and 400 MB of state. Each training saves its whole state after every so many steps,
in a process of its own; the kinds take turns, in rounds. A step is blocked for as long as the step that saves takes longer
than the others of its run. The whole job, until all is written, is compared with as many steps as they took before the first
save. Memory is the highest that the process had, and all that it started, above the highest before the first save.

    python benchmarks/saving.py             # print
    python benchmarks/saving.py --write     # and keep the tables in benchmarks/results/saving.md

Libraries that are not installed are left out by name. Memory is measured on Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _results import machine, report, table
from torch import nn

SIZES = {20: (512, 6), 400: (1024, 32)}
"""Megabytes of state, with Adam's: width and number of the layers."""
EVERY = {20: 60, 400: 20}
"""Steps from one save to the next: enough for the slowest to write in the background."""
SAVES = 3
"""That are measured. One more follows at the very end."""
REFERENCE = "torch.save by hand"
NONE = "no saving"


class Steps:
    """Batches that are there already; notes when each is asked for. Not a list, which Lightning takes for several loaders."""

    def __init__(self, megabytes: int) -> None:
        self.every = EVERY[megabytes]
        self.batch, self.marks = torch.randn(4, SIZES[megabytes][0]), []
        self.memory = Memory()

    def __iter__(self):
        for index in range(len(self)):
            if index in (5, self.every - 1):
                self.memory.start()
            self.marks.append(time.perf_counter())
            yield self.batch
        self.marks.append(time.perf_counter())

    def __len__(self) -> int:
        return self.every * (SAVES + 1)

    def result(self) -> dict[str, Any]:
        """Seconds for which each save blocked its step, and what else was measured."""
        took = [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]
        saving = [self.every * (index + 1) - 1 for index in range(SAVES)]
        plain = statistics.median(took[index] for index in range(5, len(took) - 1) if index not in saving)
        return {
            "blocked": [took[index] - plain for index in saving],
            "step": plain,
            "job": (time.perf_counter() - self.marks[5]) / (statistics.median(took[5 : self.every - 1]) * (len(self) - 5)),
            "memory": self.memory.peak(),
        }


class Memory:
    """The highest memory of this process and those that it started, above the highest before."""

    def __init__(self) -> None:
        self.before: float | None = None

    def start(self) -> None:
        """Note the highest value so far, and forget it."""
        with contextlib.suppress(OSError):
            self.before = megabytes_of("self", "VmHWM")
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float | None:
        """Megabytes. What other processes share with this one counts once; those must still be running."""
        if self.before is None:
            return None
        children = Path("/proc/self/task").glob("*/children")
        started = [pid for path in children for pid in path.read_text().split()]
        others = sum(megabytes_of(pid, "VmHWM") - megabytes_of(pid, "RssShmem") for pid in started)
        return max(0.0, megabytes_of("self", "VmHWM") - self.before) + others


def megabytes_of(pid: str, field: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


class Network(nn.Module):
    """Layers side by side."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        width, count = SIZES[megabytes]
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def forward(self, batch):
        return sum(layer(batch).square().mean() for layer in self.layers)


# ---- By hand: a function that is called after each step that saves, and one for the end

Save = Callable[[dict[str, Any], Path], None]


def by_hand(save: Save, finish: Callable[[], None] = lambda: None) -> Callable[[int, Steps, Path], None]:
    def train(megabytes: int, steps: Steps, folder: Path) -> None:
        model = Network(megabytes)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
        for index, batch in enumerate(steps, 1):
            loss = model(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if index % steps.every == 0:
                save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": index}, folder / f"{index}")
        finish()

    return train


def remove_others(path: Path) -> None:
    for other in path.parent.iterdir():
        if other != path:
            shutil.rmtree(other) if other.is_dir() else other.unlink()


def plain_save(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path)
    remove_others(path)


def flushed_save(state: dict[str, Any], path: Path) -> None:
    """As files are written that are to survive a power cut."""
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    remove_others(path)


def distributed_checkpoint(in_process: bool) -> Callable[[int, Steps, Path], None]:
    """``async_save``, once in a thread and once in a process; waits for the save before, as its documentation says."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    running: list[tuple[Any, Path]] = []
    options: dict[str, Any] = {"no_dist": True}
    if in_process:
        store = f"file://{tempfile.mkdtemp()}/store"
        dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        # its other ways of staging need CUDA
        options = {"async_checkpointer_type": AsyncCheckpointerType.PROCESS}
        options["async_stager"] = DefaultStager(StagingOptions(False, True, False, False))

    def finish() -> None:
        while running:
            response, path = running.pop()
            getattr(response, "upload_completion", response).result()
            remove_others(path)

    def save(state: dict[str, Any], path: Path) -> None:
        finish()
        running.append((dcp.async_save(state, checkpoint_id=path, **options), path))

    return by_hand(save, finish)


# ---- fulmen and Lightning: the same module, and their callbacks

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1, "accelerator": "cpu"}


def module_of(base: type, megabytes: int) -> Any:
    class Stack(base):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network(megabytes)

        def training_step(self, batch, batch_idx):
            return self.network(batch)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-5)

    return Stack()


def with_fulmen(asynchronous: bool) -> Callable[[int, Steps, Path], None]:
    from fulmen import Module, Trainer
    from fulmen.callbacks import ModelCheckpoint

    def train(megabytes: int, steps: Steps, folder: Path) -> None:
        saving = ModelCheckpoint(folder, every_n_train_steps=steps.every, asynchronous=asynchronous)
        recovery = {"name": "recovery", "dirpath": folder.parent, "every_seconds": None}  # what it would save is saved already
        trainer = Trainer(**QUIET, enable_checkpointing=True, callbacks=[saving, recovery])
        trainer.fit(module_of(Module, megabytes), steps)

    return train


def with_lightning(asynchronous: bool) -> Callable[[int, Steps, Path], None]:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.plugins.io import AsyncCheckpointIO

    def train(megabytes: int, steps: Steps, folder: Path) -> None:
        saving = ModelCheckpoint(folder, every_n_train_steps=steps.every)
        plugins = [AsyncCheckpointIO()] if asynchronous else None
        trainer = lightning.Trainer(**QUIET, devices=1, callbacks=[saving], plugins=plugins)
        trainer.fit(module_of(lightning.LightningModule, megabytes), steps)

    return train


CONTESTANTS: dict[str, Callable[[], Callable[[int, Steps, Path], None]]] = {
    NONE: lambda: by_hand(lambda state, path: None),
    REFERENCE: lambda: by_hand(plain_save),
    "torch.save and fsync by hand": lambda: by_hand(flushed_save),
    "Lightning": lambda: with_lightning(False),
    "fulmen": lambda: with_fulmen(False),
    "Lightning, asynchronous": lambda: with_lightning(True),
    "torch.distributed.checkpoint async_save": lambda: distributed_checkpoint(False),
    "torch.distributed.checkpoint async_save, process": lambda: distributed_checkpoint(True),
    "fulmen, asynchronous": lambda: with_fulmen(True),
}


# ---- One training in a process, and all of them


def train_here(name: str, megabytes: int) -> None:
    """Print what one training measured."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    steps = Steps(megabytes)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        train = CONTESTANTS[name]()
        (Path(folder) / "files").mkdir()
        train(megabytes, steps, Path(folder) / "files")
        result = steps.result()
    print(json.dumps(result), flush=True)
    os._exit(0)  # helpers of others that wait for more work need not end in order


def in_a_process(name: str, megabytes: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--only", name, "--megabytes", str(megabytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"blocked"')]
    if not lines:
        raise SystemExit(f"{name} ended with status {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return json.loads(lines[-1])


def compare(megabytes: int, rounds: int, names: list[str]) -> str:
    """The table of one size. Ratios are taken within each round, and then their median."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:  # each has every place in turn
            found[name].append(in_a_process(name, megabytes))
    reference = [statistics.median(each["blocked"]) for each in found[REFERENCE]]
    rows = []
    for name, results in found.items():
        job = statistics.median(each["job"] for each in results)
        memory = [each["memory"] for each in results if each["memory"] is not None]
        most = f"{statistics.median(memory):.0f} MB" if memory else "not measured"
        if name == NONE:
            rows.append((name, *3 * ("",), f"{job:.2f}", most))
            continue
        blocked = [seconds for each in results for seconds in each["blocked"]]
        ratio = statistics.median(
            statistics.median(each["blocked"]) / base for each, base in zip(results, reference, strict=True)
        )
        times = f"{statistics.median(blocked) * 1e3:.0f} ms", f"{max(blocked) * 1e3:.0f} ms"
        rows.append((name, *times, f"{ratio:.2f}", f"{job:.2f}", most))
    step = statistics.median(each["step"] for each in found[NONE])
    title = f"## {megabytes} MB\n\nA step takes {step * 1e3:.0f} ms; a save after every {EVERY[megabytes]} steps.\n\n"
    header = ("saved by", "a step is blocked", "at worst", "relative", "whole job", "memory")
    return title + table(header, rows)


def available() -> list[str]:
    """The names of what can be measured here."""
    needed = {"Lightning": "lightning", "fulmen": "fulmen_checkpoint"}
    missing = {name for name, package in needed.items() if importlib.util.find_spec(package) is None}
    for name in missing:
        print(f"{name} needs {needed[name]}, which is not installed: left out")
    return [name for name in CONTESTANTS if name.split(",")[0] not in missing]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of saving.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="keep the tables")
    parser.add_argument("--megabytes", type=int, choices=SIZES, help="only this size")
    parser.add_argument("--only", choices=CONTESTANTS, help="one training in this process")
    given = parser.parse_args()
    if given.only:
        return train_here(given.only, given.megabytes or min(SIZES))
    names = available()
    sizes = [given.megabytes] if given.megabytes else list(SIZES)
    tables = "\n\n".join(compare(size, given.rounds, names) for size in sizes)
    note = (
        f"Blocked: median and worst of {SAVES * given.rounds} saves in {given.rounds} rounds; relative to `torch.save` in the "
        "same round. fulmen flushes each file to the disk and reads it back; Lightning and `torch.save` do neither, "
        f"`async_save` flushes. {machine()}, one thread."
    )
    return report("saving", "What saving costs", f"{tables}\n\n{note}", given.write)


if __name__ == "__main__":
    main()
