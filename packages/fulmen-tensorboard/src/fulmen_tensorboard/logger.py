"""A folder of event files per run, which TensorBoard shows."""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
import weakref
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

from fulmen import ConfigurationError, Logger
from fulmen.contracts.exporter import example_arguments, ready_to_export
from fulmen.contracts.logger import Status, named_values
from fulmen.errors import warn
from fulmen_tensorboard.events import Writer, cut, rewind, sizes
from fulmen_tensorboard.hparams import flatten, session_end, session_start, text, yaml

if TYPE_CHECKING:
    from fulmen import Module

HPARAMS, CONFIG = "hparams.yaml", "config.json"


class TensorBoardLogger(Logger):
    """Writes ``save_dir/name/version_N/`` with event files, ``hparams.yaml`` and ``config.json``.

    Nothing is created before something is logged. Rows wait in memory for at most ``flush_secs``, and are on the disk when
    a checkpoint is saved and when the run ends. ``tensorboard --logdir SAVE_DIR`` shows all runs.

    A run that is resumed continues its own folder. What was written after the checkpoint is cut off exactly, and kept in
    files with ``discarded`` in their names; a TensorBoard that is running forgets it too.

    Args:
        save_dir: The folder of all experiments, on a local disk.
        name: The folder of this experiment; ``None`` or ``""`` leaves that level out.
        version: A number ``N`` for ``version_N``, or the name of the folder. One that exists is continued. ``None`` takes
            the next number that is free.
        log_graph: Write the graph of the module when a fit starts; it needs ``module.example_input_array``.
        default_hp_metric: Write a scalar ``hp_metric`` of -1 with hyper-parameters that come without metrics, for
            ``self.log("hp_metric", ...)`` to replace.
        prefix: Put before the name of each metric, with a ``-``; not before ``epoch``.
        sub_dir: A folder inside the run's for the event files, which then is a run of its own in TensorBoard.
        max_queue: Events that may wait in memory; more are written at once.
        flush_secs: Seconds for which an event waits at most, where others follow it.
        filename_suffix: The end of the names of event files.

    Raises:
        ConfigurationError: ``save_dir`` is a URL, or another argument is out of range.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str] = ".",
        name: str | None = "fulmen_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        max_queue: int = 100,
        flush_secs: float = 30.0,
        filename_suffix: str = "",
    ) -> None:
        check_arguments(save_dir, version, max_queue, flush_secs)
        self._save_dir, self._name, self._prefix = os.fspath(save_dir), name or "", prefix
        self._given = self._version = version
        self._log_graph, self._default_hp_metric = log_graph, default_hp_metric
        self._sub_dir = os.fspath(sub_dir) if sub_dir is not None else ""
        self._max_queue, self._flush_secs, self._suffix = max_queue, flush_secs, filename_suffix
        self._writer: Writer | None = None  # from the first thing that is logged until the run ends
        self._folder_is_ours = False
        self._last_step = -1  # the largest that was written
        self._hparams: dict[str, Any] = {}
        self._has_session = self._has_graph = False
        self._end: tuple[Path, int] | None = None  # the file that says how the run ended, and its size without that
        self._run: str | None = None  # the id of the run in config.json
        self._resumed: dict[str, Any] = {}  # the state to continue from, until something is logged

    # ---- Where it is

    @property
    def name(self) -> str | None:
        """The experiment's name."""
        return self._name or None

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
    def root_dir(self) -> str:
        """The folder of this experiment."""
        return os.path.join(self._save_dir, self._name) if self._name else self._save_dir

    @property
    def log_dir(self) -> str:
        """The folder of this run, without ``sub_dir``: checkpoints are found below it. It need not exist yet."""
        return str(self._folder(self.version))

    @property
    def event_dir(self) -> str:
        """The folder of the event files: ``log_dir/sub_dir``."""
        return os.path.join(self.log_dir, self._sub_dir) if self._sub_dir else self.log_dir

    @property
    def experiment(self) -> Any:
        """PyTorch's ``SummaryWriter``, which is opened where it is not. On ranks other than 0 it does nothing."""
        return self._open()

    def _folder(self, version: int | str) -> Path:
        return Path(self.root_dir, version if isinstance(version, str) else f"version_{version}")

    def _next_version(self) -> int:
        numbers = [path.name.removeprefix("version_") for path in Path(self.root_dir).glob("version_*")]
        return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1

    # ---- What the trainer sends

    def log_metrics(self, metrics: Mapping[str, float | Mapping[str, float]], step: int | None = None) -> None:
        """Keep one row; see :meth:`fulmen.Logger.log_metrics`. All of it is one event.

        A mapping in the place of a value gives a scalar for each of its names, ``loss/train``.
        """
        writer = self._open()
        values = [Summary.Value(tag=self._tag(name), simple_value=number(value)) for name, value in scalars(metrics)]
        writer.file_writer.add_summary(Summary(value=values), self.step_of_row(step))
        if writer.event_file.failure is not None:
            writer.event_file.flush()  # raises what went wrong, or has better luck

    def _tag(self, name: str) -> str:
        return f"{self._prefix}-{name}" if self._prefix and name != "epoch" else name

    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace, metrics: Mapping[str, float] | None = None, step: int | None = None
    ) -> None:
        """Put the run on the HPARAMS page and write ``hparams.yaml``. Later calls add to the file.

        TensorBoard keeps the first hyper-parameters of a run; others, of a later fit, are in the file, with a warning.

        Args:
            params: Names and values. Nested ones get flat names (``net/width``) on the page.
            metrics: Scalars to write along, under ``prefix``; ``None``: see ``default_hp_metric``.
            step: Their step; ``None``: 0.
        """
        writer = self._open()
        self._hparams.update(named_values(params))
        content, path = f"{yaml(self._hparams)}\n", Path(self.log_dir, HPARAMS)
        if not self._has_session:
            writer.file_writer.add_summary(session_start(dict(flatten(self._hparams)), time.time()), 0)
            if metrics is None and self._default_hp_metric:
                metrics = {"hp_metric": -1.0}
        elif path.exists() and path.read_text(encoding="utf-8") != content:
            warn("tensorboard-hparams", f"TensorBoard shows the first hyper-parameters of a run; the newest are in {path}")
        for name, value in (metrics or {}).items():
            writer.add_scalar(self._tag(name), number(value), step or 0)
        self._has_session = True
        path.write_text(content, encoding="utf-8")

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.json``: the trainer's options and the plugins in effect."""
        self._open()
        self._run = config.get("run")
        Path(self.log_dir, CONFIG).write_text(f"{json.dumps(config, indent=2, default=text)}\n", encoding="utf-8")

    def log_graph(self, module: Module) -> None:
        """Write the graph of ``module``, once per run, where the logger's ``log_graph`` is set.

        The module runs on its ``example_input_array``, in evaluation mode, as ``torch.jit.trace`` needs it.
        """
        if not self._log_graph or self._has_graph or self._resumed.get("graph"):
            return
        if module.example_input_array is None:
            warn(
                "tensorboard-no-graph",
                f"log_graph=True, and {type(module).__name__} has no example_input_array: no graph is written. "
                "Set self.example_input_array in its __init__",
            )
            return
        writer = self._open()
        positional, named = example_arguments(module)
        with ready_to_export(module), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is", DeprecationWarning)  # there is no other way yet
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
            subject = Named(module, list(named)) if named else module
            writer.add_graph(subject, (*positional, *named.values()))
        self._has_graph = True

    # ---- What modules and callbacks send. On ranks other than 0, these do nothing

    def log_image(self, tag: str, image: Any, step: int | None = None, dataformats: str = "CHW") -> None:
        """Keep an image. Waits for its device.

        Args:
            tag: Its name.
            image: Tensor or array as ``dataformats`` says: 0 to 1 as floating-point numbers, 0 to 255 as ``uint8``.
            step: Position on the step axis; ``None``: that of the latest row.
            dataformats: ``"CHW"``, ``"HWC"``, ``"HW"``, or ``"NCHW"`` for a grid of several.
        """
        many = "N" in dataformats
        add = self.experiment.add_images if many else self.experiment.add_image
        add(tag, image, self._at(step), dataformats=dataformats)

    def log_figure(self, tag: str, figure: Any, step: int | None = None, close: bool = True) -> None:
        """Keep a figure of matplotlib as an image, and ``close`` it. ``step`` as in :meth:`log_image`."""
        self.experiment.add_figure(tag, figure, self._at(step), close)

    def log_audio(self, tag: str, sound: Any, sample_rate: int = 44100, step: int | None = None) -> None:
        """Keep a sound: [1, L] or [L] with values from -1 to 1, ``sample_rate`` in Hz. ``step`` as in :meth:`log_image`."""
        self.experiment.add_audio(tag, sound, self._at(step), sample_rate)

    def log_text(self, tag: str, content: str, step: int | None = None) -> None:
        """Keep a text, which TensorBoard shows as Markdown. ``step`` as in :meth:`log_image`."""
        self.experiment.add_text(tag, content, self._at(step))

    def log_histogram(self, tag: str, values: Any, step: int | None = None) -> None:
        """Keep the distribution of a tensor or array. Waits for its device; ``step`` as in :meth:`log_image`."""
        self.experiment.add_histogram(tag, values, self._at(step))

    def _at(self, step: int | None) -> int:
        return self.latest_step if step is None else step

    # ---- Ends

    def save(self) -> None:
        """Write everything, and make it survive a power cut."""
        if self._writer is not None:
            self._writer.flush()
            self._writer.event_file.sync()

    def finalize(self, status: Status) -> None:
        """The run ended: write what is left, and for the HPARAMS page how it ended. A later run adds to the same folder."""
        writer = self._writer
        if writer is None:
            return
        event_file = writer.event_file
        try:
            size = event_file.sync()
            if self._has_session:
                writer.file_writer.add_summary(session_end(status, time.time()), 0)
                self._end = (event_file.path, size)
            writer.close()
        finally:
            event_file.close()  # where the disk is full, what is left waits for a later run
        self._last_step, self._writer = max(self._last_step, event_file.last_step), None

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file: another process opens its own."""
        return {**self.__dict__, "_writer": None}

    # ---- Resume

    def state_dict(self) -> dict[str, Any]:
        """Where the record of this run ends: the event files and their sizes in bytes. Writes everything first."""
        if not self._folder_is_ours:
            return dict(self._resumed)
        self.save()
        written = -1 if self._writer is None else self._writer.event_file.last_step
        files = sizes(Path(self.event_dir))
        if self._end is not None:
            files[self._end[0].name] = self._end[1]  # a run that continues has not ended
        return {
            "name": self._name,
            "version": self.version,
            "run": self._run,
            "files": files,
            "last_step": max(self._last_step, written),
            "step": self.latest_step,
            "session": self._has_session,
            "graph": self._has_graph,
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
        self.finalize("interrupted")
        self._folder_is_ours, self._end, self._resumed = False, None, {}
        self._has_session = self._has_graph = False
        self.latest_step, self._last_step = 0, -1
        if problem := self._problem(state_dict, self._folder(version)):
            self._version = self._given
            warn(
                "tensorboard-moved",
                f"the checkpoint continues the event files in {self._folder(version)}, {problem}; they go on "
                f"in {self.log_dir}, without the earlier rows. To continue them, give the logger the save_dir and name it had",
            )
        else:
            numbers = {name: int(state_dict[name]) for name in ("step", "last_step")}
            files = {str(name): max(0, int(size)) for name, size in state_dict["files"].items()}
            self._version, self._resumed = version, {**state_dict, **numbers, "files": files}
            self._run, self.latest_step = state_dict.get("run"), numbers["step"]

    def _problem(self, state: Mapping[str, Any], folder: Path) -> str | None:
        """Why the folder is not the one of the checkpoint."""
        if not folder.is_dir():
            return "which does not exist"
        if state.get("name") != self._name:
            return f"which is an experiment of another name than {state.get('name')!r}"
        found, saved = run_in(folder / CONFIG), state.get("run")
        return f"which holds another run ({found})" if found is not None and found != saved else None

    # ---- Files

    def _open(self) -> Writer:
        if self._writer is None:
            self._make_folder()
            purge_step = self._rewind()
            self._writer = Writer(self.event_dir, purge_step, self._max_queue, self._flush_secs, self._suffix)
            weakref.finalize(self, close_quietly, self._writer)  # also at the exit of the process
        return self._writer

    def _make_folder(self) -> None:
        if self._given is not None or self._resumed or self._folder_is_ours:
            self._folder(self.version).mkdir(parents=True, exist_ok=True)
        while not self._folder_is_ours and not self._resumed and self._given is None:
            try:
                self._folder(self.version).mkdir(parents=True)
            except FileExistsError:  # another process took the number after it was chosen here
                self._version = self._next_version()
            else:
                break
        self._folder_is_ours = True

    def _rewind(self) -> int | None:
        """Take back what the record has beyond its state; the step from which a running TensorBoard must forget too.

        The first of a folder is 0: TensorBoard counts no start but the second as one that takes something back.
        """
        if self._end is not None:
            cut(*self._end)  # TensorBoard takes the first that it finds, and the run goes on
            self._end = None
        state, self._resumed = self._resumed, {}
        if not state:
            return None if sizes(Path(self.event_dir)) else 0
        if missing := rewind(Path(self.event_dir), state["files"]):
            warn("tensorboard-missing", f"rows of this run are gone: {', '.join(missing)} in {self.event_dir}")
        self._last_step = state["last_step"]
        self._has_session, self._has_graph = state["session"], state["graph"]
        return int(self._last_step) + 1


class Named(torch.nn.Module):
    """A module whose ``forward`` takes by position what it otherwise takes by name: traces need that."""

    def __init__(self, module: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *values: Any) -> Any:
        """Call the module."""
        return self.module(**dict(zip(self.names, values, strict=True)))


def close_quietly(writer: Writer) -> None:
    """Close what nobody will use any more: rows that were logged by hand after the end of a run."""
    if writer.file_writer is not None and writer.pid == os.getpid():  # else it was closed, or belongs to the parent
        with contextlib.suppress(OSError):  # nobody is left to hear of it
            writer.close()


def scalars(metrics: Mapping[str, Any], outer: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values; those of mappings inside under names joined by ``/``.

    >>> dict(scalars({"acc": 0.5, "loss": {"train": 1.0, "val": 2.0}}))
    {'acc': 0.5, 'loss/train': 1.0, 'loss/val': 2.0}
    """
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{outer}{name}/")
        else:
            yield f"{outer}{name}", value


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


def check_arguments(save_dir: str | os.PathLike[str], version: Any, max_queue: Any, flush_secs: Any) -> None:
    """Raise :class:`ConfigurationError` where an argument of :class:`TensorBoardLogger` cannot work."""
    if "://" in os.fspath(save_dir):
        raise ConfigurationError(
            f"TensorBoardLogger cannot write to save_dir={os.fspath(save_dir)!r}: event files need a local disk. Give it a "
            "local folder, as in Trainer(logger=TensorBoardLogger('logs')), and copy that folder when the run is over"
        )
    is_number = isinstance(version, int) and not isinstance(version, bool) and version >= 0
    if not (version is None or is_number or (isinstance(version, str) and version)):
        raise ConfigurationError(f"version={version!r} is not allowed; allowed: a number from 0, the name of a folder, or None")
    if not isinstance(max_queue, int) or max_queue < 1:
        raise ConfigurationError(f"max_queue={max_queue!r} is not allowed; allowed: a whole number from 1")
    if not isinstance(flush_secs, (int, float)) or flush_secs < 0:
        raise ConfigurationError(f"flush_secs={flush_secs!r} is not allowed; allowed: seconds from 0")
