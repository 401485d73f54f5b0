"""Trainings on a real disk that is too small, or cannot be written to: ``python small_disk_job.py FOLDER`` prints JSON.

Runs with a mount of its own, of a temporary file system of a few megabytes at ``FOLDER``, which ends with the process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from fault_runs import EPOCHS, WRITERS, contents, run, weights

from fulmen import CheckpointError
from fulmen.loggers import CSVLogger

SIZE = "2m"


def fill(folder: Path, leave: int) -> None:
    """Take all the space of the disk but some bytes."""
    status = os.statvfs(folder)
    with open(folder / "filler", "wb") as file:
        file.write(bytes(max(0, status.f_bavail * status.f_frsize - leave)))


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True, capture_output=True)


def failing(folder: Path, writer: str, fault: str) -> dict[str, Any]:
    """A training whose disk fails in its third epoch, and one that continues it when the disk works again."""
    files = folder / "files"
    files.mkdir()
    before: dict[str, bytes] = {}

    def act() -> None:
        before.update(contents(files))
        if fault == "full":
            fill(folder, 1000)
        else:
            remount(folder, "ro")

    found: dict[str, Any] = {"error": ""}
    try:
        run(WRITERS[writer](files), act)
    except CheckpointError as error:
        found["error"] = str(error)
    found["kept"] = before == contents(files) and bool(before)
    remount(folder, "rw")
    (folder / "filler").unlink(missing_ok=True)
    _, module = run(WRITERS[writer](files), ckpt_path="last")
    found["weights"] = weights(module)
    found["left"] = [str(path) for path in folder.rglob("*.tmp")]
    shutil.rmtree(files)
    return found


def leftover(folder: Path) -> dict[str, Any]:
    """What a killed process left takes the space: the next save makes room for itself."""
    (folder / "files").mkdir()
    (folder / "files" / ".epoch=9.ckpt.0123abcd.tmp").write_bytes(bytes(1 << 20))
    fill(folder, 1000)
    run(WRITERS["trainer.save_checkpoint"](folder / "files"))
    return {"files": sorted(path.name for path in (folder / "files").iterdir())}


def metrics(folder: Path, checkpoints: Path) -> dict[str, Any]:
    """The metrics lie on the disk that is full, the checkpoints on another one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, _ = run(
            WRITERS["best"](checkpoints),
            lambda: fill(folder, 0),
            logger=CSVLogger(folder, flush_logs_every_n_steps=1),
            log_every_n_steps=1,
            others=300,
        )
    return {
        "epochs": trainer.current_epoch,
        "status": trainer.status,
        "warnings": sorted({str(each.message) for each in caught}),
        "left": [str(path) for path in folder.rglob("*.tmp")],
    }


def main(folder: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    checkpoints = folder.parent / "elsewhere"
    found: dict[str, Any] = {"epochs": EPOCHS}
    for fault in ("full", "read-only"):
        for writer in WRITERS:
            subprocess.run(mount, check=True)
            found[f"{fault}: {writer}"] = failing(folder, writer, fault)
            subprocess.run(["umount", str(folder)], check=True)
    for name, scenario in (("leftover", lambda: leftover(folder)), ("metrics", lambda: metrics(folder, checkpoints))):
        subprocess.run(mount, check=True)
        found[name] = scenario()
        subprocess.run(["umount", str(folder)], check=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
