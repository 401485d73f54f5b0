"""Progress on the terminal or in a notebook as a bar, and in plain lines where neither is there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from time import monotonic, time
from typing import TYPE_CHECKING, Any, TextIO

from fulmen.contracts.progress import ProgressBar
from fulmen.errors import ConfigurationError, warn
from fulmen.registry import import_target

if TYPE_CHECKING:
    from fulmen.contracts.data_hooks import Stage
    from fulmen.contracts.module import Module
    from fulmen.trainer import Trainer

LINE_SECONDS = 10.0
"""How long to wait between two plain lines about the position."""


class ConsoleProgress(ProgressBar):
    """Shows epoch, position, rate and the values logged with ``prog_bar=True``, on rank 0.

    With tqdm (``pip install "fulmen[progress]"``) on a terminal or in a notebook this is a bar, with another below it for a
    validation. Elsewhere it is plain lines on stderr: one for each epoch, validation, test and prediction that ends, and at
    most every 10 seconds one about the position. Nothing of it happens per step.

    Args:
        refresh_seconds: How long to wait between two redraws of the bar.
        leave: Keep the bar of each epoch on the screen, rather than that of the last one only.

    Raises:
        ConfigurationError: ``refresh_seconds`` is not positive.
    """

    runs_last = True  # so that what it shows at the end of an epoch is complete

    def __init__(self, refresh_seconds: float = 0.2, leave: bool = False) -> None:
        if not refresh_seconds > 0:
            raise ConfigurationError(f"refresh_seconds={refresh_seconds!r} must be positive")
        self.refresh_seconds, self.leave = refresh_seconds, leave
        self._display: Bars | Lines | None = None  # while a run goes on, on rank 0
        self._activities: list[Activity] = []  # a training epoch, and the validation inside
        self._ended: list[Activity] = []  # those whose line waits for values on their way from the device
        self._metrics: dict[str, float] = {}

    # ---- What the trainer asks for

    def redraw(self, trainer: Trainer) -> None:
        """Show the position and the metrics as they are now."""
        with self._showing():
            self._write_ended(trainer)
            if self._activities and self._display is not None:
                self._activities[-1].move(trainer)
                self._display.draw(self._activities[-1], self._read_metrics(trainer))

    def print(self, text: str) -> None:
        """Write a line to stdout, above the bar."""
        with self._showing():
            if self._display is not None:
                return self._display.write(text, sys.stdout)
        print(text)  # noqa: T201 - what is asked for

    # ---- The run

    def setup(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Choose the display."""
        self._activities, self._ended, self._metrics = [], [], {}
        if trainer.is_global_zero and sys.stderr is not None:
            self._display = make_display(self.leave)
            trainer.every(self._display.seconds or self.refresh_seconds, lambda: self.redraw(trainer))

    def teardown(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Leave the screen in order, however the run ended."""
        if self._activities:  # cut short: show where
            self.redraw(trainer)
        with self._showing():
            self._write_ended(trainer)
            if self._display is not None:
                self._display.close(self._read_metrics(trainer))
        self._display, self._activities = None, []

    def on_sanity_check_start(self, trainer: Trainer, module: Module) -> None:
        """Show that it runs; batches are not counted."""
        self._begin(trainer, Activity("Sanity check", "sanity_check", nested=True))

    def on_sanity_check_end(self, trainer: Trainer, module: Module) -> None:
        """Stop showing it."""
        self._end(trainer)

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Show an epoch that is resumed in the middle, which does not start again."""
        if trainer.progress.batch:
            self._begin_epoch(trainer)

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Show the epoch."""
        self._begin_epoch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Show how it ended."""
        self._end(trainer)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Show where an epoch was cut."""
        self._end(trainer)

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Show the validation, below the epoch it is in."""
        if trainer.phase == "validate":
            self._begin(trainer, Activity("Validation", "validate", nested=trainer.stage == "fit"))

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Show how it ended."""
        if trainer.phase == "validate":
            self._end(trainer)

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        """Show the test."""
        self._begin(trainer, Activity("Test", "test"))

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        """Show how it ended."""
        self._end(trainer)

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        """Show the prediction."""
        self._begin(trainer, Activity("Prediction", "predict"))

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        """Show how it ended."""
        self._end(trainer)

    # ---- Activities

    def _begin_epoch(self, trainer: Trainer) -> None:
        limit = trainer.max_epochs
        title = f"Epoch {trainer.current_epoch + 1}" + (f"/{limit}" if limit is not None and limit >= 0 else "")
        self._begin(trainer, Activity(title, "train"))

    def _begin(self, trainer: Trainer, activity: Activity) -> None:
        activity.place(trainer)
        if self._activities and isinstance(self._display, Bars):  # the outer bar stands still meanwhile
            self.redraw(trainer)
        self._activities.append(activity)
        with self._showing():
            if self._display is not None:
                self._display.begin(activity)
                self._display.draw_first(activity, self._read_metrics(trainer))

    def _end(self, trainer: Trainer) -> None:
        if not self._activities:
            return
        activity = self._activities.pop()
        activity.move(trainer)
        activity.finish()
        if self._activities:
            self._activities[-1].paused += activity.seconds
        with self._showing():
            if self._display is None:
                return
            self._display.end(activity, self._read_metrics(trainer))
            self._write_ended(trainer)
            if self._display.keeps(activity):
                self._ended.append(activity)
            if trainer.runtime.device.type == "cpu":  # elsewhere final values are on their way, and nobody waits for them
                self._write_ended(trainer)

    def _write_ended(self, trainer: Trainer) -> None:
        if self._ended and self._display is not None:
            metrics = self._read_metrics(trainer)
            for activity in self._ended:
                self._display.write(self._display.line(activity, metrics), sys.stderr)
            self._ended = []

    def _read_metrics(self, trainer: Trainer) -> Mapping[str, float]:
        if trainer.status != "failed":  # the device may be what failed
            found = trainer.progress_bar_metrics
            order = [*(name for name in self._metrics if name in found), *found]  # each stays where it was
            self._metrics = {name: found[name] for name in order}
        return self._metrics

    @contextmanager
    def _showing(self) -> Iterator[None]:
        """Around everything that is written: a terminal that is gone ends the display, and not the training."""
        try:
            yield
        except OSError as error:
            display, self._display = self._display, None
            if display is not None:
                display.abandon()
            warn("progress-lost", f"progress cannot be shown any more: {error}. The run goes on")


@dataclass
class Activity:
    """One pass over loaders, and how far it is."""

    title: str
    phase: str
    nested: bool = False
    """Whether it is inside a training."""
    position: int | None = None
    """Batches done; ``None``: not counted."""
    total: int | None = None
    """Batches in all; ``None``: nobody knows."""
    first: int = 0
    """The position at the start, where it continues another run's."""
    paused: float = 0.0
    """Seconds that other activities inside it took."""
    seconds_in_all: float | None = None
    """How long it took; ``None`` while it goes on."""
    _origin: int = 0
    _started: float = field(default_factory=monotonic)

    @property
    def seconds(self) -> float:
        """How long it has been going on, without what it was paused for."""
        return monotonic() - self._started - self.paused if self.seconds_in_all is None else self.seconds_in_all

    @property
    def rate(self) -> float | None:
        """Batches per second; ``None``: not known yet."""
        done = (self.position or 0) - self.first
        return done / self.seconds if done > 0 and self.seconds > 0 else None

    def place(self, trainer: Trainer) -> None:
        """Take the position at the start."""
        self._origin = 0 if self.phase == "train" else trainer.progress.evaluated
        self.move(trainer)
        self.first = self.position or 0

    def move(self, trainer: Trainer) -> None:
        """Take the present position."""
        if self.phase != "sanity_check":
            done = trainer.progress.batch if self.phase == "train" else trainer.progress.evaluated
            self.position = done - self._origin
            self.total = total_of(trainer, self.phase)

    def finish(self) -> None:
        """Stop the clock."""
        self.seconds_in_all = self.seconds


def total_of(trainer: Trainer, phase: str) -> int | None:
    """The batches of a pass over all loaders of a phase; ``None``: nobody knows."""
    counts: list[float] = {
        "train": [trainer.num_training_batches],
        "validate": trainer.num_val_batches,
        "test": trainer.num_test_batches,
        "predict": trainer.num_predict_batches,
    }[phase]
    total = sum(counts)
    return int(total) if total and isfinite(total) else None


# ---- Displays


def make_display(leave: bool) -> Bars | Lines:
    """Bars where they can be drawn, else lines. Nothing of tqdm is imported before."""
    notebook = in_notebook()
    if not notebook and not is_drawable(sys.stderr):
        return Lines()
    try:
        return Bars(import_target("tqdm.auto:tqdm" if notebook else "tqdm:tqdm"), leave)  # auto: widgets, where there are any
    except ImportError:
        return Lines()


def is_drawable(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can redraw a line. One without a size, as containers have it, would show nothing."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:  # it has no file descriptor
        return False


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook. Imports nothing."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_ipython() if get_ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


class Bars:
    """tqdm's bars: one for what the run does, and one below for what happens inside of that.

    Args:
        tqdm: The class.
        leave: Whether the bar of each epoch stays.
    """

    seconds: float | None = None
    """How long to wait between two redraws; ``None``: as the user says."""

    def __init__(self, tqdm: Any, leave: bool) -> None:
        self.leave = leave
        self._tqdm: Any = type("Bar", (tqdm,), {"monitor_interval": 0})  # no thread that looks after them
        self._open: list[Any] = []
        self._last: tuple[Any, Activity] | None = None  # stays until another takes its place

    def begin(self, activity: Activity) -> None:
        """Open a bar."""
        if self._last is not None:
            self._close(self._last[0], leave=False)
            self._last = None
        counted = activity.position is not None
        bar = self._tqdm(
            total=activity.total, desc=activity.title, initial=activity.first, file=sys.stderr, leave=False,
            dynamic_ncols=True, mininterval=0, unit="batch", bar_format=None if counted else "{desc}",
        )  # fmt: skip
        self._open.append(bar)

    def draw(self, activity: Activity, metrics: Mapping[str, float]) -> None:
        """Redraw the bar that was opened last."""
        self._draw(self._open[-1], activity, metrics)

    draw_first = draw

    def _draw(self, bar: Any, activity: Activity, metrics: Mapping[str, float]) -> None:
        if activity.position is not None:
            if bar.total != activity.total:  # a loader whose length was not known at the start
                bar.reset(activity.total)
            bar.n = activity.position
            bar.last_print_t = now = time()
            bar.start_t = now - activity.seconds  # so that time and rate are those of this activity alone
        bar.set_postfix_str(metrics_text(metrics), refresh=False)
        bar.refresh()

    def end(self, activity: Activity, metrics: Mapping[str, float]) -> None:
        """Draw the final state; what is inside something else disappears."""
        bar = self._open.pop()
        self._draw(bar, activity, metrics)
        if activity.nested:
            self._close(bar, leave=False)
        else:
            self._last = (bar, activity)

    def keeps(self, activity: Activity) -> bool:
        """Whether the final state is to be written as a line above the bar."""
        return self.leave and not activity.nested

    def line(self, activity: Activity, metrics: Mapping[str, float]) -> str:
        """The final state as a bar of text."""
        bar = self._open[0] if self._open else self._last and self._last[0]
        text: str = self._tqdm.format_meter(
            n=activity.position or 0, total=activity.total, elapsed=activity.seconds, prefix=activity.title, unit="batch",
            initial=activity.first, postfix=metrics_text(metrics), ncols=bar and bar.format_dict["ncols"],
        )  # fmt: skip
        return text

    def write(self, text: str, file: TextIO) -> None:
        """Write a line above the bars."""
        self._tqdm.write(text, file=file)

    def close(self, metrics: Mapping[str, float]) -> None:
        """Close all bars. That of the last activity stays, as far as it came, unless it is above already."""
        for bar in reversed(self._open):
            self._close(bar, leave=bar is self._open[0])
        if self._last is not None:
            bar, activity = self._last
            if not self.leave:
                self._draw(bar, activity, metrics)
            self._close(bar, leave=not self.leave)
        self._open, self._last = [], None

    def _close(self, bar: Any, leave: bool) -> None:
        bar.leave = leave
        bar.close()

    def abandon(self) -> None:
        """Write nothing more."""
        for bar in [*self._open, *([self._last[0]] if self._last else [])]:
            bar.disable = True


class Lines:
    """Plain lines, for files and pipes: no escape codes, no carriage returns."""

    seconds: float | None = LINE_SECONDS

    def begin(self, activity: Activity) -> None:
        """Nothing to open."""

    def draw_first(self, activity: Activity, metrics: Mapping[str, float]) -> None:
        """A line follows when there is something to tell."""

    def draw(self, activity: Activity, metrics: Mapping[str, float]) -> None:
        """Write a line about the position, where it is counted."""
        if activity.position is not None:
            self.write(self.line(activity, metrics), sys.stderr)

    def end(self, activity: Activity, metrics: Mapping[str, float]) -> None:
        """The line about the end follows."""

    def keeps(self, activity: Activity) -> bool:
        """Whether the end is worth a line."""
        return activity.phase != "sanity_check"

    def line(self, activity: Activity, metrics: Mapping[str, float]) -> str:
        """The position, or how it ended.

        >>> Lines().line(Activity("Epoch 3/10", "train", position=120, total=500, seconds_in_all=4.0), {"train_loss": 0.12345})
        'Epoch 3/10: 120 of 500 batches in 4.0 s, 30.0 batches/s, train_loss=0.123'
        """
        parts = [position_text(activity)] if activity.position is not None else []
        if activity.rate is not None:
            parts.append(f"{activity.rate:.1f} batches/s" if activity.rate >= 1 else f"{1 / activity.rate:.1f} s/batch")
        return f"{activity.title}: {', '.join([*parts, *([metrics_text(metrics)] if metrics else [])]) or 'running'}"

    def write(self, text: str, file: TextIO) -> None:
        """Write a line."""
        print(text, file=file, flush=True)

    def close(self, metrics: Mapping[str, float]) -> None:
        """Nothing to close."""

    def abandon(self) -> None:
        """Nothing to close."""


# ---- Text


def position_text(activity: Activity) -> str:
    """How many batches are done, in how long."""
    done, total = activity.position, activity.total
    if activity.seconds_in_all is not None:
        of = f" of {total}" if total is not None and total != done else ""
        return f"{done}{of} batches in {activity.seconds_in_all:.1f} s"
    return f"{done} batches" if total is None else f"{done}/{total} batches ({(done or 0) / total:.0%})"


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Names and values, in three digits.

    >>> metrics_text({"train_loss": 0.12345, "count": 1234.0, "lr": 1e-05})
    'train_loss=0.123, count=1234, lr=1e-05'
    """
    return ", ".join(f"{name}={number_text(value)}" for name, value in metrics.items())


def number_text(value: float) -> str:
    """A number in three digits, or whole where it is larger."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
