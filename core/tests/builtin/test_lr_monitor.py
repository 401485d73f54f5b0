from __future__ import annotations

import copy
import csv
import gc
import pickle
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from fulmen.builtin.csv_logger import CSVLogger
from fulmen.builtin.lr_monitor import LearningRateMonitor
from fulmen.contracts.callback import Callback
from fulmen.contracts.module import Module
from fulmen.errors import ConfigurationError
from fulmen.hooks import overrides
from fulmen.trainer import Trainer


class Model(Module):
    """Trains with what the test gives."""

    def __init__(self, configure: Any, manual: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 1), nn.Linear(4, 1)
        self.configure, self.automatic_optimization = configure, not manual
        self.used: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = (self.first(batch) + self.second(batch)).square().mean()
        if self.automatic_optimization:
            self.used.append(float(self.optimizers().param_groups[0]["lr"]))
            return loss
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        return self.configure(self)


def fit(
    tmp_path: Path, monitor: LearningRateMonitor, configure: Any, manual: bool = False, **options: Any
) -> tuple[Any, Model]:
    settings = {"max_epochs": 2, "log_every_n_steps": 2, "logger": CSVLogger(tmp_path, version="v"), **options}
    trainer = Trainer(
        callbacks=[monitor], enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings
    )
    model = Model(configure, manual)
    trainer.fit(model, DataLoader(torch.ones(12, 4), batch_size=2))  # type: ignore[arg-type]
    path = tmp_path / "fulmen_logs" / "v" / "metrics.csv"
    if not path.exists():
        return [], model
    with open(path, newline="") as file:
        return list(csv.DictReader(file)), model


def sgd(module: Model, **arguments: Any) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.1, **arguments)


def scheduled(interval: str, name: str | None = None) -> Any:
    def configure(module: Model) -> Any:
        optimizer = sgd(module)
        scheduler = LambdaLR(optimizer, lambda count: 1 / (1 + count))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval, "name": name}}

    return configure


def column(found: list[dict[str, str]], name: str = "lr-SGD") -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row[name])) for row in found if row.get(name)]


def test_a_step_is_logged_with_the_rate_that_it_used(tmp_path: Path) -> None:
    monitor = LearningRateMonitor()
    found, model = fit(tmp_path, monitor, scheduled("step"))
    assert column(found) == [(step, model.used[step]) for step in (1, 3, 5, 7, 9, 11)]
    assert monitor.lrs == {"lr-SGD": model.used[1::2]}
    assert {row["epoch"] for row in found} == {"0.0", "1.0"}


def test_an_epoch_is_logged_in_its_own_row(tmp_path: Path) -> None:
    monitor = LearningRateMonitor()
    found, _ = fit(tmp_path, monitor, scheduled("epoch"))
    assert column(found) == [(5, 0.1), (11, 0.05)]
    assert [row["epoch"] for row in found] == ["0.0", "1.0"]
    assert monitor.lrs == {"lr-SGD": [0.1, 0.05]}


@pytest.mark.parametrize(("interval", "steps"), [("step", [1, 3, 5, 7, 9, 11]), ("epoch", [5, 11])])
def test_a_given_interval_wins(tmp_path: Path, interval: Any, steps: list[int]) -> None:
    other = "epoch" if interval == "step" else "step"
    found, _ = fit(tmp_path, LearningRateMonitor(interval), scheduled(other))
    assert [step for step, _ in column(found)] == steps


def test_an_optimizer_without_scheduler_is_logged_at_both(tmp_path: Path) -> None:
    found, _ = fit(tmp_path, LearningRateMonitor(), sgd)
    assert [step for step, _ in column(found)] == [1, 3, 5, 5, 7, 9, 11, 11]


def test_a_window_of_several_batches_is_one_step(tmp_path: Path) -> None:
    found, model = fit(tmp_path, LearningRateMonitor("step"), scheduled("step"), accumulate_grad_batches=3)
    assert column(found) == [(1, model.used[3]), (3, model.used[9])]


def test_nothing_at_steps_without_logging_steps(tmp_path: Path) -> None:
    found, _ = fit(tmp_path, LearningRateMonitor("step"), scheduled("step"), log_every_n_steps=0)
    assert found == []


def test_only_monitors_that_need_it_are_called_per_batch() -> None:
    monitors = [LearningRateMonitor("epoch"), LearningRateMonitor("step"), LearningRateMonitor()]
    assert [overrides(monitor, "on_train_batch_start", Callback) for monitor in monitors] == [False, True, True]


def test_groups_have_names(tmp_path: Path) -> None:
    def configure(module: Model) -> Any:
        groups: Any = [{"params": module.first.parameters()}, {"params": module.second.parameters(), "lr": 0.5}]
        return torch.optim.SGD(groups, lr=0.1)

    found, _ = fit(tmp_path, LearningRateMonitor("epoch"), configure)
    assert column(found, "lr-SGD/pg1") == [(5, 0.1), (11, 0.1)]
    assert column(found, "lr-SGD/pg2") == [(5, 0.5), (11, 0.5)]


def test_groups_can_bring_names(tmp_path: Path) -> None:
    def configure(module: Model) -> Any:
        groups: Any = [{"params": module.first.parameters(), "name": "body"}, {"params": module.second.parameters()}]
        return torch.optim.SGD(groups, lr=0.1)

    assert set(fit(tmp_path, LearningRateMonitor("epoch"), configure)[0][0]) == {"step", "lr-SGD/body", "lr-SGD/pg2", "epoch"}


def test_optimizers_of_one_class_are_told_apart(tmp_path: Path) -> None:
    def configure(module: Model) -> Any:
        return [
            torch.optim.SGD(module.first.parameters(), lr=0.1),
            torch.optim.Adam(module.second.parameters(), lr=0.2),
            torch.optim.SGD(module.second.parameters(), lr=0.3),
        ]

    found, _ = fit(tmp_path, LearningRateMonitor(), configure, manual=True)
    assert [column(found, name)[-1] for name in ("lr-SGD", "lr-Adam", "lr-SGD-1")] == [(11, 0.1), (11, 0.2), (11, 0.3)]


def test_a_scheduler_can_name_it(tmp_path: Path) -> None:
    found, _ = fit(tmp_path, LearningRateMonitor(), scheduled("epoch", name="warmup"))
    assert set(found[0]) == {"step", "warmup", "epoch"}


def test_momentum_and_weight_decay(tmp_path: Path) -> None:
    def configure(module: Model) -> Any:
        return [
            torch.optim.SGD(module.first.parameters(), lr=0.1, momentum=0.9, weight_decay=0.25),
            torch.optim.Adam(module.second.parameters(), lr=0.2, betas=(0.8, 0.99)),
            torch.optim.Rprop(module.second.parameters(), lr=0.3),
        ]

    monitor = LearningRateMonitor("epoch", log_momentum=True, log_weight_decay=True)
    found, _ = fit(tmp_path, monitor, configure, manual=True)
    values = {name: float(value) for name, value in found[0].items() if name.startswith("lr-")}
    assert values == {
        "lr-SGD": 0.1, "lr-SGD-momentum": 0.9, "lr-SGD-weight_decay": 0.25,
        "lr-Adam": 0.2, "lr-Adam-momentum": 0.8, "lr-Adam-weight_decay": 0.0, "lr-Rprop": 0.3,
    }  # fmt: skip
    assert set(monitor.lrs) == {"lr-SGD", "lr-Adam", "lr-Rprop"}


def test_reduce_on_plateau(tmp_path: Path) -> None:
    def configure(module: Model) -> Any:
        optimizer = sgd(module)
        scheduler = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "flat"}}

    class Flat(LearningRateMonitor):
        def on_train_batch_end(self, trainer: Any, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
            module.log("flat", 1.0)

    monitor = Flat()
    fit(tmp_path, monitor, configure, max_epochs=4)
    assert monitor.lrs["lr-SGD"][0] == 0.1 and monitor.lrs["lr-SGD"][-1] < 0.1


def test_a_rate_in_a_tensor_is_the_one_of_its_moment(tmp_path: Path) -> None:
    def configure(module: Model) -> Any:
        optimizer = torch.optim.Adam(module.parameters(), lr=torch.tensor(0.5), foreach=False, capturable=False)
        return [optimizer], [{"scheduler": LambdaLR(optimizer, lambda count: 1 / (1 + count)), "interval": "step"}]

    monitor = LearningRateMonitor()
    found, model = fit(tmp_path, monitor, configure)
    assert monitor.lrs == {"lr-Adam": model.used[1::2]}
    assert [value for _, value in column(found, "lr-Adam")] == model.used[1::2]
    assert len(set(model.used)) == 12


def test_a_resumed_training_logs_what_a_whole_one_does(tmp_path: Path) -> None:
    class Saves(LearningRateMonitor):
        def on_train_stop(self, trainer: Trainer, module: Module) -> None:
            trainer.save_checkpoint(tmp_path / "cut.ckpt")

    whole, _ = fit(tmp_path / "whole", LearningRateMonitor(), scheduled("step"))
    fit(tmp_path / "cut", Saves(), scheduled("step"), max_steps=8)
    trainer = Trainer(
        callbacks=[LearningRateMonitor()], max_epochs=2, log_every_n_steps=2, logger=CSVLogger(tmp_path / "cut", version="v"),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = DataLoader[Any](torch.ones(12, 4), batch_size=2)  # type: ignore[arg-type]
    trainer.fit(Model(scheduled("step")), data, ckpt_path=tmp_path / "cut.ckpt")
    with open(tmp_path / "cut" / "fulmen_logs" / "v" / "metrics.csv", newline="") as file:
        assert list(csv.DictReader(file)) == whole


def test_two_groups_of_one_name_are_refused(tmp_path: Path) -> None:
    def configure(module: Model) -> Any:
        groups: Any = [{"params": module.first.parameters(), "name": "a"}, {"params": module.second.parameters(), "name": "a"}]
        return torch.optim.SGD(groups, lr=0.1)

    with pytest.raises(ConfigurationError) as caught:
        fit(tmp_path, LearningRateMonitor(), configure)
    assert str(caught.value) == (
        "LearningRateMonitor would log several values as lr-SGD/a: give parameter groups and schedulers different names"
    )


def test_a_monitor_needs_a_logger(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        fit(tmp_path, LearningRateMonitor(), sgd, logger=False)
    assert str(caught.value) == (
        "LearningRateMonitor has no logger to send values to: leave out logger=False, or drop the callback"
    )
    fit(tmp_path, LearningRateMonitor(), sgd, fast_dev_run=True)


def test_a_monitor_keeps_nothing_of_the_module(tmp_path: Path) -> None:
    monitor = LearningRateMonitor()
    parameter = weakref.ref(fit(tmp_path, monitor, sgd)[1].first.weight)
    gc.collect()
    assert parameter() is None and monitor.lrs["lr-SGD"]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda monitor: pickle.loads(pickle.dumps(monitor))])
def test_a_copy_of_a_monitor_logs_for_itself(tmp_path: Path, clone: Any) -> None:
    original = LearningRateMonitor("step")
    copied = clone(original)
    fit(tmp_path, copied, sgd)
    assert len(copied.lrs["lr-SGD"]) == 6 and original.lrs == {}


def test_a_wrong_interval() -> None:
    message = "logging_interval='batch' is not allowed; allowed: 'step', 'epoch', None"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        LearningRateMonitor("batch")  # type: ignore[arg-type]
