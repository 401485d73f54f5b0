"""Metrics as a CSV file, hyper-parameters and options beside it: needs nothing but a disk."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fulmen.builtin.csv_table import CSVTable, replacing
from fulmen.builtin.json_text import json_text
from fulmen.contracts.logger import Logger, Status, named_values
from fulmen.durable import remove_leftovers
from fulmen.errors import ConfigurationError, warn
from fulmen.storage import is_url

METRICS, HPARAMS, CONFIG, DISCARDED = "metrics.csv", "hparams.yaml", "config.json", "metrics.discarded.csv"


class CSVLogger(Logger):
    """Writes ``save_dir/name/version_N/`` with ``metrics.csv``, ``hparams.yaml`` and ``config.json``.

    ``metrics.csv`` has one row per logged set of values, under ``step`` and one column for each name in the order in which
    the names appear. Rows are added at its end. Nothing is created before something is logged.

    A run that is resumed continues its own file: rows that were written after the checkpoint are moved to
    ``metrics.discarded.csv``, so that ``metrics.csv`` holds what a run that was never cut would have written.

    Args:
        save_dir: The folder of all experiments, on a local disk.
        name: The folder of this experiment; ``None`` leaves that level out.
        version: A number ``N`` for ``version_N``, or the name of the folder. One that exists is continued. ``None`` takes
            the next number that is free.
        prefix: Put before the name of each metric, with a ``-``; not before ``step`` and ``epoch``.
        flush_logs_every_n_steps: Write to the file after so many rows, and when a checkpoint is saved or a run ends.

    Raises:
        ConfigurationError: ``save_dir`` is a URL, or another argument is out of range.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str] = ".",
        name: str | None = "fulmen_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        check_arguments(save_dir, version, flush_logs_every_n_steps)
        self._save_dir, self._name, self._prefix = os.fspath(save_dir), name, prefix
        self._given = self._version = version
        self._flush_every = flush_logs_every_n_steps
        self._table: CSVTable | None = None  # from the first thing that is logged on
        self._waiting: list[dict[str, object]] = []
        self._calls = 0  # of log_metrics since the latest attempt to write
        self._hparams: dict[str, Any] = {}
        self._run: str | None = None  # the id of the run in config.json
        self._resumed: dict[str, Any] = {}  # the state to continue from, until the table is opened

    # ---- Where it is

    @property
    def name(self) -> str | None:
        """The experiment's name."""
        return self._name

    @property
    def version(self) -> int | str:
        """The number or name of this run. Asking for it chooses a free number, and reserves nothing."""
        if self._version is None:
            self._version = self._next_version()
        return self._version

    @property
    def save_dir(self) -> str:
        """The folder of all experiments."""
        return self._save_dir

    @property
    def log_dir(self) -> str:
        """The folder of this run. It need not exist yet."""
        return str(self._folder(self.version))

    @property
    def experiment(self) -> CSVLogger:
        """This logger: there is no library behind it."""
        return self

    def _folder(self, version: int | str) -> Path:
        return Path(self._save_dir, self._name or "", version if isinstance(version, str) else f"version_{version}")

    def _next_version(self) -> int:
        numbers = [path.name.removeprefix("version_") for path in Path(self._save_dir, self._name or "").glob("version_*")]
        return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1

    # ---- Logging

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep one row; see :meth:`fulmen.Logger.log_metrics`."""
        self._open()
        values = {self._column(name): number(value) for name, value in metrics.items()}
        self._waiting.append({"step": self.step_of_row(step), **values})
        self._calls += 1
        if self._calls >= self._flush_every:
            self._write()

    def _column(self, name: str) -> str:
        return f"{self._prefix}-{name}" if self._prefix and name not in ("step", "epoch") else name

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace) -> None:
        """Write ``hparams.yaml``, which is JSON and therefore YAML. Later calls add to it."""
        self._hparams.update(named_values(params))
        self._replace(HPARAMS, json_text(self._hparams))

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.json``: the trainer's options and the plugins in effect."""
        self._run = config.get("run")
        self._replace(CONFIG, json_text(config))

    def save(self) -> None:
        """Write all rows, and make them survive a power cut."""
        self._write()
        if self._table is not None:
            self._table.flush()

    def finalize(self, status: Status) -> None:
        """The run ended: write what is left. A later run adds to the same file."""
        self.save()

    def __getstate__(self) -> dict[str, Any]:
        """Without the rows that wait: this object writes them, and a copy of it would do so once more."""
        return {**self.__dict__, "_waiting": []}

    # ---- Resume

    def state_dict(self) -> dict[str, Any]:
        """Where the record of this run ends. Writes all rows first."""
        if self._table is None:
            return dict(self._resumed)
        self.save()
        return {
            "name": self._name,
            "version": self.version,
            "run": self._run,
            "rows": self._table.num_rows,
            "columns": len(self._table.columns),
            "step": self.latest_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a record in its folder, or in a new one where that is gone or belongs to another run.

        Nothing is written before something is logged: all ranks get the state, and one of them logs.
        """
        version = state_dict.get("version")
        if version is None or self._given not in (None, version):  # nothing was logged, or the user wants another folder
            return
        if version != self._given and not is_one_folder(version):
            raise ValueError(f"version={version!r} is not the name of a folder")
        self._write()
        self._table = None
        if problem := self._problem(state_dict, self._folder(version)):
            self._version = self._given
            warn(
                "csv-moved",
                f"the checkpoint continues the metrics in {self._folder(version)}, {problem}; they go on in {self.log_dir}, "
                "without the earlier rows. Give the logger the save_dir and name that it had, to continue them",
            )
        else:
            numbers: dict[str, Any] = {
                name: max(0, int(state_dict[name])) for name in ("rows", "columns", "step") if name in state_dict
            }
            self._version, self._resumed = version, {**state_dict, **numbers}
            self._run, self.latest_step = state_dict.get("run"), numbers.get("step", 0)

    def _problem(self, state: Mapping[str, Any], folder: Path) -> str | None:
        """Why the folder is not the one of the checkpoint."""
        if not folder.is_dir():
            return "which does not exist"
        if state.get("name") != self._name:
            return f"which is an experiment of another name than {state.get('name')!r}"
        found, saved = run_in(folder / CONFIG), state.get("run")
        return f"which holds another run ({found})" if found is not None and found != saved else None

    # ---- Files

    def _open(self) -> CSVTable:
        """The table, in a folder that now exists and is this run's."""
        if self._table is None:
            folder = self._make_folder()
            table = CSVTable(folder / METRICS)
            rows = self._resumed.get("rows", table.num_rows)
            if rows > table.num_rows:
                warn("csv-rows-missing", f"{table.path} has {table.num_rows} rows; when the checkpoint was saved it had {rows}")
            table.rewind(rows, self._resumed.get("columns", len(table.columns)), folder / DISCARDED)
            self._table, self._resumed = table, {}
        return self._table

    def _make_folder(self) -> Path:
        if self._given is not None or self._resumed:
            folder = self._folder(self.version)
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        while True:
            folder = self._folder(self.version)
            try:
                remove_leftovers(folder.parent.glob("version_*"))  # of runs that were killed before they saved anything
                folder.mkdir(parents=True)
            except FileExistsError:  # another process took the number after it was chosen here
                self._version = self._next_version()
            else:
                return folder

    def _write(self) -> None:
        self._calls = 0
        if self._waiting:
            self._open().append(self._waiting)  # what cannot be written stays, for the next attempt
            self._waiting = []

    def _replace(self, name: str, text: str) -> None:
        path = self._open().path.with_name(name)
        with replacing(path) as file:
            file.write(f"{text}\n".encode())


def number(value: Any) -> Any:
    """``value``, or the number in a tensor or an object of numpy. Waits for its device; the trainer sends plain numbers."""
    return value.item() if hasattr(value, "item") else value


def is_one_folder(version: object) -> bool:
    """Whether a version that a checkpoint names is a number, or the name of a folder and no path out of it."""
    if isinstance(version, str):
        return version not in ("", ".", "..") and not set(version) & set("/\\:\0")
    return isinstance(version, int) and version >= 0


def run_in(path: Path) -> str | None:
    """The id of the run in a ``config.json``; ``None`` where nobody knows."""
    try:
        found = json.loads(path.read_bytes()).get("run")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def check_arguments(save_dir: str | os.PathLike[str], version: Any, flush_logs_every_n_steps: Any) -> None:
    """Raise :class:`ConfigurationError` where an argument of :class:`CSVLogger` cannot work."""
    if is_url(save_dir):
        raise ConfigurationError(
            f"CSVLogger cannot write to save_dir={os.fspath(save_dir)!r}: rows are added to a file, which needs a local disk. "
            "Give it a local folder, as in Trainer(logger=CSVLogger('logs')), and copy that folder when the run is over; "
            "or choose another logger, or logger=False"
        )
    is_number = isinstance(version, int) and not isinstance(version, bool) and version >= 0
    if not (version is None or is_number or (isinstance(version, str) and version)):
        raise ConfigurationError(f"version={version!r} is not allowed; allowed: a number from 0, the name of a folder, or None")
    if not isinstance(flush_logs_every_n_steps, int) or flush_logs_every_n_steps < 1:
        raise ConfigurationError(f"flush_logs_every_n_steps={flush_logs_every_n_steps!r} must be a whole number from 1")
