"""Mixed precision against loops written by hand with torch.autocast and torch.amp.GradScaler: equal bit for bit."""

from __future__ import annotations

import pickle

import pytest
import torch
from fulmen_precision import ScaledMixedPrecision
from torch import nn

from fulmen import Callback, CheckpointError, ConfigurationError, FulmenWarning, Module, ModuleError, Runtime
from fulmen.testing import Regression, Validated, batches, mse, network, quiet, same_weights

DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def by_hand(precision, data, *, epochs=2, window=1, clip=None, **options):
    """The loop that PyTorch's documentation shows."""
    model, dtype = network(), DTYPES[precision]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "16-mixed", **options)
    torch.manual_seed(3)
    losses = []
    for _ in range(epochs):
        for index, batch in enumerate(data):
            if index % window == 0:
                optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = mse(model, batch)
            losses.append(loss.item())
            scaler.scale(loss / window).backward()
            if index % window == window - 1:
                if clip is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                scaler.step(optimizer)
                scaler.update()
    return model, losses, scaler


def by_fulmen(precision, data, module=None, *, epochs=2, **options):
    module = module or Regression()
    trainer = quiet(max_epochs=epochs, precision=precision, accelerator="cpu", **options)
    torch.manual_seed(3)
    trainer.fit(module, data)
    return module, trainer


# ---- Equal to a loop by hand


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("window", "clip"), [(1, None), (1, 0.05), (4, None), (4, 0.05)])
def test_a_training_is_that_of_a_loop_by_hand(precision, window, clip):
    data = batches()
    model, losses, _ = by_hand(precision, data, window=window, clip=clip)
    module, _ = by_fulmen(precision, data, accumulate_grad_batches=window, gradient_clip_val=clip)
    assert module.losses == losses
    assert same_weights(module.net, model)
    assert losses != by_fulmen("32-true", data)[0].losses[: len(losses)]


OPTIONS = {"init_scale": 2.0**20, "growth_factor": 3.0, "backoff_factor": 0.25, "growth_interval": 3}


@pytest.mark.parametrize("options", [{name: value} for name, value in OPTIONS.items()] + [OPTIONS])
def test_each_option_of_the_scaler_is_used(options):
    data = batches(12)
    options = {"init_scale": 2.0**20, "growth_interval": 2, **options}
    model, losses, scaler = by_hand("16-mixed", data, **options)
    module, trainer = by_fulmen({"name": "16-mixed", **options}, data)
    precision = trainer.runtime.precision
    assert module.losses == losses and same_weights(module.net, model)
    assert precision.scale == scaler.get_scale()
    default = ScaledMixedPrecision(init_scale=2.0**20, growth_interval=2)
    other = by_fulmen(default, data)[1].runtime.precision
    assert (precision.scale, precision.num_skipped_steps) != (other.scale, other.num_skipped_steps) or len(options) == 2


def test_a_scaler_of_ones_own():
    data = batches()
    _, losses, _ = by_hand("16-mixed", data, init_scale=8.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=5)
    module, trainer = by_fulmen(ScaledMixedPrecision(scaler=scaler), data)
    assert trainer.runtime.precision.scaler is scaler
    assert scaler.get_scale() == 8.0 * 2**3  # 16 steps
    assert len(module.losses) == len(losses)


@pytest.mark.parametrize("name", DTYPES)
def test_the_cache_of_converted_parameters_can_be_switched_off(name):
    class Twice(Regression):
        def training_step(self, batch, batch_idx):
            layer, x = self.net[0], batch[0]
            before = layer(x)
            with torch.no_grad():
                layer.weight.add_(1)
            self.moved = (layer(x) - before).abs().sum().item() > 0
            return before.float().mean()

    assert not by_fulmen(name, batches(1), Twice(), epochs=1)[0].moved
    assert by_fulmen({"name": name, "cache_enabled": False}, batches(1), Twice(), epochs=1)[0].moved


def test_evaluation_and_prediction_use_the_format_too():
    class Seeing(Validated):
        def validation_step(self, batch, batch_idx):
            self.log("in_16_bits", float(self.net(batch[0]).dtype == torch.float16))

    trainer = quiet(precision="16-mixed", accelerator="cpu")
    assert trainer.validate(Seeing(), batches(2)) == [{"in_16_bits": 1.0}]
    assert trainer.predict(Seeing(), batches(1))[0].dtype == torch.float16
    assert not torch.is_autocast_enabled("cpu")


def test_parameters_and_gradients_stay_in_single_precision():
    module, _ = by_fulmen("16-mixed", batches(2), epochs=1)
    assert {p.dtype for p in module.parameters()} == {p.grad.dtype for p in module.parameters()} == {torch.float32}


# ---- Steps that are skipped


class Overflowing(Regression):
    """Makes the gradients of some batches infinite."""

    def __init__(self, at=(), lr=0.1):
        super().__init__(lr)
        self.at = at
        self.weights = []

    def training_step(self, batch, batch_idx):
        self.weights.append(self.net[0].weight.detach().clone())
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if self.trainer.progress.batches in self.at else loss

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_a_step_that_overflows_changes_nothing_and_is_counted():
    module, trainer = by_fulmen(ScaledMixedPrecision(init_scale=64.0), batches(), Overflowing(at=(0, 3, 5)), epochs=1)
    precision = trainer.runtime.precision
    same = [torch.equal(a, b) for a, b in zip(module.weights, module.weights[1:], strict=False)]
    assert [index for index, unchanged in enumerate(same) if unchanged] == [0, 3, 5]
    assert precision.num_skipped_steps == 3
    assert precision.scale == 8.0
    assert trainer.global_step == 8  # as schedulers and max_steps count
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 9)


def test_an_optimizer_that_skips_by_itself():
    """A fused one is told of the overflow on the device, and its step is always called."""

    class Fused(Overflowing):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, fused=True)

    module, trainer = by_fulmen("16-mixed?init_scale=64.0", batches(), Fused(at=(0, 3, 5)), epochs=1)
    same = [torch.equal(a, b) for a, b in zip(module.weights, module.weights[1:], strict=False)]
    assert [index for index, unchanged in enumerate(same) if unchanged] == [0, 3, 5]
    assert (trainer.runtime.precision.num_skipped_steps, trainer.runtime.precision.scale) == (3, 8.0)


@pytest.mark.parametrize("save", [True, False])
def test_a_training_whose_steps_are_skipped_says_so_once(save, tmp_path):
    callbacks = [Saving(tmp_path / "a.ckpt", 22), Saving(tmp_path / "b.ckpt", 23)] if save else []
    with pytest.warns(FulmenWarning) as caught:
        by_fulmen("16-mixed?init_scale=64.0", batches(24), Overflowing(at=list(range(4, 24))), epochs=1, callbacks=callbacks)
    skipped, steps, scale = (18, 22, 0.000244141) if save else (20, 24, 6.10352e-05)
    assert [str(warning.message) for warning in caught] == [
        f"[skipped-steps] {skipped} of {steps} optimizer steps changed nothing, because gradients were infinite or not a "
        f"number, and the gradient scale fell to {scale:g}: look at the loss and the data, or use 'bf16-mixed'"
    ]


def test_a_second_fit_starts_with_a_new_scale():
    trainer = quiet(max_epochs=1, precision="16-mixed?init_scale=64.0", accelerator="cpu")
    for _ in range(2):
        trainer.fit(Overflowing(at=(1,)), batches())
        assert (trainer.runtime.precision.num_skipped_steps, trainer.runtime.precision.scale) == (1, 32.0)


def test_clipping_sees_gradients_without_the_scale():
    seen = []

    class Clipping(Regression):
        def on_after_backward(self):
            seen.append(self.net[0].weight.grad.norm().item())

        def on_before_optimizer_step(self, optimizer):
            seen.append(self.net[0].weight.grad.norm().item())

        def configure_gradient_clipping(self, optimizer, value, algorithm):
            self.clip_gradients(optimizer, value, algorithm)
            seen.append(self.net[0].weight.grad.norm().item())

    by_fulmen("16-mixed?init_scale=1024.0", batches(1), Clipping(), epochs=1, gradient_clip_val=1e-3)
    scaled, unscaled, clipped = seen
    assert scaled == pytest.approx(1024 * unscaled) and clipped <= 1e-3 < unscaled


# ---- Manual optimization


class Manual(Module):
    """Two networks with an optimizer each."""

    def __init__(self, both_first=True, clip=None):
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = network(0), network(1)
        self.both_first, self.clip = both_first, clip

    def training_step(self, batch, batch_idx):
        one, two = self.optimizers()
        one.zero_grad()
        two.zero_grad()
        losses = [mse(self.first, batch), mse(self.second, batch)]
        self.manual_backward(losses[0])
        if self.both_first:
            self.manual_backward(losses[1])
        self.update(one)
        if not self.both_first:
            self.manual_backward(losses[1])
        self.update(two)

    def update(self, optimizer):
        if self.clip is not None:
            self.clip_gradients(optimizer, self.clip)
        optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.first.parameters(), lr=0.1), torch.optim.SGD(self.second.parameters(), lr=0.2)]


def manual_by_hand(data, both_first, clip, **options):
    nets = [network(0), network(1)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=lr) for net, lr in zip(nets, (0.1, 0.2), strict=True)]
    scaler = torch.amp.GradScaler("cpu", **options)
    torch.manual_seed(3)

    def step(index):
        if clip is not None:
            scaler.unscale_(optimizers[index])
            nn.utils.clip_grad_norm_(nets[index].parameters(), clip)
        scaler.step(optimizers[index])

    for batch in data:
        for optimizer in optimizers:
            optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            losses = [mse(net, batch) for net in nets]
        scaler.scale(losses[0]).backward()
        if both_first:
            scaler.scale(losses[1]).backward()
        step(0)
        if not both_first:
            scaler.update()
            scaler.scale(losses[1]).backward()
        step(1)
        scaler.update()
    return nets, scaler


@pytest.mark.parametrize("both_first", [True, False])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_several_optimizers_see_the_scale_of_their_backward_pass(both_first, clip):
    data, options = batches(), {"init_scale": 2.0**18, "growth_interval": 2}
    nets, scaler = manual_by_hand(data, both_first, clip, **options)
    module, trainer = by_fulmen({"name": "16-mixed", **options}, data, Manual(both_first, clip), epochs=1)
    assert same_weights(module.first, nets[0]) and same_weights(module.second, nets[1])
    assert trainer.runtime.precision.scale == scaler.get_scale()
    assert trainer.global_step == 16


def test_gradients_that_were_not_scaled_are_refused():
    class Direct(Manual):
        def training_step(self, batch, batch_idx):
            mse(self.first, batch).backward()
            self.optimizers()[0].step()

    with pytest.raises(ModuleError) as caught:
        by_fulmen("16-mixed", batches(1), Direct())
    assert str(caught.value) == (
        "the gradients of SGD were computed without the gradient scale of precision '16-mixed': call "
        "self.manual_backward(loss), or runtime.backward(loss), instead of loss.backward()"
    )


@pytest.mark.parametrize("set_to_none", [True, False])
def test_unscaled_gradients_must_be_applied_or_reset(set_to_none):
    class Dropping(Manual):
        def training_step(self, batch, batch_idx):
            one, _ = self.optimizers()
            self.manual_backward(mse(self.first, batch))
            self.clip_gradients(one, 1.0)
            if batch_idx % 2:
                one.step()
            one.zero_grad(set_to_none=set_to_none)

    if set_to_none:
        _, trainer = by_fulmen("16-mixed?init_scale=64.0&growth_interval=1", batches(4), Dropping(), epochs=1)
        assert trainer.global_step == 2 and trainer.runtime.precision.scale == 64.0 * 2**4
        return
    with pytest.raises(ModuleError) as caught:
        by_fulmen("16-mixed", batches(4), Dropping())
    assert str(caught.value) == (
        "gradients of SGD were unscaled or clipped, and neither applied nor reset before the next backward pass: call its "
        "step() or zero_grad() first"
    )


def test_an_optimizer_without_gradients_steps_as_without_a_scaler():
    class Idle(Manual):
        def training_step(self, batch, batch_idx):
            one, two = self.optimizers()
            self.manual_backward(mse(self.first, batch))
            two.step()
            one.step()

    module, trainer = by_fulmen("16-mixed", batches(2), Idle(), epochs=1)
    assert same_weights(module.second, network(1)) and not same_weights(module.first, network(0))
    assert trainer.global_step == 4


# ---- Closures


class ByClosure(Regression):
    def __init__(self, skip=()):
        super().__init__()
        self.skip = skip

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        if batch_idx in self.skip:
            optimizer_closure()
        else:
            optimizer.step(closure=optimizer_closure)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_module_that_overrides_optimizer_step(clip):
    data = batches()
    model, losses, _ = by_hand("16-mixed", data, clip=clip)
    module, _ = by_fulmen("16-mixed", data, ByClosure(), gradient_clip_val=clip)
    assert module.losses == losses and same_weights(module.net, model)


def test_an_update_that_the_module_leaves_out():
    module, trainer = by_fulmen("16-mixed?init_scale=64.0", batches(3), ByClosure(skip=(0, 1, 2)), epochs=1)
    assert same_weights(module.net, network()) and trainer.runtime.precision.num_skipped_steps == 0
    module, _ = by_fulmen("16-mixed?init_scale=64.0", batches(3), ByClosure(skip=(0, 2)), epochs=1)
    assert not same_weights(module.net, network())


def test_batches_without_a_loss_update_nothing():
    class Choosy(ByClosure):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    _, trainer = by_fulmen("16-mixed", batches(4), Choosy(), epochs=1)
    assert trainer.global_step == 2


class WithLBFGS(Regression):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=2)


def test_lbfgs_works_without_a_scaler_and_is_refused_with_one():
    module, _ = by_fulmen("bf16-mixed", batches(2), WithLBFGS(), epochs=1)
    assert not same_weights(module.net, network())
    with pytest.raises(ConfigurationError) as caught:
        by_fulmen("16-mixed", batches(2), WithLBFGS())
    assert str(caught.value) == (
        "LBFGS evaluates the loss several times per step, and a gradient scale allows one: use precision 'bf16-mixed' or "
        "'32-true', or another optimizer"
    )


# ---- Resume


class Saving(Callback):
    def __init__(self, path, after):
        self.path, self.after = path, after

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == self.after:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("after", [1, 2, 5, 8, 11])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, after, accumulate):
    precision = {"name": "16-mixed", "init_scale": 2.0**20, "growth_interval": 2}
    path, options = (
        tmp_path / "a.ckpt",
        {"accumulate_grad_batches": accumulate, "callbacks": Saving(tmp_path / "a.ckpt", after)},
    )
    whole, first = by_fulmen(precision, batches(), Overflowing(at=(4, 10)), **options)
    trainer = quiet(max_epochs=2, precision=precision, accelerator="cpu", accumulate_grad_batches=accumulate)
    resumed = Overflowing(at=(4, 10))
    trainer.fit(resumed, batches(), ckpt_path=path)
    assert resumed.losses == whole.losses[after:]
    assert same_weights(resumed, whole)
    for name in ("num_skipped_steps", "scale"):
        assert getattr(trainer.runtime.precision, name) == getattr(first.runtime.precision, name)
    assert first.runtime.precision.num_skipped_steps > 2


def test_what_is_in_a_checkpoint(tmp_path):
    by_fulmen("16-mixed?init_scale=64.0", batches(), Overflowing(at=(1,)), callbacks=Saving(tmp_path / "a.ckpt", 4))
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["precision"] == {
        "scale": 32.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 2,
        "num_skipped_steps": 1,
    }  # fmt: skip


def test_a_checkpoint_of_another_precision(tmp_path):
    by_fulmen("bf16-mixed", batches(), callbacks=Saving(tmp_path / "a.ckpt", 4))
    trainer = quiet(max_epochs=1, precision="16-mixed", accelerator="cpu")
    with pytest.warns(FulmenWarning) as caught:
        trainer.fit(Regression(), batches(), ckpt_path=tmp_path / "a.ckpt")
    assert str(caught[0].message) == (
        "[gradient-scale] the checkpoint was written in another precision and has no gradient scale; '16-mixed' starts with "
        "65536"
    )
    by_fulmen("16-mixed", batches(), callbacks=Saving(tmp_path / "b.ckpt", 4))
    module = Regression()
    quiet(max_epochs=1, precision="bf16-mixed", accelerator="cpu").fit(module, batches(), ckpt_path=tmp_path / "b.ckpt")
    assert len(module.losses) == 4


# ---- Devices, processes


@pytest.mark.parametrize("name", DTYPES)
def test_a_precision_can_be_sent_to_another_process(name):
    _, trainer = by_fulmen(name, batches(2), epochs=1)
    copied = pickle.loads(pickle.dumps(trainer.runtime.precision))
    assert copied.state_dict() == trainer.runtime.precision.state_dict()


# ---- A loop of one's own


@pytest.mark.parametrize("name", DTYPES)
def test_a_loop_of_ones_own(name):
    data = batches()
    expected, losses, _ = by_hand(name, data, epochs=1, clip=0.05)
    runtime = Runtime(accelerator="cpu", precision=name)
    model, optimizer = runtime.setup(network(), torch.optim.SGD, lr=0.1, momentum=0.9)
    torch.manual_seed(3)
    found = []
    for x, y in data:
        optimizer.zero_grad()
        with runtime.autocast():
            loss = nn.functional.mse_loss(model(x), y)
        found.append(loss.item())
        runtime.backward(loss)
        runtime.clip_gradients(optimizer, 0.05)
        runtime.step(optimizer)
    assert found == losses and same_weights(model, expected)
    if name == "16-mixed":
        with pytest.raises(ConfigurationError) as caught:
            runtime.clip_gradients(model, 1.0)
        assert str(caught.value) == (
            "the gradients of a module cannot be clipped in precision '16-mixed', which scales them for each optimizer: pass "
            "the optimizer to clip_gradients"
        )
    runtime.close()


def test_a_run_with_autocast_leaves_nothing_behind():
    with pytest.raises(CheckpointError, match="nowhere"):
        quiet(max_epochs=1, precision="16-mixed", accelerator="cpu").fit(Regression(), batches(), ckpt_path="nowhere.ckpt")
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("fused", [False, True])
def test_on_cuda(name, fused):
    class Fused(Overflowing):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.1, fused=fused)

    at = (2,) if name == "16-mixed" else ()
    trainer = quiet(max_epochs=2, precision=name, accelerator="cuda", devices=1, gradient_clip_val=1.0)
    trainer.fit(Fused(at=at), batches())
    assert trainer.global_step == 16
    if at:
        assert trainer.runtime.precision.num_skipped_steps == 1
