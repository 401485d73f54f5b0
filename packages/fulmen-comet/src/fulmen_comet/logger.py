"""Comet experiments. Comet sends from threads of its own, so that no step waits for its server."""

from __future__ import annotations

import importlib
import json
import os
import time
import uuid
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fulmen import ConfigurationError, Logger
from fulmen.contracts.logger import Status, named_values
from fulmen.errors import warn

if TYPE_CHECKING:
    from fulmen import Module

LONGEST_PARAM = 1000
WRITE_SECONDS = 30.0
STATUS, QUOTED_STATUS = "fulmen.status", b'"fulmen.status"'
MODES = ("get_or_create", "get", "create")


class CometLogger(Logger):
    """Writes metrics, parameters, options and how the run ended to an experiment in Comet, or to an archive on the disk.

    Nothing is created before something is logged. Code, graph, command line, printed output and what Comet would collect by
    changing PyTorch are left alone; ``experiment_config`` switches single ones on.

    Where Comet cannot be reached when the training starts, or there is no API key, that is one warning, and everything goes
    into an offline archive, which ``comet upload FILE`` sends later. An offline archive is written when the run ends.

    A training that resumes continues its experiment, whose key is in the checkpoint; offline, that is a second archive for the
    same experiment. Rows that were logged after the checkpoint stay: Comet cannot take them back.

    Args:
        api_key: ``None``: as Comet finds it (``COMET_API_KEY``, ``~/.comet.config``). It is never written to a checkpoint.
        workspace: ``None``: the default one of the account.
        project: ``None``: the default one, ``general``.
        experiment_key: 32 to 50 letters and digits: the experiment to continue, or the key of a new one; ``None``: a new one.
        mode: With ``experiment_key``: ``"get"``: it must exist; ``"create"``: it must not; ``"get_or_create"`` and ``None``:
            either.
        online: Whether to send to Comet's server; ``False``: write an archive.
        offline_directory: The folder of archives; ``None``: ``COMET_OFFLINE_DIRECTORY``, else :attr:`log_dir`.
        prefix: Put before the name of each metric, with a ``-``.
        name: The experiment's name in Comet; ``None``: Comet makes one up.
        tags: To mark the experiment with.
        save_dir: The local folder of this and other runs: checkpoints and archives.
        log_code: Send the source of the script, and the difference to its last commit.
        log_graph: Keep the text of the module where :meth:`log_graph` is called.
        experiment_config: Further arguments of ``comet_ml.ExperimentConfig``, which win over what is set here.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        workspace: str | None = None,
        project: str | None = None,
        experiment_key: str | None = None,
        mode: Literal["get_or_create", "get", "create"] | None = None,
        online: bool | None = True,
        offline_directory: str | os.PathLike[str] | None = None,
        prefix: str | None = None,
        name: str | None = None,
        tags: Iterable[str] | None = None,
        save_dir: str | os.PathLike[str] | None = None,
        log_code: bool = False,
        log_graph: bool = False,
        experiment_config: Mapping[str, Any] | None = None,
    ) -> None:
        self._save_dir = os.fspath(save_dir) if save_dir is not None else "."
        self._offline_directory = None if offline_directory is None else os.fspath(offline_directory)
        self._online = online is not False
        self._check(experiment_key, mode)
        self._api_key, self._workspace, self._project = api_key, workspace, project
        self._given_key, self._mode = experiment_key, mode
        self._key = experiment_key or uuid.uuid4().hex  # Comet lets its clients choose
        self._prefix, self._experiment_name, self._tags = prefix or "", name, [str(tag) for tag in tags or ()]
        self._log_code, self._log_graph = log_code, log_graph
        self._config = dict(experiment_config or {})
        self._exists = False  # the experiment was begun before, here or in the run of a checkpoint
        self._is_offline = False  # how the experiment was begun
        self._hparams: dict[str, Any] = {}
        self._experiment: Any = None  # from the first thing that is logged until the run ends

    def _check(self, key: Any, mode: Any) -> None:
        if mode is not None and mode not in MODES:
            raise ConfigurationError(f"mode={mode!r} is not allowed; allowed: {', '.join(MODES)} and None")
        if key is not None and not (isinstance(key, str) and key.isascii() and key.isalnum() and 32 <= len(key) <= 50):
            raise ConfigurationError(f"experiment_key={key!r} is not allowed; allowed: 32 to 50 letters and digits, or None")
        if mode == "get" and key is None:
            raise ConfigurationError("mode='get' continues an experiment: give experiment_key, or leave out mode")
        archives = self._offline_directory or ("" if "COMET_OFFLINE_DIRECTORY" in os.environ else self._save_dir)
        if "://" in archives and not self._online:
            raise ConfigurationError(
                f"CometLogger cannot write archives to {archives!r}, which is not a local folder; give it offline_directory"
            )

    # ---- Where it is

    @property
    def name(self) -> str | None:
        """The project; ``None`` for Comet's default one."""
        return self._project

    @property
    def version(self) -> str:
        """The key of the experiment."""
        return self._key

    @property
    def save_dir(self) -> str:
        """The local folder of all experiments."""
        return self._save_dir

    @property
    def log_dir(self) -> str:
        """The local folder of this run. It need not exist yet."""
        return os.path.join(self._save_dir, self._project or "", self._key)

    @property
    def offline_directory(self) -> str:
        """Where archives go."""
        return self._offline_directory or os.environ.get("COMET_OFFLINE_DIRECTORY") or self.log_dir

    @property
    def experiment(self) -> Any:
        """The experiment of ``comet_ml``, which is created where there is none yet. On ranks other than 0 it does nothing."""
        return self._open()

    # ---- Logging

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep one row; see :meth:`fulmen.Logger.log_metrics`. The epoch goes along with each value."""
        epoch = metrics.get("epoch")
        values = {self._metric_name(name): number(value) for name, value in metrics.items() if name != "epoch"}
        self._open().log_metrics(values, step=self.step_of_row(step), epoch=None if epoch is None else int(epoch))

    def _metric_name(self, name: str) -> str:
        return f"{self._prefix}-{name}" if self._prefix else name

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace) -> None:
        """Keep parameters under flat names (``net/width``), and all of them uncut in the asset ``hparams.json``."""
        params = named_values(params)
        self._hparams.update(params)
        texts = {name: param(value) for name, value in flatten(params)}
        self._open().log_parameters(texts)
        self._asset(self._hparams, "hparams.json")

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Keep the trainer's options and plugins as the asset ``config.json``."""
        experiment = self._open()
        if config.get("run"):
            experiment.log_other("fulmen.run", str(config["run"]))
        self._asset(config, "config.json")

    def _asset(self, value: Any, name: str) -> None:
        text = json.dumps(value, indent=2, default=lambda item: str(param(item)), skipkeys=True)
        self._open().log_asset_data(text, name=name, overwrite=True)

    def log_graph(self, module: Module) -> None:
        """Keep the text of the module as the experiment's graph, where ``log_graph`` is set."""
        if self._log_graph:
            self._open().set_model_graph(str(module))

    # ---- The experiment

    def _open(self) -> Any:
        if self._experiment is not None:
            return self._experiment
        comet_ml = import_comet(patch=any(value for name, value in self._config.items() if name.startswith("auto_")))
        try:
            self._experiment = self._start(comet_ml, online=self._online)
        except Exception as error:
            if self.required or not self._online:
                raise
            self._experiment = self._start(comet_ml, online=False)
            warn(
                "comet-offline",
                f"Comet cannot be used ({type(error).__name__}: {error}). The training goes on, and everything is kept in an "
                f"archive in {self.offline_directory}; send it later: comet upload FILE",
            )
        return self._experiment

    def _start(self, comet_ml: Any, *, online: bool) -> Any:
        mode: str | None = self._mode or ("get_or_create" if self._given_key else "create")
        if self._exists:
            mode = "get" if not online else "get_or_create"  # an archive of it may not have been sent yet
        if not online:
            os.makedirs(self.offline_directory, exist_ok=True)
        experiment = comet_ml.start(
            api_key=self._api_key,
            workspace=self._workspace,
            project_name=self._project,
            experiment_key=self._key,
            mode=mode,
            online=online,
            experiment_config=comet_ml.ExperimentConfig(**self._experiment_config()),
        )
        if not experiment.alive:
            raise ConnectionError("the experiment could not be started; Comet said why above")
        self._exists, self._is_offline = True, not online
        return experiment

    def _experiment_config(self) -> dict[str, Any]:
        collected = ("parse_args", "auto_param_logging", "auto_metric_logging", "auto_log_co2", "auto_output_logging")
        return {
            **dict.fromkeys(collected, False),
            "log_code": self._log_code,
            "log_git_patch": self._log_code,
            "log_graph": False,  # Comet's own way changes PyTorch; see log_graph
            "display_summary_level": 0,
            "offline_directory": self.offline_directory,
            "name": self._experiment_name,
            "tags": self._tags,
            **self._config,
        }

    # ---- Ends

    def save(self) -> None:
        """Wait until everything left this process: sent, or written for the archive."""
        if self._experiment is not None:
            self._experiment.flush()
            if self._is_offline:
                wait_written(self._experiment.streamer)

    def finalize(self, status: Status) -> None:
        """Keep how the run ended, and end the experiment: send what is left, or write the archive."""
        if self._experiment is None:
            return
        experiment, self._experiment = self._experiment, None
        try:
            if self._is_offline:
                log_status(experiment, status)
            else:
                experiment.log_other(STATUS, status)
        finally:
            experiment.end()
        if self._is_offline:
            self._check_archive(str(experiment.offline_directory))

    def _check_archive(self, folder: str) -> None:
        """Comet writes from a thread, and does not say where that failed: the last thing that was logged must be there.

        Raises:
            OSError: It is not.
        """
        found = sorted(Path(folder).glob(f"{self._key}*.zip"), key=os.path.getmtime)
        if not found or not is_complete(found[-1]):
            where = found[-1] if found else folder
            raise OSError(f"Comet's archive {where} is not complete: is the disk full? Values of this run are lost")

    def __getstate__(self) -> dict[str, Any]:
        """Without the experiment: another process continues it."""
        return {**self.__dict__, "_experiment": None}

    # ---- Resume

    def state_dict(self) -> dict[str, Any]:
        """Which experiment it is. Everything leaves this process first."""
        self.save()
        return {"experiment_key": self._key, "project": self._project, "step": self.latest_step} if self._exists else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue an experiment, unless this logger was given another key or project. Writes nothing."""
        key = state_dict.get("experiment_key")
        if key is None or self._given_key not in (None, key) or state_dict.get("project") != self._project:
            return
        self._check(key, None)  # it becomes the name of a folder
        self._key, self._exists, self.latest_step = key, True, int(state_dict.get("step", 0))


def wait_written(streamer: Any) -> None:
    """Wait until Comet's thread has written what was logged; offline, its ``flush`` does not.

    Raises:
        TimeoutError: It takes more than half a minute.
    """
    deadline = time.monotonic() + WRITE_SECONDS
    while streamer.is_alive() and not streamer.messages.empty():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Comet has not written what was logged within {WRITE_SECONDS:.0f} seconds")
        time.sleep(0.002)


def log_status(experiment: Any, status: Status) -> None:
    """Keep how the run ended, and wait until Comet's thread has written it.

    ``end`` waits until the thread has taken what was logged, and lets it then drop what it holds and has not written.

    Raises:
        TimeoutError: It takes more than half a minute.
    """
    wait_written(experiment.streamer)
    file, deadline = Path(experiment.tmpdir, "messages.json"), time.monotonic() + WRITE_SECONDS
    before = file.stat().st_size if file.exists() else 0
    experiment.log_other(STATUS, status)
    while experiment.streamer.is_alive() and not has_status(file, before):
        if time.monotonic() > deadline:
            raise TimeoutError(f"Comet has not written how the run ended within {WRITE_SECONDS:.0f} seconds")
        time.sleep(0.002)


def has_status(file: Path, start: int) -> bool:
    """Whether the status is in what was written to ``file`` after its first ``start`` bytes."""
    if not file.exists():
        return False
    with file.open("rb") as content:
        content.seek(start)
        return QUOTED_STATUS in content.read()


def is_complete(archive: Path) -> bool:
    """Whether what :meth:`CometLogger.finalize` logs last is in an archive."""
    try:
        with zipfile.ZipFile(archive) as content, content.open("messages.json") as lines:
            return any(QUOTED_STATUS in line for line in lines)
    except (OSError, KeyError, zipfile.BadZipFile):
        return False


def import_comet(*, patch: bool) -> Any:
    """Import ``comet_ml``.

    Args:
        patch: Let it change PyTorch, scikit-learn and others, now and when they are imported, as its automatic logging needs.
    """
    switch = "COMET_DISABLE_AUTO_LOGGING"
    is_ours = not patch and switch not in os.environ
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Comet and what it imports; they are not the user's
        if is_ours:
            os.environ[switch] = "1"  # read once, at import
        try:
            return importlib.import_module("comet_ml")
        finally:
            if is_ours:
                del os.environ[switch]


def number(value: Any) -> float:
    """``value`` as a number. A tensor or an object of numpy waits for its device; the trainer sends plain numbers."""
    return value.item() if hasattr(value, "item") else value  # type: ignore[no-any-return]


def param(value: Any) -> Any:
    """A parameter as Comet takes it: numbers and booleans as they are, the rest as text of at most 1000 characters.

    >>> param(0.1), param(None), param(int), len(param("x" * 2000))
    (0.1, 'None', 'builtins.int', 1000)
    """
    if isinstance(value, (bool, int, float)):
        return value
    if hasattr(value, "__qualname__"):  # its repr would hold an address, which differs each time
        text = f"{value.__module__}.{value.__qualname__}"
    else:
        try:
            text = str(value)
        except Exception:  # noqa: BLE001 - of a foreign __str__; the other parameters are worth having
            text = f"<{type(value).__module__}.{type(value).__qualname__}>"
    return text if len(text) <= LONGEST_PARAM else f"{text[: LONGEST_PARAM - 3]}..."


def flatten(params: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings under names joined by ``/``; mappings in lists too.

    >>> dict(flatten({"net": {"sizes": [64, 10]}, "lr": 0.1, "layers": [{"n": 1}]}))
    {'net/sizes': [64, 10], 'lr': 0.1, 'layers/0/n': 1}
    """
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}/")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            yield from flatten(dict(enumerate(value)), f"{name}/")
        else:
            yield name, value
