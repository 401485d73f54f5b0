"""Stochastic weight averaging against torch.optim.swa_utils: equal bit for bit."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from fulmen_swa import EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

from fulmen import Callback, ConfigurationError, FulmenWarning, Module, ModuleError
from fulmen.testing import Regression, Validated, batches, mse, quiet, same_weights


def normalized():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))


class Normalized(Validated):
    """With batch normalisation and a scheduler."""

    def __init__(self, scheduler=True):
        super().__init__()
        self.net, self.scheduler = normalized(), scheduler

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        if not self.scheduler:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def by_hand(net, data, epochs, start, *, scheduler=True, avg_fn=None, use_buffers=False, lr=0.05, **annealing):
    """The recipe of PyTorch's documentation; the schedule is made when it begins."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    own = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) if scheduler else None
    averaged = AveragedModel(net, avg_fn=avg_fn, use_buffers=use_buffers)
    anneal, rates = None, []
    for epoch in range(epochs):
        if epoch == start:
            options = {"anneal_epochs": 10, "anneal_strategy": "cos", **annealing}
            anneal = SWALR(optimizer, lr, **options)
        rates.append(optimizer.param_groups[0]["lr"])
        for batch in data:
            optimizer.zero_grad()
            mse(net, batch).backward()
            optimizer.step()
        if epoch >= start:
            averaged.update_parameters(net)
            anneal.step()
        elif own is not None:
            own.step()
    if not use_buffers:
        update_bn(data, averaged)
    return averaged.module, rates


class Rates(Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 0:
            self.found.append(trainer.optimizers[0].param_groups[0]["lr"])


def fitted(callback, module=None, epochs=6, val=None, **options):
    module, rates = module or Normalized(), Rates()
    options = {"max_epochs": epochs, "limit_val_batches": 0 if val is None else 1.0, **options}
    trainer = quiet(**{**options, "callbacks": [callback, rates, *options.get("callbacks", [])]})
    trainer.fit(module, batches(), val)
    return module, trainer, rates.found


def same_state(one, other):
    one, other = dict(one), dict(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- Equal to PyTorch


@pytest.mark.parametrize(
    ("options", "hand"),
    [
        ({}, {}),
        ({"swa_lrs": [0.01]}, {"lr": 0.01}),
        ({"annealing_epochs": 2}, {"anneal_epochs": 2}),
        ({"annealing_epochs": 0}, {"anneal_epochs": 0}),
        ({"annealing_strategy": "linear"}, {"anneal_strategy": "linear"}),
        ({"avg_fn": lambda old, new, n: 0.8 * old + 0.2 * new}, {"avg_fn": lambda old, new, n: 0.8 * old + 0.2 * new}),
        ({"use_buffers": True}, {"use_buffers": True}),
        ({"device": None}, {}),
    ],
)
def test_the_averages_are_those_of_pytorch(options, hand):
    data = batches()
    expected, rates = by_hand(normalized(), data, 6, 2, **hand)
    module, trainer, found = fitted(StochasticWeightAveraging(**{"swa_lrs": 0.05, "swa_epoch_start": 3, **options}))
    assert same_state(module.net.state_dict(), expected.state_dict())
    assert found == rates
    assert trainer.callbacks[0].num_averaged == 4
    default, _ = by_hand(normalized(), data, 6, 2)
    assert same_state(default.state_dict(), expected.state_dict()) is (options in ({}, {"device": None}))


@pytest.mark.parametrize(("start", "first"), [(1, 0), (2, 1), (6, 5), (0.0, 0), (0.5, 2), (0.8, 3), (1.0, 5)])
def test_the_first_epoch(start, first):
    expected, _ = by_hand(normalized(), batches(), 6, first)
    module, trainer, _ = fitted(StochasticWeightAveraging(0.05, start))
    assert same_state(module.net.state_dict(), expected.state_dict())
    assert trainer.callbacks[0].num_averaged == 6 - first


def test_a_start_after_the_end_averages_nothing():
    plain, _, _ = fitted(Callback())
    module, trainer, _ = fitted(StochasticWeightAveraging(0.05, 7))
    assert same_weights(module, plain) and trainer.callbacks[0].averaged_weights() == {}


def test_rates_of_several_groups():
    class Groups(Regression):
        def configure_optimizers(self):
            parts = [{"params": self.net[0].parameters()}, {"params": self.net[3].parameters(), "lr": 0.2}]
            return torch.optim.SGD(parts, lr=0.1)

    _, trainer, _ = fitted(StochasticWeightAveraging([0.01, 0.02], 1, annealing_epochs=1), Groups(), 3)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.01, 0.02]
    with pytest.raises(ConfigurationError) as caught:
        fitted(StochasticWeightAveraging([0.01, 0.02, 0.03], 1), Groups(), 3)
    assert str(caught.value) == "swa_lrs has 3 rates, and the optimizer has 2 parameter groups; give one, or one each"


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_the_schedulers_of_the_module_rest(interval):
    class Scheduled(Regression):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    _, trainer, rates = fitted(StochasticWeightAveraging(0.05, 3, annealing_epochs=0), Scheduled(), 5)
    assert rates[2:] == [0.05, 0.05, 0.05] and rates[1] < 0.1
    assert trainer.lr_scheduler_configs[0].suspended


# ---- The weights of the training


def test_the_weights_of_the_training_are_kept():
    plain, _, _ = fitted(Callback(), Normalized(scheduler=False))
    callback = StochasticWeightAveraging(0.1, 3)  # the rate that it has anyway
    module, _, _ = fitted(callback, Normalized(scheduler=False))
    assert not same_weights(module, plain)
    assert same_state(callback.trained_weights(), plain.state_dict())
    assert same_state(callback.averaged_weights(), module.state_dict())
    module.load_state_dict(callback.trained_weights())
    assert same_weights(module, plain)


class Watching(Callback):
    """Keeps the weights as they are in validations and around them."""

    runs_last = True

    def __init__(self):
        self.inside, self.after, self.expected = [], [], []

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0 and not trainer.sanity_checking:
            self.inside.append(copied(module))
            swa = trainer.callbacks[0]
            self.expected.append({name: value.clone() for name, value in swa.averaged_weights().items()})
            self.trained = {name: value.clone() for name, value in swa.trained_weights().items()} or copied(module)

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.after.append(same_state(module.state_dict(), self.trained))


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("evaluate", [True, False])
def test_validations_use_the_averages_where_they_are_asked_to(evaluate):
    watching = Watching()
    callback = StochasticWeightAveraging(0.05, 3, evaluate_averaged=evaluate)
    with_validation, _, _ = fitted(callback, val=batches(2), callbacks=[watching])
    without, _, _ = fitted(StochasticWeightAveraging(0.05, 3))
    assert same_state(with_validation.state_dict(), without.state_dict())
    assert watching.after == [True] * 6
    seen = [bool(b) and same_state(a, b) for a, b in zip(watching.inside, watching.expected, strict=True)]
    assert seen == [False, False, evaluate, evaluate, evaluate, evaluate]
    if evaluate:  # the mean includes the epoch that the validation closes
        assert len({float(weights["net.3.weight"].sum()) for weights in watching.inside[2:]}) == 4


def test_a_failing_validation_leaves_the_weights_of_the_training():
    class Failing(Normalized):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            if self.trainer.current_epoch == 4:
                raise ValueError("asked to")

    callback, module = StochasticWeightAveraging(0.05, 3, evaluate_averaged=True), Failing()
    with pytest.raises(ValueError, match="asked to"):
        fitted(callback, module, val=batches(2))
    plain, _, _ = fitted(StochasticWeightAveraging(0.05, 3), epochs=6, limit_train_batches=8, max_steps=40)
    assert same_state(module.state_dict(), callback.trained_weights())
    assert not same_weights(module, plain)
    assert callback.num_averaged == 3


# ---- Batch normalisation


def test_statistics_are_of_what_the_step_computes_and_leave_no_trace():
    calls = []

    class Own(Normalized):
        def training_step(self, batch, batch_idx):
            calls.append((self.training, torch.is_grad_enabled(), batch_idx))
            torch.rand(1)
            return super().training_step((batch[0] * 2, batch[1]), batch_idx)

    module, trainer, _ = fitted(StochasticWeightAveraging(0.05, 3), Own(), 4, log_every_n_steps=1)
    assert calls[32:] == [(True, True, index) for index in range(8)]
    mean = torch.cat([batch[0] for batch in batches()]).mul(2)
    torch.testing.assert_close(module.net[1].running_mean, module.net[0](mean).mean(0))
    assert module.net[1].momentum == 0.1 and "log" not in vars(module)
    assert trainer.callback_metrics["train_loss_step"].item() == pytest.approx(module.losses[31])


def test_no_pass_is_made_without_batch_normalisation():
    module, _, _ = fitted(StochasticWeightAveraging(0.05, 3), Regression())
    assert len(module.losses) == 48
    module, _, _ = fitted(StochasticWeightAveraging(0.05, 3), Normalized())
    assert len(module.losses) == 56


def test_random_numbers_and_modes_are_as_before():
    class Frozen(Normalized):
        def on_train_start(self):
            self.net[2].eval()

    states = []
    for callback in (StochasticWeightAveraging(0.1, 3), Callback()):
        torch.manual_seed(5)
        module, _, _ = fitted(callback, Frozen(scheduler=False))
        states.append(torch.rand(1))
        assert [part.training for part in module.net] == [True, True, False, True]
    assert torch.equal(*states)


def test_data_that_can_be_used_only_once():
    module, callback = Normalized(), StochasticWeightAveraging(0.05, 1)
    trainer = quiet(max_epochs=1, callbacks=callback, limit_val_batches=0)
    with pytest.warns(FulmenWarning) as caught:
        trainer.fit(module, iter(batches()))
    assert str(caught[0].message) == (
        "[averaged-batch-norm] the training data cannot be passed over once more, so batch normalisation keeps the statistics "
        "of the training's weights; give a loader that can be iterated again"
    )
    assert module.net[1].num_batches_tracked == 8
    assert same_state(module.state_dict(), callback.averaged_weights())


def test_manual_optimization_uses_forward():
    class Manual(Normalized):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(mse(self.net, batch))
            optimizer.step()

    expected, _ = by_hand(normalized(), batches(), 6, 2, scheduler=False)
    module, _, _ = fitted(StochasticWeightAveraging(0.05, 3), Manual(scheduler=False))
    assert same_state(module.net.state_dict(), expected.state_dict())
    with pytest.raises(ConfigurationError) as caught:
        fitted(StochasticWeightAveraging(0.05, 3), Manual(scheduler=True))
    assert str(caught.value) == (
        "StochasticWeightAveraging sets the learning rate, and with manual optimization the schedulers are advanced in "
        "training_step: return none of them from configure_optimizers, or use EMAWeightAveraging"
    )


# ---- Checkpoints


class SaveAt(Callback):
    """Saves after some batch, inside validations, and at the ends of epochs."""

    runs_last = True

    def __init__(self, folder, at=()):
        self.folder, self.at = folder, at

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches in self.at:
            trainer.save_checkpoint(self.folder / f"batch{trainer.progress.batches}.ckpt")

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}.ckpt")

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if trainer.progress.batches in self.at and batch_idx == 0:
            trainer.save_checkpoint(self.folder / f"val{trainer.progress.batches}.ckpt")


POINTS = [f"epoch{n}" for n in range(6)] + [f"batch{n}" for n in (5, 19, 27, 40, 48)] + [f"val{n}" for n in (40, 48)]


@pytest.mark.parametrize("save_averaged", [True, False])
@pytest.mark.parametrize("evaluate", [True, False])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, save_averaged, evaluate):
    options = {"evaluate_averaged": evaluate, "save_averaged": save_averaged, "annealing_epochs": 2}
    make = lambda: StochasticWeightAveraging(0.05, 3, **options)  # noqa: E731
    saver = SaveAt(tmp_path, at=(5, 19, 27, 40, 48))
    whole = make()
    module, _, rates = fitted(whole, val=batches(2), callbacks=[saver])
    for point in POINTS:
        again, resumed, seen = make(), Normalized(), Rates()
        trainer = quiet(max_epochs=6, callbacks=[again, seen])
        trainer.fit(resumed, batches(), batches(2), ckpt_path=tmp_path / f"{point}.ckpt")
        assert same_state(resumed.state_dict(), module.state_dict()), point
        assert same_state(again.trained_weights(), whole.trained_weights()), point
        assert again.num_averaged == whole.num_averaged == 4
        assert seen.found == rates[len(rates) - len(seen.found) :]


@pytest.mark.parametrize("save_averaged", [True, False])
def test_the_weights_in_a_file(tmp_path, save_averaged):
    saver, callback = SaveAt(tmp_path), StochasticWeightAveraging(0.05, 3, save_averaged=save_averaged)
    module, trainer, _ = fitted(callback, callbacks=[saver])
    early, late = (torch.load(tmp_path / f"epoch{n}.ckpt", weights_only=True) for n in (1, 4))
    assert "current_model_state" not in early and ("current_model_state" in late) is save_averaged
    state = late["callbacks"]["StochasticWeightAveraging"]
    assert same_state(late["state_dict"], state["averaged"]) is save_averaged
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    end = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert same_state(end["state_dict"], module.state_dict())
    assert same_state(end["current_model_state"], callback.trained_weights())
    trainer.save_checkpoint(tmp_path / "light.ckpt", weights_only=True)
    light = torch.load(tmp_path / "light.ckpt", weights_only=True)
    assert same_state(light["state_dict"], module.state_dict()) and "current_model_state" not in light
    tested = Normalized()
    quiet().test(tested, batches(2), ckpt_path=tmp_path / "end.ckpt")
    assert same_state(tested.state_dict(), module.state_dict())


def test_an_interrupted_run_keeps_its_weights_and_goes_on(tmp_path):
    class Press(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.progress.batches == 36:
                os.kill(os.getpid(), signal.SIGINT)

    whole, _, _ = fitted(StochasticWeightAveraging(0.05, 3))
    callback = StochasticWeightAveraging(0.05, 3)
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    module, trainer, _ = fitted(callback, callbacks=[Press()], **options)
    assert trainer.interrupted and same_state(callback.trained_weights(), module.state_dict())
    resumed = Normalized()
    trainer = quiet(max_epochs=6, callbacks=StochasticWeightAveraging(0.05, 3), limit_val_batches=0, **options)
    trainer.fit(resumed, batches(), ckpt_path="last")
    assert same_state(resumed.state_dict(), whole.state_dict())


def test_a_signal_ends_the_pass_for_batch_normalisation():
    class Press(Normalized):
        def training_step(self, batch, batch_idx):
            if self.trainer.progress.batches == 48:  # in the pass after the training
                os.kill(os.getpid(), signal.SIGINT)
            return super().training_step(batch, batch_idx)

    callback, module = StochasticWeightAveraging(0.05, 3), Press()
    _, trainer, _ = fitted(callback, module)
    assert trainer.interrupted and len(module.losses) == 49
    assert same_state(callback.trained_weights(), module.state_dict())
    assert module.net[1].num_batches_tracked == 48


def test_an_epoch_that_is_cut_short_is_not_averaged(tmp_path):
    callback = StochasticWeightAveraging(0.05, 3)
    _, trainer, _ = fitted(callback, max_steps=36)
    assert (trainer.global_step, callback.num_averaged) == (36, 2)


def test_a_second_fit_begins_anew():
    callback = StochasticWeightAveraging(0.05, 3)
    first, trainer, _ = fitted(callback)
    second = Normalized()
    trainer.fit(second, batches())
    assert same_state(first.state_dict(), second.state_dict()) and callback.num_averaged == 4


# ---- Options

START = "is not allowed; allowed: a whole number from 1, or a fraction from 0.0 to 1.0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"swa_lrs": 0}, "swa_lrs=0 is not allowed; allowed: a number above 0, or one per parameter group"),
        ({"swa_lrs": []}, "swa_lrs=[] is not allowed; allowed: a number above 0, or one per parameter group"),
        ({"swa_epoch_start": 0}, f"swa_epoch_start=0 {START}"),
        ({"swa_epoch_start": 1.5}, f"swa_epoch_start=1.5 {START}"),
        ({"annealing_epochs": -1}, "annealing_epochs=-1 is not allowed; allowed: a whole number from 0"),
        ({"annealing_strategy": "exp"}, "annealing_strategy='exp' is not allowed; allowed: 'cos', 'linear'"),
        ({"avg_fn": 3}, "avg_fn=3 is not allowed; allowed: a function, or None for the mean"),
    ],
)  # fmt: skip
def test_wrong_options(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        StochasticWeightAveraging(**{"swa_lrs": 0.1, **arguments})
    assert str(caught.value) == message


class TwoOptimizers(Module):
    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return [torch.optim.SGD([self.net.weight], lr=0.1), torch.optim.SGD([self.net.bias], lr=0.1)]


@pytest.mark.parametrize(
    ("callbacks", "module", "options", "message"),
    [
        (
            [StochasticWeightAveraging(0.1)], TwoOptimizers, {},
            "StochasticWeightAveraging works with one optimizer, and configure_optimizers gives 2; EMAWeightAveraging works "
            "with any number",
        ),
        (
            [StochasticWeightAveraging(0.1)], Regression, {"max_epochs": -1, "max_steps": 3},
            "swa_epoch_start=0.8 is a fraction of max_epochs, and this training has none; give the number of the epoch, or "
            "max_epochs",
        ),
        (
            [StochasticWeightAveraging(0.1), EMAWeightAveraging()], Regression, {},
            "StochasticWeightAveraging and EMAWeightAveraging would both put their averages in the place of the weights; keep "
            "one of them",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_training(callbacks, module, options, message):
    with pytest.raises(ConfigurationError) as caught:
        quiet(**{"max_epochs": 2, "callbacks": callbacks, **options}).fit(module(), batches())
    assert str(caught.value) == message


def test_parameters_that_are_replaced_meanwhile():
    class Replacing(Regression):
        def on_train_epoch_end(self):
            if self.current_epoch == 1:
                self.net[0].weight_orig = nn.Parameter(self.net[0].weight.detach().clone())
                del self.net[0].weight
                self.net[0].weight = self.net[0].weight_orig.detach()

    with pytest.raises(ModuleError, match="'weight' of Replacing is gone since its weights are averaged"):
        fitted(StochasticWeightAveraging(0.05, 1), Replacing(), 3)
