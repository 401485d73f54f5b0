"""The trainings below a folder: how far they came, and which file each goes on from. Nothing in a file is run.

The exit status is 1 where the newest checkpoint of a training is damaged; the one that is taken instead is shown.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fulmen.errors import CheckpointError, ConfigurationError
from fulmen.storage import read_checkpoint

UNITS = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))


def run(folder: str) -> tuple[str, int]:
    """A paragraph for each folder with checkpoints, with the newest that verifies; and the exit status.

    Raises:
        ConfigurationError: There is no such folder.
    """
    root, text, status = Path(folder), "", 0
    if not root.is_dir():
        raise ConfigurationError(f"there is no folder {folder!r}; give one below which trainings were saved, such as '.'")
    for place in sorted({path.parent for path in root.rglob("*.ckpt") if path.is_file()}):
        path, found, failures = newest(place)
        status = 1 if failures else status
        lines = [str(place.parent if place.name == "checkpoints" else place)]
        if path is not None and found is not None:
            lines += [_described(found, time.time() - path.stat().st_mtime), str(path)]
        text += "\n  ".join([*lines, *failures]) + "\n"
    return text or f"no checkpoints below {folder}\n", status


def newest(folder: Path) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """The newest checkpoint that verifies, what it holds without the values of tensors, and what is wrong with newer ones."""
    failures: list[str] = []
    files = [(path.stat().st_mtime, path.name, path) for path in folder.glob("*.ckpt") if path.is_file()]
    for _, _, path in sorted(files, reverse=True):
        try:
            return path, read_checkpoint(path, "meta"), failures
        except CheckpointError as error:
            failures.append(str(error))
    return None, None, failures


def _described(found: Mapping[str, Any], age: float) -> str:
    size, unit = next((each for each in UNITS if age >= 2 * each[0]), UNITS[-1])
    position = f"epoch {found.get('epoch', '?')}, step {found.get('global_step', '?')}"
    return f"{_part(found, 'run').get('module', '?')}, {position}, saved {age / size:.0f} {unit} ago: {_state(found)}"


def _state(found: Mapping[str, Any]) -> str:
    """In words, whether the training came to its end or goes on."""
    position = _part(found, "loops", "fit_loop", "progress")
    if not position:
        return "holds weights only"
    for name, done in (("max_epochs", position.get("epoch")), ("max_steps", position.get("step"))):
        limit = _part(found, "run", "options").get(name)
        if isinstance(limit, int) and isinstance(done, int) and 0 <= limit <= done:
            return f"finished: {name}={limit}"
    batch, reason = position.get("batch"), _part(found, "run").get("stop_reason")
    inside = f" after batch {batch} of the epoch" if batch else ""
    return f"{reason}; goes on{inside}" if reason else f"goes on{inside}"


def _part(found: Any, *keys: str) -> Mapping[str, Any]:
    """A mapping inside; empty where there is none."""
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
