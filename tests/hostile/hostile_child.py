"""A process of its own, with limits and an ear at the interpreter, that opens hostile files and writes down what came of it.

Each line of its output is one file: what was raised, how long it took, and what the interpreter was asked to do meanwhile.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fulmen
from fulmen import Module, Trainer, read_checkpoint
from fulmen.callbacks import RecoveryCheckpoint
from fulmen.cli import main
from fulmen.storage import verify_checkpoint

MEMORY = 2**30
"""Bytes beyond what PyTorch takes by itself; the child ends where it asks for more."""
SECONDS = 20
"""Of processor time for one file; the child is killed when they are over."""
SUSPICIOUS = (
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "ctypes.dlopen",
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree",
)  # fmt: skip


class Tiny(Module):
    """What the checkpoints are given to."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(3, width)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def batches() -> list[torch.Tensor]:
    return list(torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0)))


def fit(folder: Path, ckpt_path: Any = None, max_epochs: int = 1, **options: Any) -> Trainer:
    options = {"callbacks": RecoveryCheckpoint(folder / "saved"), "logger": False, "log_every_n_steps": 1, **options}
    trainer = Trainer(
        max_epochs=max_epochs, accelerator="cpu", default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(Tiny(), batches(), ckpt_path=ckpt_path)
    return trainer


def command(*words: str) -> None:
    """The command line. A failure is raised as what it wrote."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(words)
    if status:
        raise fulmen.CheckpointError(f"{status}: {out.getvalue()}{err.getvalue()}")


def take_last(folder: Path) -> None:
    """``ckpt_path="last"`` where every newer file is hostile. What it warned of is raised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(folder / "last", "last", max_epochs=2, callbacks=RecoveryCheckpoint(folder))
    assert trainer.global_step == 6, "it did not go on from the good one"
    raise fulmen.CheckpointError("\n".join(str(warning.message) for warning in caught))


def entries(good: Path) -> dict[str, Callable[[Path], Any]]:
    return {
        "read": lambda path: read_checkpoint(path),
        "verify": lambda path: verify_checkpoint(path),
        "load": lambda path: Tiny.load_from_checkpoint(path),
        "fit": lambda path: fit(path.parent / "fit", str(path)),
        "show": lambda path: command("ckpt", "show", str(path)),
        "verify_command": lambda path: command("ckpt", "verify", str(path)),
        "diff": lambda path: command("ckpt", "diff", str(good), str(path)),
    }


class Ear:
    """Hears what the interpreter is asked to do."""

    def __init__(self, mine: Path) -> None:
        self.mine, self.heard, self.listens = str(mine), [], False
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.listens:
            return
        if event == "open":
            path, mode, flags = args
            writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and isinstance(path, (str, bytes)) and not os.fsdecode(path).startswith(self.mine):
                self.heard.append(f"open {path!r} {mode}")
        elif event.startswith(SUSPICIOUS) and not (args and str(args[0]).startswith(self.mine)):
            self.heard.append(f"{event} {args!r}"[:200])


def peak() -> int:
    """Kibibytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def outcome(entry: Callable[[Path], Any], path: Path, ear: Ear) -> dict[str, Any]:
    used = int(time.process_time()) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (used, -1))
    begun, before, ear.heard = time.process_time(), peak(), []
    ear.listens = True
    try:
        entry(path)
        found = {"error": "", "message": ""}
    except BaseException as error:  # noqa: BLE001  whatever it is, the test looks at it
        found = {"error": type(error).__name__, "message": str(error)}
    ear.listens = False
    return {**found, "seconds": time.process_time() - begun, "kib": peak() - before, "heard": ear.heard}


def run(names: str, folder: Path, good: Path) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    fit(folder / "warm-up")  # imports what is imported on first use
    ear, known = Ear(folder), entries(good)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, -1))
    if names == "last":
        print(json.dumps({"entry": "last", "case": "", **outcome(lambda path: take_last(path), folder, ear)}), flush=True)
        return
    for name in names.split(","):
        for path in sorted(folder.glob("*.ckpt")):
            print(json.dumps({"begins": path.stem, "entry": name}), flush=True)  # where it crashes, this is the last line
            print(json.dumps({"entry": name, "case": path.stem, **outcome(known[name], path, ear)}), flush=True)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
