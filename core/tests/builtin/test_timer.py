from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.builtin.timer import STAGES, Timer
from fulmen.contracts.callback import Callback
from fulmen.contracts.module import Module
from fulmen.errors import ConfigurationError
from fulmen.hooks import overrides
from fulmen.trainer import Trainer


class Slow(Module):
    """Sleeps in each step of any kind."""

    def __init__(self, seconds: float = 0.02) -> None:
        super().__init__()
        self.layer, self.seconds, self.steps = nn.Linear(4, 1), seconds, 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        time.sleep(self.seconds)
        return self.layer(batch).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(self.seconds)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        time.sleep(self.seconds)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(batches: int = 4) -> DataLoader[Any]:
    return DataLoader(torch.ones(batches, 4), batch_size=1)  # type: ignore[arg-type]


def make_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings: dict[str, Any] = {**quiet, **options}
    return Trainer(callbacks=list(callbacks), **settings)


def test_the_training_stops_when_the_time_is_up() -> None:
    timer, module = Timer(duration=0.1), Slow()
    trainer = make_trainer(timer, max_epochs=-1)
    trainer.fit(module, loader(10_000), loader(1))
    assert trainer.stop_reason == "max_time=0:00:00.100000 reached"
    assert 0 < module.steps <= 5
    assert timer.time_elapsed() >= 0.1 and timer.time_remaining() == 0.0


def test_max_time_of_the_trainer_is_a_timer() -> None:
    trainer = make_trainer(max_time=timedelta(seconds=0.1))
    trainer.fit(Slow(), loader(10_000), loader(1))
    assert trainer.stop_reason == "max_time=0:00:00.100000 reached"


def test_at_epochs_the_training_stops_when_one_is_complete() -> None:
    timer, module = Timer(duration=0.03, interval="epoch"), Slow()
    trainer = make_trainer(timer, max_epochs=-1)
    trainer.fit(module, loader(4), loader(1))
    assert module.steps == 4 and trainer.current_epoch == 1


def test_the_minimum_of_epochs_comes_first() -> None:
    module = Slow(0.0)
    make_trainer(Timer(duration=0.0), max_epochs=5, min_epochs=2).fit(module, loader(4), loader(1))
    assert module.steps == 8


def test_a_time_that_is_up_already_trains_nothing() -> None:
    module = Slow()
    trainer = make_trainer(Timer(duration=0.0), max_epochs=5)
    trainer.fit(module, loader(), loader(1))
    assert module.steps == 0 and trainer.stop_reason == "max_time=0:00:00 reached"


def test_stages_are_measured_apart_and_training_includes_validation() -> None:
    timer, module = Timer(), Slow()
    trainer = make_trainer(timer, max_epochs=2)
    assert [timer.time_elapsed(stage) for stage in STAGES] == [0.0] * 5
    assert timer.start_time() is timer.end_time() is timer.time_remaining() is None
    trainer.fit(module, loader(4), loader(3))
    assert timer.time_elapsed("sanity_check") >= 2 * 0.02
    assert timer.time_elapsed("validate") >= 2 * 3 * 0.02
    assert timer.time_elapsed("train") >= 8 * 0.02 + timer.time_elapsed("validate")
    assert timer.time_elapsed("test") == timer.time_elapsed("predict") == 0.0
    trainer.test(module, loader(2), verbose=False)
    trainer.predict(module, loader(3))
    assert timer.time_elapsed("test") >= 2 * 0.02 and timer.time_elapsed("predict") >= 3 * 0.02
    start, end = timer.start_time("test"), timer.end_time("test")
    assert start is not None and end is not None and end - start == timer.time_elapsed("test")


def test_a_failure_stops_the_clock() -> None:
    class Fails(Slow):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise ZeroDivisionError

    timer = Timer()
    with pytest.raises(ZeroDivisionError):
        make_trainer(timer, max_epochs=1).fit(Fails(), loader(), loader(1))
    assert timer.end_time() is not None
    assert timer.time_elapsed() == timer.time_elapsed()


def test_the_time_goes_on_after_a_resume(tmp_path: Path) -> None:
    class Saves(Callback):
        def on_train_stop(self, trainer: Trainer, module: Module) -> None:
            trainer.save_checkpoint(tmp_path / "cut.ckpt")

    first, module = Timer(duration=0.1), Slow()
    make_trainer(first, Saves(), max_epochs=-1).fit(module, loader(10_000), loader(1))
    second, module = Timer(duration=0.2), Slow()
    trainer = make_trainer(second, max_epochs=-1)
    trainer.fit(module, loader(10_000), loader(1), ckpt_path=tmp_path / "cut.ckpt")
    start, end = second.start_time(), second.end_time()
    assert start is not None and end is not None
    assert second.time_elapsed() >= 0.2 and 0 < end - start < second.time_elapsed() - 0.1
    assert second.time_elapsed("sanity_check") == first.time_elapsed("sanity_check")


def test_the_state_is_plain_and_counts_what_runs() -> None:
    timer = Timer()
    timer._begin("train")
    time.sleep(0.01)
    state = timer.state_dict()
    assert list(state) == ["time_elapsed"] and list(state["time_elapsed"]) == list(STAGES)
    assert state["time_elapsed"]["train"] >= 0.01


def test_a_timer_that_only_measures_stands_beside_max_time() -> None:
    assert (Timer(1.0).state_key, Timer().state_key) == ("Timer", "Timer{'duration': None}")
    make_trainer(Timer(), max_time={"seconds": 100}, max_epochs=1).fit(Slow(0.0), loader(), loader(1))


def test_nothing_happens_per_batch() -> None:
    assert not any(overrides(Timer(1.0), name, Callback) for name in dir(Callback) if "batch" in name)


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("00:01:00:05", 3605.0),
        (timedelta(minutes=2), 120.0),
        ({"hours": 1, "seconds": 0.5}, 3600.5),
        (90, 90.0),
        (None, None),
    ],
)
def test_durations(duration: Any, seconds: float | None) -> None:
    assert Timer(duration).duration == seconds == Timer(duration).time_remaining()


def test_wrong_arguments() -> None:
    cases = {
        "duration='1h' is not allowed; allowed: 'DD:HH:MM:SS', a timedelta, or its arguments as a mapping": {"duration": "1h"},
        "duration=-1 is not allowed; it must not be negative": {"duration": -1},
        "duration=nan is not allowed; it must not be negative": {"duration": float("nan")},
        "Timer interval='batch' is not allowed; allowed: 'step', 'epoch'": {"interval": "batch"},
    }
    for message, arguments in cases.items():
        with pytest.raises(ConfigurationError) as caught:
            Timer(**arguments)  # type: ignore[arg-type]
        assert str(caught.value) == message
    with pytest.raises(ConfigurationError) as caught:
        Timer().time_elapsed("fit")
    assert str(caught.value) == "stage='fit' is not allowed; allowed: train, sanity_check, validate, test, predict"
