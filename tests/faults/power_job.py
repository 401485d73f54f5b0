"""A training whose every touch of the disk is recorded: ``python power_job.py FOLDER RECORD JSON_OPTIONS``.

The record is a pickled list of what happened, in order: ``("mkdir", path)``, ``("open", path)`` for writing,
``("rename", old, new)``, ``("link", old, new)``, ``("symlink", target, path)``, ``("remove", path)``,
``("fsync", path, content)`` with ``None`` as the content of a folder, ``("saved", batches)`` when a save was completed, and
``("end", {path: content})``.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import fulmen
from fulmen.callbacks import ModelCheckpoint, RecoveryCheckpoint
from fulmen.loggers import CSVLogger
from fulmen.testing import Validated, batches

MADE = {"os.mkdir": "mkdir", "os.rename": "rename", "os.link": "link", "os.symlink": "symlink", "os.remove": "remove"}


class Recorder:
    """Hears of every touch before it happens; ``confirm`` finds out whether the latest one did."""

    def __init__(self, folder: str) -> None:
        self.folder, self.record, self._open = folder, [], None
        flush = os.fsync

        def fsync(descriptor: int) -> None:
            flush(descriptor)
            self.confirm()
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if path.startswith(folder) or folder.startswith(path):
                content = None if os.path.isdir(path) else Path(path).read_bytes()
                self.record.append(("fsync", path, content))

        os.fsync = fsync
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
            path, flags = str(arguments[0]), arguments[2]
            if path.startswith(self.folder) and flags & (os.O_WRONLY | os.O_RDWR):
                self.confirm()
                self._open = ("open", path)
        elif event in MADE:
            self.confirm()
            paths = [str(each) for each in arguments[:2] if isinstance(each, (str, os.PathLike))]
            happens = {"os.mkdir": False, "os.remove": True}.get(event)  # where there is none, or there is one
            if paths and paths[-1].startswith(self.folder) and happens in (None, os.path.lexists(paths[-1])):
                self._open = (MADE[event], *paths)

    def confirm(self) -> None:
        found, self._open = self._open, None
        if found is not None:
            gone = found[0] == "remove"
            if os.path.lexists(found[-1]) is not gone:
                self.record.append(found)


class Marking(CSVLogger):
    """Marks where a save was completed."""

    def __init__(self, folder: str, recorder: Recorder) -> None:
        super().__init__(folder, flush_logs_every_n_steps=3)
        self.recorder = recorder

    def after_save_checkpoint(self, callback: Any, path: str) -> None:
        self.recorder.confirm()
        batches_done = torch.load(path, weights_only=True)["loops"]["fit_loop"]["progress"]["batches"]
        self.recorder.record.append(("saved", batches_done))


def main(folder: str, record: str, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    recorder = Recorder(folder)
    best = ModelCheckpoint(monitor="val_loss", save_top_k=2, save_last=options["save_last"], dirpath=options["dirpath"])
    trainer = fulmen.Trainer(
        accelerator="cpu",
        max_epochs=3,
        default_root_dir=folder,
        logger=Marking(folder, recorder),
        log_every_n_steps=1,
        callbacks=[best, RecoveryCheckpoint(every_n_steps=3, max_cost=None, asynchronous=False)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Validated(), batches(4), batches(1))
    recorder.confirm()
    files = {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()}
    Path(record).write_bytes(pickle.dumps([*recorder.record, ("end", files)]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
