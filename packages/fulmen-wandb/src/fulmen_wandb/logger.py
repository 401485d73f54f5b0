"""Runs in Weights & Biases. Its own process sends everything, so that no step waits for a server."""

from __future__ import annotations

import inspect
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

from fulmen import Checkpoint, ConfigurationError, Logger
from fulmen.contracts.logger import Status, named_values
from fulmen.errors import did_you_mean, listing, warn
from fulmen_wandb.values import FORBIDDEN, new_id, number, plain

if TYPE_CHECKING:
    from torch import nn

    from fulmen import Callback

STEP = "trainer/global_step"
EXIT_CODES = {"success": 0, "failed": 1, "interrupted": 255}  # 255: killed
_OURS: WeakSet[Any] = WeakSet()  # runs that loggers of this process began


class WandbLogger(Logger):
    """Writes metrics, configuration, media and checkpoints to a run, and how the run ended.

    Nothing is created before something is logged. Rows have an axis of their own, ``trainer/global_step``, and all charts
    use it: Weights & Biases drops no row because of its own step counter.

    Where the server cannot be reached when the training starts, or there is no API key, that is one warning, and the run is
    kept on the disk, as with ``offline``; ``wandb sync`` sends it later. A server that goes away later costs nothing
    until the run ends; see ``timeout``.

    A training that resumes continues its run, whose id is in the checkpoint; offline, that is a second folder for the same
    run. Rows that were logged after the checkpoint stay: they cannot be taken back.

    Args:
        name: The run's name; ``None``: the server makes one up, or ``WANDB_NAME``.
        save_dir: The local folder of this and other runs: checkpoints, and the folder ``wandb``; ``None``: ``WANDB_DIR``,
            else the current one.
        version: The same as ``id``.
        offline: Keep the run on the disk only.
        dir: The same as ``save_dir``, which wins.
        id: The run to continue, or the id of a new one; ``None``: ``WANDB_RUN_ID``, else a new one.
        project: ``None``: ``WANDB_PROJECT``, else ``"fulmen_logs"``.
        log_model: Keep checkpoints as artifacts: ``True``: the best and the last, when the training ended normally;
            ``"all"``: each one when it was saved, which copies it; ``False``: none. Aliases are ``latest`` and ``best``.
        experiment: A run to write to. It is not finished by this logger. ``None``: one that the program has begun with
            ``wandb.init()`` is used, with a warning; else a new one.
        prefix: Put before the name of each metric, with a ``-``; not before ``epoch``.
        checkpoint_name: The name of the artifact; ``None``: ``model-`` and the id.
        resume: ``"allow"``: continue a run with this id where there is one; ``"must"``; ``"never"``; ``"auto"``.
            After a checkpoint was loaded that continues the run, ``"never"`` is ``"allow"``.
        timeout: Seconds that the end of a run waits until everything is sent, and, at most 90, its start for the server.
        **kwargs: Further arguments of ``wandb.init``: ``entity``, ``tags``, ``group``, ``notes``, ``job_type``,
            ``settings``, ...

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] | None = None,
        version: str | None = None,
        offline: bool = False,
        dir: str | os.PathLike[str] | None = None,
        id: str | None = None,
        project: str | None = None,
        log_model: bool | Literal["all"] = False,
        experiment: Any = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        resume: Literal["allow", "must", "never", "auto"] | None = "allow",
        timeout: float = 300.0,
        **kwargs: Any,
    ) -> None:
        given = version if id is None else id
        check_arguments(version, id, log_model, resume, timeout)
        check_further(kwargs, offline)
        folder = save_dir if save_dir is not None else dir
        self._save_dir = os.fspath(folder) if folder is not None else os.environ.get("WANDB_DIR") or "."
        self._given_id = given
        if experiment is not None:
            given, project = experiment.id, experiment.project
        self._id = given or os.environ.get("WANDB_RUN_ID") or new_id()
        self._project = project or os.environ.get("WANDB_PROJECT") or "fulmen_logs"
        self._run_name, self._prefix, self._checkpoint_name = name, prefix, checkpoint_name
        self._offline, self._log_model, self._resume, self._timeout = offline, log_model, resume, timeout
        self._kwargs = kwargs
        self._experiment = experiment  # that of the program
        self._run: Any = None  # from the first thing that is logged until the run ends
        self._was_begun = False  # here, or in the run of a checkpoint
        self._unreachable = False
        self._rows = 0  # that the run has: of wandb's own step, which counts them
        self._savers: list[Checkpoint] = []
        self._watched: list[tuple[nn.Module, dict[str, Any]]] = []

    # ---- Where it is

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """The id of the run."""
        return self._id

    @property
    def save_dir(self) -> str:
        """The local folder of all runs."""
        return self._save_dir

    @property
    def log_dir(self) -> str:
        """The local folder of this run's checkpoints. It need not exist yet."""
        return os.path.join(self._save_dir, self._project, self._id)

    @property
    def experiment(self) -> Any:
        """The ``wandb.Run``, which is begun where there is none. On ranks other than 0 it does nothing."""
        return self._open()

    # ---- What the trainer sends

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep one row; see :meth:`fulmen.Logger.log_metrics`."""
        values = {self._key(name): number(value) for name, value in metrics.items()}
        self._open().log({**values, STEP: self.step_of_row(step)})

    def _key(self, name: str) -> str:
        return f"{self._prefix}-{name}" if self._prefix and name != "epoch" else name

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace) -> None:
        """Keep hyper-parameters in the run's configuration, where later values replace earlier ones."""
        self._open().config.update(plain(named_values(params)), allow_val_change=True)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Keep the trainer's options and plugins in the run's configuration, under ``fulmen``."""
        self._open().config.update({"fulmen": plain(config)}, allow_val_change=True)

    def after_save_checkpoint(self, callback: Callback, path: str) -> None:
        """Keep it as an artifact, or remember whom to ask at the end; see ``log_model``."""
        if not isinstance(callback, Checkpoint):
            return
        if self._log_model == "all":
            best = ["best"] if callback.best_model_path == path else []
            self._log_checkpoint(path, ["latest", *best])
        elif self._log_model and callback not in self._savers:
            self._savers.append(callback)

    def _log_checkpoint(self, path: str, aliases: list[str]) -> None:
        import wandb

        artifact = wandb.Artifact(
            self._checkpoint_name or f"model-{self._id}", type="model", metadata={"file": Path(path).name}
        )
        if "://" in path:
            artifact.add_reference(path, checksum=False)
        elif os.path.isdir(path):
            artifact.add_dir(path)
        else:
            artifact.add_file(path, name="model.ckpt")  # a copy: the file may be replaced before it was sent
        self._open().log_artifact(artifact, aliases=aliases)

    # ---- What modules and callbacks send. On ranks other than 0, these do nothing

    def watch(self, model: nn.Module, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = False) -> None:
        """Keep histograms of a model from the first row of a run on. wandb takes them, which waits for the device.

        Args:
            model: The module, or a part of it. Parameters are taken where the model itself is called: watch what
                ``training_step`` calls.
            log: ``"gradients"``, ``"parameters"``, ``"all"``, or ``None``.
            log_freq: Every so many batches.
            log_graph: Also the structure of the model.
        """
        if log not in ("gradients", "parameters", "all", None):
            raise ConfigurationError(f"log={log!r} is not allowed; allowed: 'gradients', 'parameters', 'all', None")
        options = {"log": log, "log_freq": log_freq, "log_graph": log_graph, "idx": len(self._watched)}
        self._watched.append((model, options))
        if self._run is not None:
            self._run.watch(model, **options)

    def unwatch(self, model: nn.Module) -> None:
        """Stop what :meth:`watch` began."""
        if self._run is not None:
            self._run.unwatch(model)
        self._watched = [each for each in self._watched if each[0] is not model]

    def log_image(self, key: str, images: Sequence[Any], step: int | None = None, **each: Sequence[Any] | None) -> None:
        """Keep images.

        Args:
            key: Their name.
            images: Tensors, arrays, PIL images, figures or paths.
            step: ``None`` is that of the latest row.
            **each: ``caption``, ``masks``, ``boxes`` and other arguments of ``wandb.Image``, with one value for each image.
        """
        self._log_each("Image", key, images, step, each)

    def log_audio(self, key: str, audios: Sequence[Any], step: int | None = None, **each: Sequence[Any] | None) -> None:
        """Keep sounds: arrays or paths. As :meth:`log_image`, with the arguments of ``wandb.Audio``: ``sample_rate``, ..."""
        self._log_each("Audio", key, audios, step, each)

    def log_video(self, key: str, videos: Sequence[Any], step: int | None = None, **each: Sequence[Any] | None) -> None:
        """Keep videos: arrays or paths. As :meth:`log_image`, with the arguments of ``wandb.Video``: ``fps``, ..."""
        self._log_each("Video", key, videos, step, each)

    def _log_each(
        self, kind: str, key: str, values: Sequence[Any], step: int | None, each: Mapping[str, Sequence[Any] | None]
    ) -> None:
        import wandb

        given = {name: list(items) for name, items in each.items() if items is not None}
        for name, items in given.items():
            if isinstance(each[name], str) or len(items) != len(values):
                raise ConfigurationError(f"{name}={each[name]!r} must be a list with one value for each of {len(values)}")
        make = getattr(wandb, kind)
        made = [make(value, **{name: items[at] for name, items in given.items()}) for at, value in enumerate(values)]
        self.log_media(key, made, step)

    def log_table(
        self, key: str, columns: Sequence[str] | None = None, data: Sequence[Sequence[Any]] | None = None,
        dataframe: Any = None, step: int | None = None,
    ) -> None:  # fmt: skip
        """Keep a table: ``columns`` and rows of ``data``, or a ``dataframe``."""
        import wandb

        table = (
            wandb.Table(dataframe=dataframe) if dataframe is not None else wandb.Table(list(columns or ()), list(data or ()))
        )
        self.log_media(key, table, step)

    log_text = log_table  # PyTorch Lightning's name for a table of texts

    def log_media(self, key: str, value: Any, step: int | None = None) -> None:
        """Keep anything that ``wandb.Run.log`` takes, such as ``wandb.Audio``, on the axis of the metrics."""
        self.experiment.log({self._key(key): value, STEP: self.latest_step if step is None else step})

    def use_artifact(self, artifact: str, artifact_type: str | None = None) -> Any:
        """Note that this run uses an artifact, and return it. Waits for the server."""
        return self.experiment.use_artifact(artifact, type=artifact_type)

    # ---- The run

    def _open(self) -> Any:
        if self._run is None:
            self._run = self._experiment if self._experiment is not None else self._begin()
            self._was_begun = True
            self._run.define_metric(STEP)
            self._run.define_metric("*", step_metric=STEP, step_sync=True)
            for model, options in self._watched:
                self._run.watch(model, **options)
        return self._run

    def _run_of_program(self) -> Any:
        """The run that the program has begun with ``wandb.init()``, where it can be ours."""
        current = sys.modules["wandb"].run if "wandb" in sys.modules else None
        return current if current is not None and current not in _OURS and self._given_id in (None, current.id) else None

    def _begin(self) -> Any:
        if (current := self._run_of_program()) is not None:
            warn("wandb-run", f"the program has begun the run {current.id}, which is used; WandbLogger(experiment=...) says so")
            self._experiment, self._id, self._project = current, current.id, current.project
            return current
        if self._unreachable:
            return self._begin_on_disk()
        try:
            return self._init(self._id, self._offline)
        except Exception as error:
            if self._offline or self.required:
                raise
            self._unreachable = True
            run = self._begin_on_disk()
            warn(
                "wandb-offline",
                f"Weights & Biases cannot be used ({type(error).__name__}: {first_line(error)}). The training goes on, and "
                f"everything is kept on the disk; send it later: wandb sync --id {self._id} {Path(run.dir).parent}",
            )
            return run

    def _begin_on_disk(self) -> Any:
        return self._init(f"{self._id}-disk", True)  # wandb's own process may hold an id to be in use whose start failed

    def _init(self, run_id: str, offline: bool) -> Any:
        import wandb

        folder = os.path.abspath(self._save_dir)  # wandb's own process may have started elsewhere
        os.makedirs(folder, exist_ok=True)  # else wandb takes another
        kwargs = {"name": self._run_name, **self._kwargs}
        kwargs["settings"] = self._settings(kwargs.get("settings"))
        if offline:
            kwargs["mode"] = "offline"
        elif not {"resume_from", "fork_from"} & kwargs.keys():
            kwargs["resume"] = "allow" if self._was_begun and self._resume in (None, "never") else self._resume
        if wandb.run is not None:
            kwargs.setdefault("reinit", "create_new")
        run = wandb.init(project=self._project, id=run_id, dir=folder, **kwargs)
        _OURS.add(run)
        if offline and self._rows:  # nobody else tells this folder how many there are in earlier ones
            run.log({}, step=self._rows, commit=False)
        return run

    def _settings(self, given: Any) -> Any:
        """The settings of the user, and the time limits where they are silent."""
        import wandb

        limits = {"init_timeout": min(self._timeout, 90.0), "finish_timeout": self._timeout, "finish_timeout_raises": True}
        if given is None or isinstance(given, Mapping):
            return wandb.Settings(**{**limits, **(given or {})})
        settings = given.model_copy()
        for name, value in limits.items():
            if name not in given.model_fields_set:
                setattr(settings, name, value)
        return settings

    # ---- Ends

    def finalize(self, status: Status) -> None:
        """Keep checkpoints where ``log_model`` is ``True``, and end the run with its status. A later run continues it."""
        if self._run is None:
            return
        try:
            if status == "success":
                self._log_best_and_last()
        finally:
            self._count()
            run, self._run, self._savers = self._run, None, []
            for model, _ in self._watched:
                run.unwatch(model)  # else its hooks would write to a run that has ended
            if run is not self._experiment:
                self._finish(run, EXIT_CODES[status])

    def _log_best_and_last(self) -> None:
        """Those of the first callback that knows a best one, else of the first that saved."""
        if not self._savers:
            return
        saver = next((each for each in self._savers if each.best_model_path), self._savers[0])
        best, last = saver.best_model_path, saver.last_model_path
        if best and best != last:
            self._log_checkpoint(best, ["best"])
        if last:
            self._log_checkpoint(last, ["latest", *(["best"] if best == last else [])])

    def _finish(self, run: Any, exit_code: int) -> None:
        folder = Path(run.dir).parent if run.dir else None
        try:
            run.finish(exit_code)
        except TimeoutError:
            if self.required:
                raise
            warn(
                "wandb-unsent",
                f"not everything reached Weights & Biases within timeout={self._timeout:g} seconds; send it later: "
                f"wandb sync {folder}",
            )

    def _count(self) -> int:
        """How many rows the run has. Asks wandb's own process, and takes what was known where that does not answer."""
        if self._run is not None:
            try:
                self._rows = int(self._run.step)
            except Exception as error:  # of whatever kind: the id of the run has to be kept, and the run to be ended
                if self.required:
                    raise
                warn(
                    "wandb-rows",
                    f"wandb does not say how many rows a run has ({type(error).__name__}: {error}); {self._rows} are assumed, "
                    "and rows of a training that goes on may take the place of others",
                )
        return self._rows

    def __getstate__(self) -> dict[str, Any]:
        """Without the run, which another process continues, but for one of the program: wandb lets both write to that.

        Models are watched where that was asked for.
        """
        run = self._experiment or self._run_of_program()
        state = {**self.__dict__, "_run": None, "_experiment": run, "_watched": [], "_savers": []}
        return state if run is None else {**state, "_id": run.id, "_project": run.project}

    # ---- Resume

    def state_dict(self) -> dict[str, Any]:
        """Which run it is."""
        if not self._was_begun:
            return {}
        return {"id": self._id, "project": self._project, "step": self.latest_step, "rows": self._count()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a run, unless this logger was given another id, project or experiment. Writes nothing."""
        found = state_dict.get("id")
        if found is None or self._experiment is not None or self._given_id not in (None, found):
            return
        if not isinstance(found, str) or not found.strip() or FORBIDDEN & set(found):
            raise ValueError(f"{found!r} cannot be the id of a run")
        if state_dict.get("project") == self._project:
            self._id, self._was_begun, self.latest_step = str(found), True, int(state_dict["step"])
            self._rows = int(state_dict.get("rows", 0))


def first_line(error: Exception) -> str:
    """The first line of what it says."""
    return (str(error).splitlines() or [""])[0]


def check_arguments(version: Any, id: Any, log_model: Any, resume: Any, timeout: Any) -> None:
    """Raise :class:`ConfigurationError` where an argument of :class:`WandbLogger` cannot work."""
    if None not in (version, id) and version != id:
        raise ConfigurationError(f"version={version!r} and id={id!r} are the same option: give one of them")
    for key, value in (("version", version), ("id", id)):
        if value is not None and (not isinstance(value, str) or not value.strip() or FORBIDDEN & set(value)):
            raise ConfigurationError(
                f"{key}={value!r} is not allowed; allowed: text without {' '.join(sorted(FORBIDDEN))}, or None"
            )
    if log_model not in (True, False, "all"):
        raise ConfigurationError(f"log_model={log_model!r} is not allowed; allowed: True, False, 'all'")
    if resume not in ("allow", "must", "never", "auto", None):
        raise ConfigurationError(f"resume={resume!r} is not allowed; allowed: 'allow', 'must', 'never', 'auto', None")
    if not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ConfigurationError(f"timeout={timeout!r} is not allowed; allowed: seconds above 0")


def check_further(kwargs: Mapping[str, Any], offline: bool) -> None:
    """Raise :class:`ConfigurationError` where ``wandb.init`` has no such argument, or one contradicts ``offline``."""
    if not kwargs:
        return
    import wandb

    own = {"dir", "id", "name", "project", "resume"}
    allowed = [name for name in inspect.signature(wandb.init).parameters if name not in own]
    for name in kwargs:
        if name not in allowed:
            ours = [each for each in inspect.signature(WandbLogger).parameters if each != "kwargs"]
            raise ConfigurationError(
                f"WandbLogger has no argument {name!r}{did_you_mean(name, [*ours, *allowed])}; it has: {listing(ours)}; and "
                f"those of wandb.init: {listing(allowed)}"
            )
    if offline and kwargs.get("mode") not in (None, "offline"):
        raise ConfigurationError(f"offline=True and mode={kwargs['mode']!r} contradict each other: give one of them")
