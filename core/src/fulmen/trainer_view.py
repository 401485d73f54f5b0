"""What a trainer tells about itself: everything that callbacks, loggers and users read, and the few things they ask for."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from math import ceil
from typing import TYPE_CHECKING, Any

import torch

from fulmen.background import BackgroundWriter
from fulmen.clock import Alarm
from fulmen.contracts.callback import Callback, Checkpoint
from fulmen.contracts.data_hooks import Stage
from fulmen.contracts.logger import Logger
from fulmen.contracts.progress import ProgressBar
from fulmen.data import another_pass, loaders_of
from fulmen.errors import ModuleError
from fulmen.parts import make_loggers
from fulmen.progress import Progress
from fulmen.rng import isolated
from fulmen.state import Phase, Run
from fulmen.trainer_names import TrainerNames

if TYPE_CHECKING:
    from fulmen.contracts.datamodule import DataModule
    from fulmen.contracts.profiler import Profiler
    from fulmen.optimizers import SchedulerConfig
    from fulmen.plugins import PluginSet

INFINITE = float("inf")


class TrainerView(TrainerNames):
    """The part of :class:`fulmen.Trainer` that reads. Before the first run, metrics are empty and counts are 0."""

    plugins: PluginSet
    """The plugins that are in effect."""
    profiler: Profiler | None
    _given_callbacks: list[Callback]
    _loggers: list[Logger]
    _fit_run: Run | None

    # ---- The run

    def _current(self) -> Run:
        if self._run is None:
            raise ModuleError("this trainer has not run yet: call fit, validate, test or predict first")
        return self._run

    @property
    def progress(self) -> Progress:
        """Where the training is."""
        return self._run.progress if self._run else Progress()

    @property
    def stage(self) -> Stage | None:
        """The method that runs, or ran last: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``."""
        return self._run.stage if self._run else None

    @property
    def phase(self) -> Phase | None:
        """What the run does now: ``"train"``, ``"sanity_check"``, ``"validate"``, ``"test"``, ``"predict"``, or ``None``."""
        return self._run.phase if self._run and self._run.active else None

    @property
    def status(self) -> str:
        """Of the latest run: ``"initializing"``, ``"running"``, ``"finished"``, ``"interrupted"`` or ``"failed"``."""
        return self._run.status if self._run else "initializing"

    @property
    def training(self) -> bool:
        """Whether the training loop is running, and no validation inside it."""
        return self.phase == "train"

    @property
    def sanity_checking(self) -> bool:
        """Whether the short validation before training is running."""
        return self.phase == "sanity_check"

    @property
    def validating(self) -> bool:
        """Whether a validation is running."""
        return self.phase == "validate"

    @property
    def testing(self) -> bool:
        """Whether a test is running."""
        return self.phase == "test"

    @property
    def predicting(self) -> bool:
        """Whether a prediction is running."""
        return self.phase == "predict"

    @property
    def evaluating(self) -> bool:
        """Whether a validation, a sanity check or a test is running."""
        return self.phase in ("validate", "sanity_check", "test")

    @property
    def interrupted(self) -> bool:
        """Whether the latest run was ended by a signal, or is about to be."""
        return self.status == "interrupted" or bool(self._run and self._run.active and self._run.stop_now)

    @property
    def run_id(self) -> str:
        """The id of the training; a resume keeps it."""
        return self._run.run_id if self._run else ""

    # ---- Position

    @property
    def current_epoch(self) -> int:
        """Completed epochs, which is the index of the running one."""
        return self.progress.epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps so far. With manual optimization, every ``step`` of every optimizer counts."""
        return self.progress.step

    @property
    def enable_validation(self) -> bool:
        """Whether the current or latest fit validates: it has the step and the data, and they are not limited to 0."""
        return bool(self._run and self._run.validates)

    @property
    def is_last_batch(self) -> bool:
        """Whether the training batch that is worked on is the last of its epoch. ``False`` where nobody knows."""
        run = self._run
        return run is not None and "train" in run.loaders and run.batch_idx + 1 >= run.loaders["train"].total

    @property
    def max_epochs(self) -> int | None:
        """Epochs at most, as given; -1 for never."""
        found = self.options.num_epochs
        return -1 if found == INFINITE else int(found)

    @property
    def min_epochs(self) -> int | None:
        """Epochs at least."""
        return self.options.min_epochs

    @property
    def max_steps(self) -> int:
        """Optimizer steps at most; -1 for never."""
        found = self.options.num_steps
        return -1 if found == INFINITE else int(found)

    @property
    def min_steps(self) -> int | None:
        """Optimizer steps at least."""
        return self.options.min_steps

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps that the whole training will make; infinity where nobody knows. For schedulers that need a length.

        Makes the training loader where that has not happened yet.
        """
        options, run = self.options, self._current()
        batches = loaders_of(run, "train").total
        if batches == INFINITE or options.num_epochs == INFINITE:
            return self._whole(options.num_steps)
        steps = sum(ceil(batches / options.accumulate_at(epoch)) for epoch in range(int(options.num_epochs)))
        return self._whole(min(steps, options.num_steps))

    # ---- Stopping

    @property
    def should_stop(self) -> bool:
        """Whether a stop was requested. Set it to request one; the training ends after the current step."""
        return bool(self._run and (self._run.stop_requested or self._run.asked))

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        run = self._current()
        if value:
            run.request_stop("trainer.should_stop was set")
        else:
            run.stop_requested = run.stop_now = False
            run.asked = 0
            run.stop_reason = None

    @property
    def stop_reason(self) -> str | None:
        """Why the training ended or is about to; ``None`` while nobody asked."""
        return self._run.stop_reason if self._run else None

    def request_stop(self, reason: str) -> None:
        """End the training after this step, once ``min_epochs`` and ``min_steps`` are reached. The first reason stays."""
        self._current().request_stop(reason)

    def every(self, seconds: float, action: Callable[[], None]) -> Alarm:
        """Call ``action()`` between two steps of this run, whenever at least ``seconds`` have passed since the last time."""
        return self._current().clock.every(seconds, action)

    @property
    def writer(self) -> BackgroundWriter:
        """Writes files of this run beside the training: one at a time, with one copy in memory."""
        return self._current().writer

    # ---- Metrics

    @property
    def callback_metrics(self) -> dict[str, torch.Tensor]:
        """The latest value of everything that was logged in this run, as tensors on their devices."""
        return self._run.metrics.callback_metrics() if self._run else {}

    def metric_age(self, name: str) -> int | None:
        """How many training batches ago the latest value of a logged metric was measured.

        0: it belongs to the weights as they are, so that a file of them may carry it; ``None``: it was never logged. Of values
        logged at each step, the latest counts as present.
        """
        now = self.progress.batches
        then = self._run.metrics.measured_at(name, now) if self._run else None
        return None if then is None else now - then

    @property
    def logged_metrics(self) -> dict[str, float]:
        """The latest value of everything that the loggers received in this run."""
        return dict(self._run.metrics.logged) if self._run else {}

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The latest values that were logged with ``prog_bar=True``. While a run goes on, those that have left the device."""
        return self._run.metrics.showing(wait=not self._run.active) if self._run else {}

    # ---- Parts

    @property
    def datamodule(self) -> DataModule | None:
        """The data module of the current or latest run."""
        return self._run.datamodule if self._run else None

    @property
    def callbacks(self) -> list[Callback]:
        """All callbacks in the order in which they run, those that the module brings included."""
        return self._run.callbacks if self._run else self._given_callbacks

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """The callbacks that write checkpoints; those that compare and know a best one first."""
        found = [callback for callback in self.callbacks if isinstance(callback, Checkpoint)]
        return sorted(found, key=lambda callback: not callback.compares)

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The first of :attr:`checkpoint_callbacks`."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[Callback]:
        """The callbacks of a class ``EarlyStopping``, which ``fulmen-early-stopping`` provides."""
        return [c for c in self.callbacks if any(cls.__name__ == "EarlyStopping" for cls in type(c).__mro__)]

    @property
    def early_stopping_callback(self) -> Callback | None:
        """The first of :attr:`early_stopping_callbacks`."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        """The progress bar."""
        return next((callback for callback in self.callbacks if isinstance(callback, ProgressBar)), None)

    @property
    def loggers(self) -> list[Logger]:
        """All loggers. Others may be set between runs, in any form that the trainer takes; the next run has them."""
        return self._loggers

    @loggers.setter
    def loggers(self, value: Any) -> None:
        if self._run is not None and self._run.active:
            raise ModuleError(f"{self.stage} is running, and its loggers cannot be replaced: set them before, or after it")
        self._loggers = make_loggers([] if value is None else value, self.options, self.plugins)

    @property
    def logger(self) -> Logger | None:
        """The first logger, or ``None``. One that is set takes the place of all :attr:`loggers`; ``None``: there is none."""
        return self._loggers[0] if self._loggers else None

    @logger.setter
    def logger(self, value: Any) -> None:
        self.loggers = value

    @property
    def log_dir(self) -> str:
        """The folder of this run, on every rank: that of the first logger that has one, else :attr:`default_root_dir`.

        In a distributed run the ranks have agreed on it when they were set up, so that afterwards each may ask alone.
        """
        if self._run is not None and self._run.log_dir is not None:
            return self._run.log_dir
        return next((logger.log_dir for logger in self._loggers if logger.log_dir), self.default_root_dir)

    @property
    def default_root_dir(self) -> str:
        """Where logs and checkpoints go."""
        return str(self.options.default_root_dir or ".")

    @property
    def fast_dev_run(self) -> bool | int:
        """Whether this trainer only tries everything once."""
        return self.options.fast_dev_run

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of the training."""
        return self._run.optimizers if self._run else []

    @property
    def lr_scheduler_configs(self) -> list[SchedulerConfig]:
        """The learning-rate schedulers, and when they advance."""
        return self._run.schedulers if self._run else []

    @property
    def accumulate_grad_batches(self) -> int:
        """Batches per optimizer step in this epoch. A value that is set holds from the next step on."""
        return self._run.accumulate if self._run else self.options.accumulate_at(0)

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, value: int) -> None:
        self._current().accumulate = value

    # ---- Data

    @property
    def train_dataloader(self) -> Any:
        """The training loader or collection of loaders in use, as it was given; ``None`` before there is one."""
        return self._loader("train")

    def another_pass(self) -> Iterator[Any]:
        """One more pass over the training data, for statistics: batches as ``training_step`` gets them, on this rank.

        The training continues afterwards as if it had not happened: neither its position in the data nor random numbers change.
        """
        with isolated():
            yield from another_pass(self._current())

    @property
    def val_dataloaders(self) -> Any:
        """The validation loaders in use."""
        return self._loader("validate")

    @property
    def test_dataloaders(self) -> Any:
        """The test loaders in use."""
        return self._loader("test")

    @property
    def predict_dataloaders(self) -> Any:
        """The prediction loaders in use."""
        return self._loader("predict")

    @property
    def num_training_batches(self) -> int | float:
        """Batches per epoch; infinity where nobody knows, 0 before there is a loader."""
        return self._whole(sum(self._counts("train")))

    @property
    def num_val_batches(self) -> list[int | float]:
        """Batches of each validation loader."""
        return self._counts("validate")

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Batches of each validation loader in the check before training."""
        steps = self.options.num_sanity_val_steps
        return self._counts("validate") if steps == -1 else [min(steps, count) for count in self._counts("validate")]

    @property
    def num_test_batches(self) -> list[int | float]:
        """Batches of each test loader."""
        return self._counts("test")

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Batches of each prediction loader."""
        return self._counts("predict")

    def _loader(self, phase: str) -> Any:
        return self._run.loaders[phase].given if self._run and phase in self._run.loaders else None

    def _counts(self, phase: str) -> list[int | float]:
        found = self._run.loaders[phase].num_batches if self._run and phase in self._run.loaders else []
        return [self._whole(count) for count in found]

    @staticmethod
    def _whole(count: float) -> int | float:
        return count if count == INFINITE else int(count)

    # ---- Processes

    @property
    def world_size(self) -> int:
        """How many processes take part."""
        return self.runtime.world_size

    @property
    def global_rank(self) -> int:
        """The index of this process among all."""
        return self.runtime.global_rank

    @property
    def local_rank(self) -> int:
        """The index of this process on its node."""
        return self.runtime.local_rank

    @property
    def node_rank(self) -> int:
        """The index of this node."""
        return self.runtime.node_rank

    @property
    def num_nodes(self) -> int:
        """Machines that take part."""
        return self.runtime.num_nodes

    @property
    def num_devices(self) -> int:
        """Devices per node."""
        return len(self.runtime.devices)

    @property
    def device_ids(self) -> list[int]:
        """The indices of this node's devices."""
        return [device.index or 0 for device in self.runtime.devices]

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.runtime.is_global_zero

    def print(self, *args: Any, **kwargs: Any) -> None:
        """``print`` on rank 0, above the progress bar."""
        bar = self.progress_bar_callback
        if not self.is_global_zero:
            return
        if bar is None or "file" in kwargs or self.phase is None:
            print(*args, **kwargs)  # noqa: T201
        else:
            text = io.StringIO()
            print(*args, **{**kwargs, "end": ""}, file=text)
            bar.print(text.getvalue())
