from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.builtin.accumulation import GradientAccumulationScheduler
from fulmen.contracts.module import Module
from fulmen.errors import ConfigurationError
from fulmen.trainer import Trainer


class Model(Module):
    def __init__(self, optimizer: type = torch.optim.SGD) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.optimizer = nn.Linear(4, 1), optimizer
        self.steps_per_epoch: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).square().mean()

    def on_train_epoch_end(self) -> None:
        self.steps_per_epoch.append(self.global_step - sum(self.steps_per_epoch))

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), lr=0.1)


def fit(module: Module, *callbacks: Any, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings: dict[str, Any] = {"max_epochs": 4, **quiet, **options}
    trainer = Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(module, DataLoader(torch.arange(24.0).reshape(6, 4), batch_size=1))  # type: ignore[arg-type]
    return trainer


def test_the_number_changes_with_the_epoch() -> None:
    module = Model()
    fit(module, GradientAccumulationScheduler({1: 2, 3: 6}))
    assert module.steps_per_epoch == [6, 3, 3, 1]


def test_it_does_what_the_option_does() -> None:
    by_callback, by_option = Model(), Model()
    fit(by_callback, GradientAccumulationScheduler({0: 2, 2: 4}))
    fit(by_option, accumulate_grad_batches={0: 2, 2: 4})
    assert by_callback.steps_per_epoch == by_option.steps_per_epoch == [3, 3, 2, 2]
    assert torch.equal(by_callback.layer.weight, by_option.layer.weight)


def test_reading() -> None:
    scheduler = GradientAccumulationScheduler({1: 2, 3: 6})
    assert [scheduler.get_accumulate_grad_batches(epoch) for epoch in range(5)] == [1, 2, 2, 6, 6]
    assert scheduler.going_to_accumulate_grad_batches()
    assert not GradientAccumulationScheduler({0: 1}).going_to_accumulate_grad_batches()


FORM = "give {epoch: batches per optimizer step}, such as {0: 1, 4: 8}"


@pytest.mark.parametrize(
    ("scheduling", "message"),
    [
        ({}, f"scheduling={{}} is not allowed; {FORM}"),
        (4, f"scheduling=4 is not allowed; {FORM}"),
        ({-1: 2}, f"scheduling has the epoch -1; epochs are whole numbers from 0: {FORM}"),
        ({"0": 2}, f"scheduling has the epoch '0'; epochs are whole numbers from 0: {FORM}"),
        ({0: 0}, "scheduling has 0 batches per step from epoch 0 on; at least 1 is needed"),
        ({0: 1.5}, "scheduling has 1.5 batches per step from epoch 0 on; at least 1 is needed"),
    ],
)
def test_wrong_schedules(scheduling: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        GradientAccumulationScheduler(scheduling)
    assert str(caught.value) == message


def test_two_numbers_contradict_each_other() -> None:
    with pytest.raises(ConfigurationError) as caught:
        fit(Model(), GradientAccumulationScheduler({0: 2}), accumulate_grad_batches=3)
    assert str(caught.value) == (
        "Trainer(accumulate_grad_batches=3) and GradientAccumulationScheduler({0: 2}) both set the batches per optimizer step; "
        "drop one of them"
    )


def test_manual_optimization_decides_by_itself() -> None:
    module = Model()
    module.automatic_optimization = False
    with pytest.raises(ConfigurationError) as caught:
        fit(module, GradientAccumulationScheduler({0: 2}))
    assert str(caught.value) == (
        "GradientAccumulationScheduler({0: 2}) has no effect, because Model sets automatic_optimization = False: "
        "step the optimizer at every n-th batch in training_step instead"
    )


def test_an_optimizer_that_evaluates_batches_itself_cannot_accumulate() -> None:
    with pytest.raises(ConfigurationError) as caught:
        fit(Model(torch.optim.LBFGS), GradientAccumulationScheduler({2: 2}))
    assert str(caught.value) == (
        "LBFGS evaluates each batch several times and cannot accumulate gradients over batches: "
        "drop GradientAccumulationScheduler"
    )
