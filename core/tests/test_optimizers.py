"""What configure_optimizers may return, and when schedulers advance."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from fulmen import Callback, ConfigurationError, FulmenWarning
from fulmen.optimizers import configured_optimizers
from fulmen.testing import Regression, Validated, batches, quiet


def returning(make, automatic=True):
    """A module whose configure_optimizers returns ``make(first, second)`` of two optimizers."""

    class Configured(Regression):
        automatic_optimization = automatic

        def configure_optimizers(self):
            return make(SGD(self.net[0].parameters(), lr=0.1), SGD(self.net[3].parameters(), lr=0.2))

    return Configured()


FORMS = {
    "one": (lambda a, b: a, 1, 0),
    "list": (lambda a, b: [a, b], 2, 0),
    "tuple": (lambda a, b: (a, b), 2, 0),
    "two lists": (lambda a, b: ([a, b], [StepLR(a, 1)]), 2, 1),
    "two lists with a configuration": (lambda a, b: ([a], [{"scheduler": StepLR(a, 1), "interval": "step"}]), 1, 1),
    "mapping": (lambda a, b: {"optimizer": a}, 1, 0),
    "mapping with a scheduler": (lambda a, b: {"optimizer": a, "lr_scheduler": StepLR(a, 1)}, 1, 1),
    "mapping with a configuration": (
        lambda a, b: {"optimizer": a, "lr_scheduler": {"scheduler": StepLR(a, 1), "frequency": 2, "name": "x"}},
        1,
        1,
    ),
    "mappings": (lambda a, b: ({"optimizer": a, "lr_scheduler": StepLR(a, 1)}, {"optimizer": b}), 2, 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_documented_form(form):
    make, optimizers, schedulers = FORMS[form]
    found = configured_optimizers(returning(make, automatic=False))
    assert (len(found[0]), len(found[1])) == (optimizers, schedulers)


FAULTS = {
    "several": (
        lambda a, b: [a, b],
        "configure_optimizers returned 2 optimizers, and automatic optimization works with one: set "
        "self.automatic_optimization = False and step them in training_step",
    ),
    "key": (
        lambda a, b: {"optimiser": a},
        "configure_optimizers returned the unknown key 'optimiser'; did you mean 'optimizer'?; keys are: optimizer, "
        "lr_scheduler",
    ),
    "misplaced": (
        lambda a, b: {"optimizer": a, "monitor": "x"},
        "configure_optimizers returned the unknown key 'monitor'; keys are: optimizer, lr_scheduler; scheduler settings belong "
        "into the dictionary under 'lr_scheduler'",
    ),
    "scheduler key": (
        lambda a, b: {"optimizer": a, "lr_scheduler": {"scheduler": StepLR(a, 1), "intervall": "step"}},
        "the lr_scheduler dictionary has the unknown key 'intervall'; did you mean 'interval'?; keys are: scheduler, interval, "
        "frequency, monitor, strict, name, reduce_on_plateau",
    ),
    "interval": (
        lambda a, b: {"optimizer": a, "lr_scheduler": {"scheduler": StepLR(a, 1), "interval": "batch"}},
        "lr_scheduler interval='batch'; allowed are 'epoch' and 'step'",
    ),
    "frequency": (
        lambda a, b: {"optimizer": a, "lr_scheduler": {"scheduler": StepLR(a, 1), "frequency": 0}},
        "lr_scheduler frequency=0 must be a whole number from 1",
    ),
    "plateau": (
        lambda a, b: ([a], [ReduceLROnPlateau(a)]),
        "ReduceLROnPlateau needs a metric: return {'optimizer': ..., 'lr_scheduler': {'scheduler': ..., 'monitor': "
        "'val_loss'}}",
    ),
    "foreign": (
        lambda a, b: ([a], [StepLR(b, 1)]),
        "StepLR schedules an optimizer that configure_optimizers does not return; return both",
    ),
    "no scheduler": (
        lambda a, b: ([a], [3]),
        "int is no learning-rate scheduler: it needs step, state_dict and load_state_dict",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_anything_else_is_an_error(case):
    make, message = FAULTS[case]
    with pytest.raises(ConfigurationError) as caught:
        quiet(max_epochs=1).fit(returning(make), batches(1))
    assert str(caught.value) == message


def test_something_else_lists_what_is_allowed():
    with pytest.raises(ConfigurationError) as caught:
        quiet(max_epochs=1).fit(returning(lambda a, b: 3), batches(1))
    assert str(caught.value) == (
        "configure_optimizers returned int: 3; allowed are an optimizer, a list of them, two lists (optimizers, schedulers), a "
        "dictionary with 'optimizer' and 'lr_scheduler', a tuple of such dictionaries, and None"
    )


def test_none_trains_nothing_and_says_so():
    module = returning(lambda a, b: None)
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.warns(FulmenWarning, match=r"\[no-optimizer\] Configured.configure_optimizers returned None"):
        quiet(max_epochs=1).fit(module, batches())
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
    assert len(module.losses) == 8


SCHEDULES = [
    ({"interval": "step"}, 16),
    ({"interval": "step", "frequency": 3}, 5),
    ({"interval": "epoch"}, 2),
    ({"interval": "epoch", "frequency": 2}, 1),
]


@pytest.mark.parametrize(("options", "advances"), SCHEDULES)
def test_frequency_counts_over_the_whole_training(options, advances):
    module = returning(lambda a, b: {"optimizer": a, "lr_scheduler": {"scheduler": StepLR(a, 1, gamma=0.5), **options}})
    trainer = quiet(max_epochs=2)
    trainer.fit(module, batches())
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1 * 0.5**advances


@pytest.mark.parametrize("monitor", ["val_loss", "train_loss", "train_loss_epoch"])
def test_a_plateau_sees_the_values_of_its_epoch(monitor):
    class Plateau(Validated):
        seen = ()

        def lr_scheduler_step(self, scheduler, metric):
            self.seen += (metric.item(),)
            super().lr_scheduler_step(scheduler, metric)

        def on_train_epoch_end(self):
            self.expected = (*getattr(self, "expected", ()), self.trainer.callback_metrics[monitor].item())

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ReduceLROnPlateau(optimizer), "monitor": monitor}}

    module = Plateau()
    quiet(max_epochs=3).fit(module, batches(), batches(1))
    assert module.seen == module.expected
    assert len(module.seen) == 3


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_scheduler_can_be_suspended(interval):
    class Suspending(Callback):
        def on_train_epoch_start(self, trainer, module):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])
            trainer.lr_scheduler_configs[0].suspended = trainer.current_epoch >= 1

    rates = []
    module = returning(lambda a, b: ([a], [{"scheduler": StepLR(a, 1, 0.5), "interval": interval}]))
    quiet(max_epochs=4, callbacks=Suspending()).fit(module, batches(2))
    assert rates == ([0.1, 0.025, 0.025, 0.025] if interval == "step" else [0.1, 0.05, 0.05, 0.05])
