"""The exponential moving average against torch.optim.swa_utils: equal bit for bit."""

from __future__ import annotations

import pytest
import torch
from fulmen_swa import EMAWeightAveraging, WeightAveraging
from fulmen_swa.weights import AveragedWeights
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fulmen import Callback, CheckpointError, ConfigurationError, Module
from fulmen.callbacks import EMAWeightAveraging as ByName
from fulmen.testing import Validated, batches, mse, quiet, same_weights


def normalized(width=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 1))


class Normalized(Validated):
    def __init__(self, width=5):
        super().__init__()
        self.net = normalized(width)


def by_hand(data, epochs, decay=0.9, use_buffers=True, when=lambda step, epoch: True, window=1):
    net, step = normalized(), 0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=use_buffers)
    for epoch in range(epochs):
        for index, batch in enumerate(data):
            if index % window == 0:
                optimizer.zero_grad()
            (mse(net, batch) / window).backward()
            if index % window == window - 1:
                optimizer.step()
                if when(step, epoch):
                    averaged.update_parameters(net)
                step += 1
    return net, averaged.module


def fitted(callback, module=None, epochs=3, val=None, **options):
    module = module or Normalized()
    options = {"max_epochs": epochs, "limit_val_batches": 0 if val is None else 1.0, **options}
    trainer = quiet(**{**options, "callbacks": [callback, *options.get("callbacks", [])]})
    trainer.fit(module, batches(), val)
    return module, trainer


def same_state(one, other):
    one, other = dict(one), dict(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def of_net(state):
    return {name.removeprefix("net."): value for name, value in state.items()}


@pytest.mark.parametrize(
    ("options", "hand"),
    [
        ({}, {}),
        ({"decay": 0.5}, {"decay": 0.5}),
        ({"decay": 0.0}, {"decay": 0.0}),
        ({"update_every_n_steps": 3}, {"when": lambda step, epoch: step % 3 == 0}),
        ({"update_starting_at_step": 5}, {"when": lambda step, epoch: step >= 5}),
        ({"update_starting_at_step": 5, "update_every_n_steps": 4}, {"when": lambda step, epoch: step in (8, 12, 16, 20)}),
        ({"update_starting_at_epoch": 1}, {"when": lambda step, epoch: epoch >= 1}),
        ({"device": "cpu"}, {}),
    ],
)
def test_the_average_is_that_of_pytorch(options, hand):
    net, expected = by_hand(batches(), 3, **hand)
    callback = EMAWeightAveraging(**{"decay": 0.9, **options})
    module, _ = fitted(callback)
    assert same_state(module.net.state_dict(), expected.state_dict())
    assert same_state(of_net(callback.trained_weights()), net.state_dict())
    default = by_hand(batches(), 3)[1]
    assert same_state(default.state_dict(), expected.state_dict()) is (options in ({}, {"device": "cpu"}))


def test_buffers_can_be_left_to_the_training():
    _, expected = by_hand(batches(), 3, use_buffers=False)
    callback = EMAWeightAveraging(decay=0.9, use_buffers=False)
    module, _ = fitted(callback)
    assert same_weights(module.net, expected)
    assert len(module.losses) == 32  # 24, and 8 for the statistics of batch normalisation
    assert len(fitted(EMAWeightAveraging(decay=0.9))[0].losses) == 24


def test_steps_are_those_of_the_optimizer():
    _, expected = by_hand(batches(), 3, window=4)
    callback = EMAWeightAveraging(decay=0.9)
    module, _ = fitted(callback, accumulate_grad_batches=4)
    assert same_state(module.net.state_dict(), expected.state_dict()) and callback.num_averaged == 6


def test_a_rule_of_ones_own():
    class Late(EMAWeightAveraging):
        def should_update(self, step, epoch):
            return step in (3, 20)

    callback = Late(decay=0.9)
    module, _ = fitted(callback)
    _, expected = by_hand(batches(), 3, when=lambda step, epoch: step in (3, 20))
    assert same_state(module.net.state_dict(), expected.state_dict()) and isinstance(callback, WeightAveraging)


@pytest.mark.parametrize("evaluate", [True, False])
def test_validations_use_the_average(evaluate):
    losses = []

    class Watching(Normalized):
        def on_validation_epoch_end(self):
            if not self.trainer.sanity_checking:
                weights = of_net(self.trainer.callbacks[0].averaged_weights())
                losses.append(same_state(self.net.state_dict(), weights))

        def on_train_epoch_end(self):
            weights = of_net(self.trainer.callbacks[0].trained_weights())
            losses.append(same_state(self.net.state_dict(), weights))

    module, _ = fitted(EMAWeightAveraging(decay=0.9, evaluate_averaged=evaluate), Watching(), val=batches(2))
    assert losses == [evaluate, True] * 3
    assert same_state(module.net.state_dict(), by_hand(batches(), 3)[1].state_dict())


def test_validation_metrics_are_those_of_the_average():
    _, expected = by_hand(batches(), 1)
    _, trainer = fitted(EMAWeightAveraging(decay=0.9), epochs=1, val=batches(2))
    expected.eval()
    loss = torch.stack([mse(expected, batch) for batch in batches(2)]).mean().item()
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(loss)


class SaveAt(Callback):
    runs_last = True

    def __init__(self, folder, at):
        self.folder, self.at = folder, at

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches in self.at:
            trainer.save_checkpoint(self.folder / f"{trainer.progress.batches}.ckpt")

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if trainer.progress.batches in (16, 24) and batch_idx == 1:
            trainer.save_checkpoint(self.folder / f"val{trainer.progress.batches}.ckpt")


@pytest.mark.parametrize("save_averaged", [True, False])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, save_averaged, device):
    options = {"decay": 0.9, "save_averaged": save_averaged, "update_every_n_steps": 2, "update_starting_at_step": 3}
    make = lambda: EMAWeightAveraging(device=device, **options)  # noqa: E731
    whole = make()
    module, _ = fitted(whole, val=batches(2), callbacks=[SaveAt(tmp_path, (1, 4, 5, 8, 13, 24))])
    for point in ("1", "4", "5", "8", "13", "24", "val16", "val24"):
        again, resumed = make(), Normalized()
        trainer = quiet(max_epochs=3, callbacks=[again])
        trainer.fit(resumed, batches(), batches(2), ckpt_path=tmp_path / f"{point}.ckpt")
        assert same_state(resumed.state_dict(), module.state_dict()), point
        assert same_state(again.trained_weights(), whole.trained_weights()), point
        assert again.num_averaged == whole.num_averaged


@pytest.mark.parametrize("save_averaged", [True, False])
def test_the_weights_in_a_file(tmp_path, save_averaged):
    fitted(EMAWeightAveraging(decay=0.9, save_averaged=save_averaged), callbacks=[SaveAt(tmp_path, (8,))])
    file = torch.load(tmp_path / "8.ckpt", weights_only=True)
    net, expected = by_hand(batches(), 1)
    assert same_state(of_net(file["state_dict"]), (expected if save_averaged else net).state_dict())
    assert ("current_model_state" in file) is save_averaged
    if save_averaged:
        assert same_state(of_net(file["current_model_state"]), net.state_dict())
        without = Normalized()
        quiet().validate(without, batches(1), ckpt_path=tmp_path / "8.ckpt")
        assert same_state(without.net.state_dict(), expected.state_dict())


def test_a_checkpoint_of_another_model(tmp_path):
    class Loose(Normalized):
        strict_loading = False

        def on_load_checkpoint(self, checkpoint):
            checkpoint["state_dict"] = checkpoint["current_model_state"] = {}
            checkpoint["optimizer_states"] = [torch.optim.SGD(self.parameters(), lr=0.1).state_dict()]

    fitted(EMAWeightAveraging(), callbacks=[SaveAt(tmp_path, (8,))])
    with pytest.raises(CheckpointError) as caught:
        quiet(max_epochs=3, callbacks=EMAWeightAveraging()).fit(Loose(7), batches(), batches(2), ckpt_path=tmp_path / "8.ckpt")
    assert str(caught.value) == (
        "the averaged weights of the checkpoint do not fit Loose: missing or unexpected: (none); other shapes: net.0.weight, "
        "net.0.bias, net.1.weight, net.1.bias, net.3.weight, net.1.running_mean, net.1.running_var"
    )


class Tied(Module):
    """Two layers that share a weight, a buffer that is replaced, and two optimizers."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64), persistent=False)

    def training_step(self, batch, batch_idx):
        self.seen = self.seen + 1
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.second(self.first(batch[0])).square().mean())
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([p], lr=0.1) for p in (self.first.weight, self.first.bias, self.second.bias)]


def test_shared_weights_and_buffers_that_are_replaced():
    callback = EMAWeightAveraging(decay=0.5)
    trainer = quiet(max_epochs=1, callbacks=callback)
    module = Tied()
    trainer.fit(module, batches(3))
    assert callback.num_averaged == 3 and trainer.global_step == 9
    assert module.seen.item() == 2.25  # 1, 1.5, 2.25
    assert module.second.weight is module.first.weight
    names = {"first.weight", "first.bias", "second.weight", "second.bias", "seen", "count"}
    assert callback.averaged_weights().keys() == callback.trained_weights().keys() == names
    assert callback.trained_weights()["seen"].item() == 3


def test_the_averaged_buffers_of_rank_zero_can_be_sent_to_others():
    ranks = [AveragedWeights(normalized(), use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9)) for _ in range(2)]
    for rank, weights in enumerate(ranks):
        for seed in range(2):
            weights.module(torch.randn(8, 3, generator=torch.Generator().manual_seed(2 * seed + rank)))
            weights.update()
    first, second = ({name: value.clone() for name, value in rank.named(rank.averaged).items()} for rank in ranks)
    assert not torch.equal(first["1.running_mean"], second["1.running_mean"])
    sent = []
    ranks[0].share_buffers(lambda tensors: sent.append(tensors) or tensors)
    ranks[1].share_buffers(lambda tensors: sent[0])
    assert all(same_state(rank.named(rank.averaged), first) for rank in ranks) and len(sent[0]) == 3


START = "is not allowed; allowed: a whole number from 0, or None"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.5}, "decay=1.5 is not allowed; allowed: a number from 0 to 1"),
        ({"update_every_n_steps": 0}, "update_every_n_steps=0 is not allowed; allowed: a whole number from 1"),
        ({"update_starting_at_step": -1}, f"update_starting_at_step=-1 {START}"),
        ({"update_starting_at_epoch": 0.5}, f"update_starting_at_epoch=0.5 {START}"),
    ],
)  # fmt: skip
def test_wrong_options(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        EMAWeightAveraging(**arguments)
    assert str(caught.value) == message


def test_names():
    trainer = quiet(callbacks="ema?decay=0.5")
    assert ByName is EMAWeightAveraging and trainer.callbacks[0].decay == 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("device", [None, "cpu"])
def test_on_cuda(device):
    callback = EMAWeightAveraging(decay=0.9, device=device)
    module, _ = fitted(callback, accelerator="cuda", devices=1)
    assert callback.num_averaged == 24 and module.device.type == "cpu"
    assert not same_state(callback.averaged_weights(), callback.trained_weights())
