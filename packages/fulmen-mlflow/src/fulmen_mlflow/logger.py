"""Runs in MLflow, from a thread of its own: a slow or absent server costs the training nothing."""

from __future__ import annotations

import atexit
import json
import math
import os
import shutil
import time
import uuid
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from fulmen import Checkpoint, ConfigurationError, FulmenError, Logger
from fulmen.contracts.logger import Status, named_values
from fulmen.errors import warn
from fulmen.loggers import rank_zero_only
from fulmen_mlflow.names import LONGEST_PARAM, allowed_name, flatten, number, param_text, storable
from fulmen_mlflow.sender import Command, Kind, Sender
from fulmen_mlflow.store import Store, Target, remove
from fulmen_mlflow.unsent import FILE, keep

if TYPE_CHECKING:
    from fulmen import Callback

STATUSES = {"success": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MLFlowLogger(Logger):
    """Writes metrics, parameters, tags, files and checkpoints to a run of MLflow, and how the run ended.

    Nothing is created before something is logged. Rows wait in memory and are sent by a thread, many per request, so that
    no step waits for the server. When a checkpoint is saved and when the run ends, everything is sent first. A server that
    does not answer is one warning; rows wait, and arrive when it is back. What has not arrived at the end is kept in
    ``mlflow_unsent.jsonl`` in :attr:`log_dir`, for :func:`fulmen_mlflow.send_unsent`.

    The run is FINISHED after a normal end, FAILED after an exception and KILLED after a signal. A training that resumes
    continues its run; rows that were logged after the checkpoint stay, because MLflow cannot take them back: of two
    values at one step, the later is the valid one. NaN is kept; an infinity becomes NaN, with a warning and a tag
    ``fulmen.infinite.NAME`` that says which and at which step, because MLflow's databases would store 1.8e308.

    Args:
        experiment_name: The experiment, created where there is none.
        run_name: The run's name; ``None``: date, time and four random letters. Also the name of its folder.
        tracking_uri: The server (``http://...``) or database (``sqlite:///...``); ``None``: the environment variable
            ``MLFLOW_TRACKING_URI``, else a database ``mlflow.db`` in ``save_dir``.
        tags: Names and values to mark the run with.
        save_dir: The local folder of this and other runs: checkpoints, and the database where there is no server.
        log_model: Upload checkpoints to the artifacts, under ``checkpoints``: ``True``: the best and the last, when the
            training ended normally; ``"all"``: each one when it was saved; ``False``: none.
        prefix: Put before the name of each metric, with a ``-``; not before ``epoch``.
        artifact_location: Where a new experiment keeps artifacts; ``None``: the server's default, or ``mlartifacts`` in
            ``save_dir``. An experiment that exists keeps its own.
        run_id: The run to continue; ``None``: a new one.
        synchronous: Whether each call waits until it is sent. Costs a round trip per row.
        timeout: Seconds that the end of a run waits for a server that is away; and, where :attr:`required` is set, how long
            it may be away.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        experiment_name: str = "fulmen_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, Any] | None = None,
        save_dir: str | os.PathLike[str] | None = None,
        log_model: bool | Literal["all"] = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = False,
        timeout: float = 30.0,
    ) -> None:
        self._save_dir = os.fspath(save_dir) if save_dir is not None else "."
        self._uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        check_arguments(experiment_name, self._uri, self._save_dir, log_model, timeout)
        self._name, self._given_id, self._run_id = experiment_name, run_id, run_id
        self._run_name = run_name or f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        self._folder = run_id or (self._run_name if run_name is None else f"{run_name}-{uuid.uuid4().hex[:4]}")
        self._tags = {str(name): str(value) for name, value in (tags or {}).items()}
        self._artifact_location, self._prefix, self._timeout = artifact_location, prefix, timeout
        self._log_model, self._synchronous = log_model, bool(synchronous)
        self._resumed = False
        self._savers: list[Checkpoint] = []
        self._hparams: dict[str, Any] = {}
        self._told: set[str] = set()  # what was warned of, once per run
        self._num_lost = 0
        self._set_aside_for: list[str | None] = []  # the run that the file of unsent values spoke of last
        self._sender: Sender | None = None  # both from the first thing that is logged on
        self._store: Store | None = None

    # ---- Where it is

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._name

    @property
    def version(self) -> str | None:
        """The id of the run; ``None`` before MLflow gave it one. Never waits; see :attr:`run_id`."""
        return self._store.run_id if self._store is not None and self._store.run_id else self._run_id

    @property
    def save_dir(self) -> str:
        """The local folder of all experiments."""
        return self._save_dir

    @property
    def log_dir(self) -> str:
        """The local folder of this run, which holds its checkpoints. Known before the server was asked; need not exist yet."""
        return os.path.join(self._save_dir, quote(self._name, safe=" "), quote(self._folder, safe=" "))

    @property
    def tracking_uri(self) -> str:
        """The server or database."""
        return self._uri or f"sqlite:///{Path(self._save_dir).absolute().as_posix()}/mlflow.db"

    @property
    def experiment(self) -> Any:
        """A ``mlflow.MlflowClient``, for what this class does not cover, with :attr:`run_id`. Does nothing on other ranks."""
        import_mlflow(self.tracking_uri)
        from mlflow import MlflowClient

        if self._uri is None:
            Path(self._save_dir).mkdir(parents=True, exist_ok=True)
        return MlflowClient(tracking_uri=self.tracking_uri)

    @property
    @rank_zero_only
    def run_id(self) -> str:
        """The id of the run, which is created where there is none yet, and waited for; ``None`` on ranks other than 0.

        Raises:
            FulmenError: The server does not answer, or refuses.
        """
        if self.version is None:
            self._start()
        if self.version is None:
            raise FulmenError(f"there is no run in MLflow: {self._reason(self._open())}")
        return self.version

    @property
    @rank_zero_only
    def experiment_id(self) -> str:
        """The id of the experiment; as :attr:`run_id`."""
        if self._store is None or self._store.experiment_id is None:
            self._start()
        if self._store is None or self._store.experiment_id is None:
            raise FulmenError(f"there is no run in MLflow: {self._reason(self._open())}")
        return self._store.experiment_id

    def _start(self) -> None:
        self._put("tags", [])
        self._open().flush(self._timeout)

    # ---- Logging

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep one row; see :meth:`fulmen.Logger.log_metrics`."""
        now, at = int(time.time() * 1000), self.step_of_row(step)
        values = {self._metric_name(name): number(value) for name, value in metrics.items()}
        self._put("metrics", [[name, storable(value), now, at] for name, value in values.items()])
        for name, value in values.items():
            if math.isinf(value) and f"infinite {name}" not in self._told:
                self._note_infinite(name, value, at)

    def _metric_name(self, name: str) -> str:
        return self._allowed(f"{self._prefix}-{name}" if self._prefix and name != "epoch" else name)

    def _allowed(self, name: str) -> str:
        found = allowed_name(name)
        if found != name:
            self._warn_once("mlflow-name", f"MLflow does not take the name {name!r}; it is {found!r} there")
        return found

    def _note_infinite(self, name: str, value: float, step: int) -> None:
        self._told.add(f"infinite {name}")
        self._put("tags", [[f"fulmen.infinite.{name}"[:250], f"{value} at step {step}"]])
        warn("mlflow-infinite", f"{name} is {value} at step {step}: it is NaN in MLflow, which cannot store infinities")

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace) -> None:
        """Keep parameters under flat names (``net/width``), and all of them uncut in the artifact ``hparams.json``."""
        params = named_values(params)
        self._hparams.update(params)
        pairs = [[self._allowed(name), param_text(value)] for name, value in flatten(params)]
        if cut := [name for name, text in pairs if len(text) == LONGEST_PARAM]:
            self._warn_once(
                "mlflow-long",
                f"the values of {', '.join(cut)} are cut at {LONGEST_PARAM} characters; hparams.json has them whole",
            )
        self._put("params", pairs)
        self._put("text", [[as_json(self._hparams), "hparams.json"]])

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Keep the trainer's options and plugins as the artifact ``config.json``."""
        self._put("tags", [["fulmen.run", str(config["run"])]] if config.get("run") else [])
        self._put("text", [[as_json(config), "config.json"]])

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Mark the run."""
        self._put("tags", [[str(name), str(value)] for name, value in tags.items()])

    def log_artifact(self, path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Upload a file or folder from the background.

        It is put aside first, as a hard link where that is possible, so that it may be removed or replaced at once.

        Args:
            path: A local file or folder.
            artifact_path: The folder among the run's artifacts; ``None``: the top.
        """
        source = Path(path)
        aside = source.absolute().parent / f".mlflow-{uuid.uuid4().hex[:8]}"
        aside.mkdir()
        kept = aside / source.name
        if source.is_dir():
            shutil.copytree(source, kept, copy_function=link_or_copy)
            artifact_path = f"{artifact_path}/{source.name}" if artifact_path else source.name
        else:
            link_or_copy(str(source), str(kept))
        if not self._put("artifact", [[str(kept), artifact_path, str(aside)]]):
            remove(str(aside))

    def after_save_checkpoint(self, callback: Callback, path: str) -> None:
        """Upload it, or remember whom to ask at the end; see ``log_model``."""
        if self._log_model == "all":
            self._upload_checkpoint(path)
        elif self._log_model and isinstance(callback, Checkpoint) and callback not in self._savers:
            self._savers.append(callback)

    def _upload_checkpoint(self, path: str) -> None:
        if "://" in path:
            self._warn_once("mlflow-remote-checkpoint", f"{path} is not local: it is not uploaded to MLflow; a tag names it")
            self._put("tags", [["fulmen.checkpoint", path]])
        else:
            self.log_artifact(path, "checkpoints")

    # ---- Sending

    def _put(self, kind: Kind, data: list[Any]) -> bool:
        """Queue something; waits only where ``synchronous`` is set."""
        sender = self._open()
        self._report(sender)
        taken = sender.put(Command(kind, data))
        if not taken:
            self._set_aside([Command(kind, data)])
        if self._synchronous and sender.away_since is None:
            sender.flush(self._timeout)
            self._report(sender)
        return taken

    def _open(self) -> Sender:
        if self._sender is None:
            import_mlflow(self.tracking_uri)
            local = None if self._uri is not None else os.path.abspath(self._save_dir)
            location = self._artifact_location
            if location is None and local is not None:
                location = (Path(local) / "mlartifacts" / quote(self._name, safe=" ")).as_uri()
            self._store = Store(
                Target(
                    tracking_uri=self.tracking_uri,
                    experiment_name=self._name,
                    run_name=self._run_name,
                    run_id=self._run_id,
                    artifact_location=location,
                    tags=self._tags,
                    local_folder=local,
                    resumed=self._resumed,
                )
            )
            self._sender = Sender(self._store.deliver)
            atexit.register(self._at_exit)
        return self._sender

    def _report(self, sender: Sender, *, ended: bool = False) -> None:
        """Say in this thread what happened in the other.

        Raises:
            FulmenError: Something is lost, or the server is away for too long, and this logger is required.
        """
        assert self._store is not None
        if self._store.lost is not None:
            self._warn_once(
                "mlflow-moved",
                f"the checkpoint continues the run {self._store.lost}, which {self.tracking_uri} does not have; a new run goes "
                "on. Give the logger the tracking_uri that it had, to continue the other",
            )
        problems, sender.problems = sender.problems, []
        for kind, error in problems:
            text = f"MLflow did not take {kind}: {type(error).__name__}: {error}"
            if self.required:
                raise FulmenError(text) from error
            self._warn_once(f"mlflow-{kind}", text)
        away = sender.away_since
        too_long = away is not None and time.monotonic() - away > self._timeout
        if "raised" in self._told:
            return
        if self.required and (sender.refused or too_long):
            self._told.add("raised")
            raise FulmenError(f"{self._reason(sender)}, and this logger is required") from sender.reason
        if sender.refused:
            self._warn_once(
                "mlflow-refused", f"{self._reason(sender)}. The training goes on; values are kept in {self._unsent}"
            )
        elif away is not None and not ended:
            self._warn_once("mlflow-away", f"{self._reason(sender)}. The training goes on; values wait until it is back")

    def _reason(self, sender: Sender) -> str:
        return str(sender.reason or f"{self.tracking_uri} does not answer")

    def _warn_once(self, code: str, text: str) -> None:
        key = f"{code} {text if code == 'mlflow-name' else ''}"
        if key not in self._told:
            self._told.add(key)
            warn(code, text)

    @property
    def _unsent(self) -> Path:
        return Path(self.log_dir, FILE)

    def _set_aside(self, commands: list[Command]) -> None:
        """Keep what cannot be sent now in a file."""
        assert self._store is not None
        run_id = self._store.run_id
        target = None if self._set_aside_for == [run_id] else {**self._store.target.plain(), "run_id": run_id}
        keep(self._unsent, target, commands)
        self._set_aside_for = [run_id]
        self._num_lost += sum(command.size for command in commands)

    # ---- Ends

    def save(self) -> None:
        """Wait until everything is sent; not for a server that is away."""
        if self._sender is not None:
            self._sender.flush(self._timeout)
            self._report(self._sender)

    def finalize(self, status: Status) -> None:
        """Send what is left, and how the run ended. A later run continues the same one."""
        if self._sender is None:
            return
        if status == "success" and self._log_model is True:
            paths = {path for saver in self._savers for path in (saver.best_model_path, saver.last_model_path) if path}
            for path in sorted(paths):
                self._upload_checkpoint(path)
        self._sender.put(Command("status", [STATUSES[status]]))
        self._close(self._timeout)

    def _close(self, timeout: float) -> None:
        sender, store = self._sender, self._store
        assert sender is not None and store is not None
        try:
            sender.flush(timeout, patient=True)
        finally:
            if left := sender.left():
                self._set_aside(left)  # where that fails they stay, and the end of the process is another attempt
            sender.close()
            self._sender, self._set_aside_for = None, []
            self._run_id, self._resumed = store.run_id, self._resumed and store.run_id is None
            atexit.unregister(self._at_exit)
        self._report(sender, ended=True)
        if self._num_lost:
            count, self._num_lost = self._num_lost, 0
            warn(
                "mlflow-unsent",
                f"{self._reason(sender)}: {count} values and settings did not reach it. They are in {self._unsent}. Send them "
                f"later: from fulmen_mlflow import send_unsent; send_unsent({str(self._unsent)!r})",
            )
        self._told.clear()

    def _at_exit(self) -> None:
        """The process ends and nobody called :meth:`finalize`."""
        if self._sender is not None:
            self.finalize("interrupted")

    def __getstate__(self) -> dict[str, Any]:
        """Without the thread: another process has its own."""
        return {**self.__dict__, "_sender": None, "_store": None, "_run_id": self.version}

    # ---- Resume

    def state_dict(self) -> dict[str, Any]:
        """Which run it is. Sends everything first, so that a process that dies later has lost nothing before the checkpoint."""
        self.save()
        if self.version is None:
            return {}
        return {
            "run_id": self.version,
            "experiment": self._name,
            "run_name": self._run_name,
            "folder": self._folder,
            "step": self.latest_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a run, unless this logger was given another ``run_id`` or experiment. Writes nothing."""
        run_id = state_dict.get("run_id")
        if run_id is None or self._given_id not in (None, run_id) or state_dict.get("experiment") != self._name:
            return
        if state_dict["folder"] in ("", ".", ".."):
            raise ValueError(f"{state_dict['folder']!r} is not the name of a folder")
        self._run_id, self._resumed = str(run_id), True
        self._run_name, self._folder = str(state_dict["run_name"]), str(state_dict["folder"])
        self.latest_step = int(state_dict.get("step", 0))


def import_mlflow(tracking_uri: str) -> None:
    """Import what a store needs, which takes seconds, in the user's thread: a failure belongs there.

    MLflow uses what newer SQLAlchemy warns of. The warnings are not the user's, and would be errors under ``-W error``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import mlflow

        if not tracking_uri.startswith(("http://", "https://", "databricks")):
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
            from sqlalchemy.orm import configure_mappers

            configure_mappers()


def as_json(value: Any) -> str:
    """``value`` as indented JSON; what JSON does not have becomes text."""
    return json.dumps(value, indent=2, default=param_text, skipkeys=True)


def link_or_copy(source: str, target: str) -> None:
    """A second name for a file, or a copy where the file system has no links. The files are never written to again."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def check_arguments(experiment_name: Any, uri: str | None, save_dir: str, log_model: Any, timeout: Any) -> None:
    """Raise :class:`ConfigurationError` where an argument of :class:`MLFlowLogger` cannot work."""
    if not isinstance(experiment_name, str) or not experiment_name:
        raise ConfigurationError(f"experiment_name={experiment_name!r} is not allowed; allowed: a text that is not empty")
    if log_model not in (True, False, "all"):
        raise ConfigurationError(f"log_model={log_model!r} is not allowed; allowed: True, False and 'all'")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ConfigurationError(f"timeout={timeout!r} is not allowed; allowed: seconds from 0")
    if "://" in save_dir and uri is None:
        raise ConfigurationError(
            f"MLFlowLogger cannot keep its database in save_dir={save_dir!r}, which is not a local folder. Give it "
            "tracking_uri='http://...' of a server, or a local save_dir"
        )
    is_folder = uri is not None and (uri.startswith("file:") or (":" not in uri and uri != "databricks"))
    if is_folder and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
        raise ConfigurationError(
            f"tracking_uri={uri!r} is a folder, which MLflow no longer takes as a store. Use a database, as in "
            "tracking_uri='sqlite:///mlflow.db', or a server, 'http://...'; or set the environment variable "
            "MLFLOW_ALLOW_FILE_STORE=true"
        )
