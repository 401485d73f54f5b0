"""What suites do in a process of its own: ``python -m fulmen.testing.conformance.spawned train FILE``, or ``export``."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from fulmen import Checkpoint
from fulmen.testing.conformance.measure import full_disk
from fulmen.testing.training import Validated, batches, quiet


def train(path: str) -> str:
    """Train with the trainer's options in a pickle, which the suite has just written."""
    options = pickle.loads(Path(path).read_bytes())
    if any(isinstance(callback, Checkpoint) for callback in options.get("callbacks", [])):
        options["enable_checkpointing"] = True
    trainer = quiet(**{"max_epochs": 1, "log_every_n_steps": 2, **options})
    trainer.fit(Validated(), batches(4), batches(2))
    return f"trained {trainer.global_step} steps"


def export(name: str, path: str) -> str:
    """Export to a disk that is full: some libraries end the process there, which must not be that of the tests."""
    with full_disk(64):
        try:
            Validated().export(name, path, batches(1)[0][0])
        except Exception as error:  # noqa: BLE001 - OSError, or what the format's library makes of it
            return f"refused: {type(error).__name__}"
    return "said nothing"


if __name__ == "__main__":
    print(export(*sys.argv[2:]) if sys.argv[1] == "export" else train(sys.argv[2]))  # noqa: T201 - what the suite reads
