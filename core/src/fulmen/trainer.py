"""The trainer: typed options -> parts -> a run -> the loop."""

from __future__ import annotations

import os
import pathlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any, Literal, NoReturn

import torch

from fulmen import evaluation, loop
from fulmen.batches import move_to_device
from fulmen.checkpoint import collect, save
from fulmen.contracts.accelerator import Accelerator
from fulmen.contracts.callback import Callback
from fulmen.contracts.data_hooks import Stage
from fulmen.contracts.datamodule import DataModule
from fulmen.contracts.logger import Logger
from fulmen.contracts.module import Module
from fulmen.contracts.precision import Precision
from fulmen.contracts.profiler import Profiler
from fulmen.contracts.strategy import Strategy
from fulmen.data import loaders_of
from fulmen.errors import ConfigurationError, ModuleError, did_you_mean
from fulmen.handover import earlier_run, ending_of, leave_records, predictions_of_all, take_over
from fulmen.lifecycle import running
from fulmen.metrics import Metrics
from fulmen.options import Duration, Limit, Options
from fulmen.parts import make_callbacks, make_loggers, split_plugins, with_module_callbacks
from fulmen.plugins import PluginSet
from fulmen.progress import Progress
from fulmen.reporting import table
from fulmen.runtime import Devices, Runtime
from fulmen.state import Run
from fulmen.storage import plain_data_only
from fulmen.trainer_view import TrainerView

Path = str | os.PathLike[str]


class Trainer(TrainerView):
    """Trains, validates, tests and predicts with a :class:`~fulmen.Module`.

    Parts are given by name (``fulmen plugins`` lists them), as ``"name?key=value"``, as ``{"name": ..., "key": ...}`` or as
    instances. All other arguments are plain options; :class:`~fulmen.options.Options` explains each of them.

    Args:
        accelerator: The kind of device; ``"auto"`` takes the best that is available.
        strategy: How processes share the work; ``"auto"``: one process for one device, else ``"ddp"``.
        devices: ``"auto"``, a count, or indices. ``None`` is ``"auto"`` in all three.
        num_nodes: Machines that take part.
        precision: Number formats, such as ``"bf16-mixed"``; ``None``: 32 bits.
        logger: One logger or several; ``None`` or ``True``: CSV files; ``False``: none.
        callbacks: One callback or several.
        profiler: Measures where time is spent.
        plugins: Plugins to enable for this trainer, by name or as modules; a Precision; a ClusterEnvironment.
        **unknown: Nothing: an error that says what was meant.

    Raises:
        ConfigurationError: An option has a wrong value, or two contradict each other.
        PluginError: A name is not provided by anything installed.
    """

    def __init__(
        self,
        *,
        accelerator: str | Mapping[str, Any] | Accelerator | None = "auto",
        strategy: str | Mapping[str, Any] | Strategy | None = "auto",
        devices: Devices | None = "auto",
        num_nodes: int = 1,
        precision: str | int | Mapping[str, Any] | Precision | None = None,
        logger: bool | str | Mapping[str, Any] | Logger | Iterable[Any] | None = None,
        callbacks: str | Mapping[str, Any] | Callback | Sequence[Any] | None = None,
        profiler: str | Mapping[str, Any] | Profiler | None = None,
        plugins: Any = None,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: Duration | float | None = None,
        limit_train_batches: Limit | None = 1.0,
        limit_val_batches: Limit | None = 1.0,
        limit_test_batches: Limit | None = 1.0,
        limit_predict_batches: Limit | None = 1.0,
        overfit_batches: Limit = 0.0,
        fast_dev_run: bool | int = False,
        val_check_interval: Limit | Duration | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = 2,
        log_every_n_steps: int | None = 50,
        accumulate_grad_batches: int | Mapping[int, int] = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] | None = "norm",
        deterministic: bool | Literal["warn"] | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: Path | None = None,
        enable_checkpointing: bool | None = True,
        enable_progress_bar: bool | None = True,
        enable_model_summary: bool | None = True,
        detect_anomaly: bool = False,
        **unknown: NoReturn,
    ) -> None:
        given = locals()
        check_names(unknown)
        self.options = Options(**{field.name: given[field.name] for field in fields(Options)})
        rest, precision, environment = split_plugins(plugins, precision)
        self.plugins = PluginSet.discover(rest)
        self.runtime = Runtime(
            accelerator, strategy, devices, num_nodes, precision, environment=environment, plugins=self.plugins
        )
        self.profiler = None if profiler is None else self.plugins.build("profiler", profiler)
        self._loggers = make_loggers(logger, self.options, self.plugins)
        self._given_callbacks = make_callbacks(callbacks, self.options, self.plugins)
        self._run = self._fit_run = None
        self._earlier: tuple[Progress, str] | None = None

    # ---- Stages

    def fit(
        self,
        model: Module,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train ``model``, and validate it where it has a ``validation_step``.

        Args:
            model: The module.
            train_dataloaders: Any iterable of batches, or a collection of them; ``None`` asks the data module, else ``model``.
            val_dataloaders: Likewise, for validation.
            datamodule: Gives what the other arguments do not; may be passed in place of ``train_dataloaders``.
            ckpt_path: Continue a training: a path or URL; ``"last"`` for the newest of this module; ``"best"``.
            weights_only: Has no other value than ``True``: of a file, what is not plain data is never read.

        Raises:
            ModuleError: The module or its data lack what is needed, or break their contract.
            CheckpointError: ``ckpt_path`` cannot be read, or does not fit.
        """
        plain_data_only(weights_only)
        if self.runtime.must_launch:
            self._launch("fit", model, train_dataloaders, val_dataloaders, datamodule, ckpt_path)
            return
        run = self._begin("fit", model, {"train": train_dataloaders, "validate": val_dataloaders}, datamodule)
        with running(run, ckpt_path):
            loop.fit(run)

    def validate(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        ckpt_path: Path | None = None,
        verbose: bool = True,
        datamodule: DataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Run ``validation_step`` over the validation data.

        Args:
            model: The module; ``None``: that of the latest run, with its best checkpoint where a callback keeps one.
            dataloaders: Any iterable of batches, or several; ``None`` asks the data module, else ``model``.
            ckpt_path: Weights to load before: a path or URL, ``"best"`` or ``"last"``.
            verbose: Print a table of the metrics.
            datamodule: Gives the loaders; may be passed in place of ``dataloaders``.
            weights_only: As in :meth:`fit`.

        Returns:
            The metrics, one mapping per loader.
        """
        plain_data_only(weights_only)
        return self._evaluate("validate", model, dataloaders, ckpt_path, verbose, datamodule)

    def test(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        ckpt_path: Path | None = None,
        verbose: bool = True,
        datamodule: DataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Run ``test_step`` over the test data. Arguments and result as in :meth:`validate`."""
        plain_data_only(weights_only)
        return self._evaluate("test", model, dataloaders, ckpt_path, verbose, datamodule)

    def predict(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: Path | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Run ``predict_step`` over the prediction data.

        Args:
            model: The module; ``None``: that of the latest run, with its best checkpoint where a callback keeps one.
            dataloaders: Any iterable of batches, or several; ``None`` asks the data module, else ``model``.
            datamodule: Gives the loaders; may be passed in place of ``dataloaders``.
            return_predictions: ``False`` keeps nothing, for callbacks that write predictions. With several ranks each gets
                those of all, in the order of the data and on the host.
            ckpt_path: Weights to load before: a path or URL, ``"best"`` or ``"last"``.
            weights_only: As in :meth:`fit`.

        Returns:
            What ``predict_step`` returned, one entry per batch; with several loaders, one such list for each. ``None``
            where predictions are not returned.
        """
        plain_data_only(weights_only)
        module, path = self._module_and_path(model, ckpt_path)
        if self.runtime.must_launch:
            return self._launch("predict", module, dataloaders, datamodule, return_predictions, path)
        keep = return_predictions is not False
        run = self._begin("predict", module, {"predict": dataloaders}, datamodule)
        with running(run, path):
            outputs = evaluation.evaluate(run, "predict", keep_outputs=keep)[1]
            outputs = predictions_of_all(run, outputs) if keep else []
        if not keep:
            return None
        return outputs[0] if len(outputs) == 1 else outputs

    def _evaluate(
        self, stage: Literal["validate", "test"], model: Any, dataloaders: Any, ckpt_path: Any, verbose: bool, datamodule: Any
    ) -> list[dict[str, float]]:
        module, path = self._module_and_path(model, ckpt_path)
        if self.runtime.must_launch:
            return self._launch(stage, module, dataloaders, path, verbose, datamodule)  # type: ignore[no-any-return]
        run = self._begin(stage, module, {stage: dataloaders}, datamodule)
        results: list[dict[str, float]] = []
        with running(run, path):
            if loaders_of(run, stage).total:
                results = evaluation.evaluate(run, stage)[0]
        if verbose and any(results):
            self.print(table(results, stage))
        return results

    def save_checkpoint(self, filepath: Path, weights_only: bool = False) -> None:
        """Write a checkpoint of the current or latest run; every rank must call this.

        Args:
            filepath: A path or URL; folders are made.
            weights_only: Only what is needed to use the module, not to continue its training.

        Raises:
            CheckpointError: It cannot be written, or holds more than plain data.
        """
        save(self._trained_run(), filepath, weights_only)

    def collect_checkpoint(self, weights_only: bool = False, alone: bool = False) -> dict[str, Any]:
        """What :meth:`save_checkpoint` would write now; every rank must call this, unless ``alone``.

        Tensors are not copied: copy what is used later. :func:`fulmen.write_checkpoint` writes it.

        Args:
            weights_only: Only what is needed to use the module, not to continue its training.
            alone: Ask nothing of other ranks, which may not come this far, as in ``on_exception``. What they have of their
                own (random numbers, sums of the epoch's metrics, open gradients) is not in it, and a resume from it says so.
        """
        return collect(self._trained_run(), weights_only, alone)

    def export(self, format: str, path: Path, input_sample: Any = None, *, model: Module | None = None, **options: Any) -> Any:
        """:meth:`fulmen.Module.export` for the module of the latest run, on rank 0; other ranks return at once.

        Args:
            format: The name of an exporter, such as ``"onnx"``.
            path: The file to write.
            input_sample: Arguments of ``forward``; ``None`` takes ``example_input_array``.
            model: Another module.
            **options: Of the format.

        Returns:
            The path of the file, on every rank.
        """
        module = model or self._current().module
        return module.export(format, path, input_sample, **options) if self.is_global_zero else pathlib.Path(path)

    def _trained_run(self) -> Run:
        """The latest run, or the training that its module comes from."""
        run = self._current()
        trained = self._fit_run is not None and self._fit_run.module is run.module
        return self._fit_run if trained and self._fit_run else run

    def init_module(self) -> AbstractContextManager[Any]:
        """The context in which to build a module: directly on its device and in its precision."""
        return self.runtime.init_module()

    # ---- Other processes

    def _launch(self, stage: Stage, model: Any, *arguments: Any) -> Any:
        """Run a stage in the processes that the strategy starts; where this is none of them, take over how it ended."""
        earlier = None if self._run is None else earlier_run(self._run)
        leave_records(self._loggers, self.runtime.strategy.launcher)
        result, ending = self.runtime.launch(self._run_stage, os.getpid(), earlier, stage, model, *arguments)
        if ending is not None:
            datamodule = next((each for each in arguments if isinstance(each, DataModule)), None)
            take_over(self._begin(stage, model, {stage: None}, datamodule), ending)
        return result

    def _run_stage(self, caller: int, earlier: Any, stage: Stage, *arguments: Any) -> tuple[Any, Any]:
        """Run a stage in this process; its result and, where the caller is another process, the end of the run."""
        elsewhere = os.getpid() != caller
        if elsewhere:
            self._earlier = earlier
        result = getattr(self, stage)(*arguments)
        return (move_to_device(result, torch.device("cpu")), ending_of(self._current())) if elsewhere else (result, None)

    def __getstate__(self) -> dict[str, Any]:
        """The trainer as another process gets it: without the runs that it had."""
        return {**self.__dict__, "_run": None, "_fit_run": None}

    # ---- A new run

    def _begin(self, stage: Stage, model: Any, given: dict[str, Any], datamodule: DataModule | None) -> Run:
        module, first = check_module(model), next(iter(given))
        if isinstance(given[first], DataModule):
            if datamodule is not None:
                raise ConfigurationError(f"{stage} was given two data modules; pass one as datamodule=")
            given[first], datamodule = None, given[first]
        previous, self._run = self._run, None
        progress, run_id = self._earlier or (None, "") if previous is None else (previous.progress, previous.run_id)
        run = Run(
            trainer=self,
            stage=stage,
            options=self.options,
            runtime=self.runtime,
            module=module,
            datamodule=datamodule,
            callbacks=list(self._given_callbacks),
            loggers=self._loggers,
            profiler=self.profiler,
            progress=Progress() if progress is None or stage == "fit" else progress,
            metrics=Metrics(self._loggers, self.runtime.accelerator, self.runtime.strategy),
            given=given,
            run_id=uuid.uuid4().hex if not run_id or stage == "fit" else run_id,
        )
        module._run = self._run = run
        if datamodule is not None:
            datamodule.trainer = self
        known = previous is not None and previous.module is module
        run.callbacks = previous.callbacks if previous and known else with_module_callbacks(run.callbacks, module)
        if stage == "fit":
            self._fit_run = run
        return run

    def _module_and_path(self, model: Module | None, ckpt_path: Any) -> tuple[Module, Any]:
        """The module to evaluate, and the checkpoint to load."""
        if model is not None:
            return model, ckpt_path
        if self._run is None:
            raise ModuleError("this trainer has no module yet: pass one, or call fit before")
        comparing = [callback for callback in self.checkpoint_callbacks if callback.compares]
        best = next((callback.best_model_path for callback in comparing if callback.best_model_path), None)
        if ckpt_path is None and best:
            self.print(f"using the best checkpoint: {best}")
        return self._run.module, ckpt_path or best


def check_module(model: Any) -> Module:
    """``model``.

    Raises:
        ModuleError: It is no :class:`~fulmen.Module`.
    """
    if isinstance(model, Module):
        return model
    if isinstance(getattr(model, "_orig_mod", None), Module):
        raise ModuleError("torch.compile wrapped the module; pass it unwrapped, and compile in place: module.compile()")
    raise ModuleError(
        f"{type(model).__name__} is no fulmen.Module; let its class derive from fulmen.Module and add training_step"
    )


def check_names(unknown: Mapping[str, Any]) -> None:
    """Refuse arguments that :class:`Trainer` does not have.

    Raises:
        ConfigurationError: There are such.
    """
    known = [
        *(field.name for field in fields(Options)),
        *(name for name in Trainer.__init__.__annotations__ if name != "return"),
    ]
    for name, value in unknown.items():
        raise ConfigurationError(f"Trainer has no argument {name}={value!r}{did_you_mean(name, known, 'argument')}")
