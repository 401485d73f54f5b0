"""What could not be sent until the end of a run, as a file that can be sent later."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fulmen.errors import ConfigurationError
from fulmen_mlflow.sender import Command
from fulmen_mlflow.store import Store, Target

FILE = "mlflow_unsent.jsonl"


def keep(path: Path, target: Mapping[str, Any] | None, commands: Iterable[Command]) -> None:
    """Add commands to a file of JSON lines, after a line that says for which run they are; ``None``: as those before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        if target is not None:
            file.write(f"{json.dumps({'target': dict(target)})}\n")
        for command in commands:
            file.write(f"{json.dumps({'kind': command.kind, 'data': command.data})}\n")


def send_unsent(path: str | os.PathLike[str], tracking_uri: str | None = None) -> str:
    """Send what a training kept in ``mlflow_unsent.jsonl`` because the server did not answer; the file is removed then.

    Sending twice does no harm: MLflow keeps a metric of the same step and time once.

    Args:
        path: The file, in the logger's ``log_dir``.
        tracking_uri: Another server than the one that did not answer.

    Returns:
        The id of the run, a new one where the server had none.

    Raises:
        ConfigurationError: The file does not hold such lines.
        Exception: The server does not answer, or refuses; the file stays.
    """
    store: Store | None = None
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            if "target" in entry:
                run_id = entry["target"]["run_id"] or (store.run_id if store else None)
                fields = {**entry["target"], "run_id": run_id}
                store = Store(Target(**{**fields, "tracking_uri": tracking_uri or fields["tracking_uri"]}))
                continue
            command = Command(entry["kind"], entry["data"])
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(f"{path}, line {number}: this is no file of unsent values of fulmen-mlflow") from error
        assert store is not None
        store.deliver([command])
    if store is None or store.run_id is None:
        raise ConfigurationError(f"{path} holds nothing to send")
    os.remove(path)
    return store.run_id
