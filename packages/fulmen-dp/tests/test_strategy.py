"""Results equal those of one device on the whole batch. The processor plays several devices."""

from __future__ import annotations

import pytest
import torch
from fulmen_dp import DataParallelStrategy
from torch import nn

from fulmen import Callback, ConfigurationError, Module, ModuleError, Runtime
from fulmen.testing import RecordingLogger, Regression, Validated, batches, network, quiet


def without_dropout(module):
    module.net[2] = nn.Identity()
    return module


def trained(cls=Validated, devices=1, data=None, **options):
    module = without_dropout(cls())
    strategy = "dp" if devices > 1 else "auto"
    options = {"max_epochs": 2, "accelerator": "cpu", **options}
    trainer = quiet(devices=devices, strategy=strategy, **options)
    data = batches(6, size=5) if data is None else data
    trainer.fit(module, data, batches(3, size=5, seed=2) if isinstance(module, Validated) else None)
    return module, trainer


def assert_equal_training(first, second):
    for one, other in zip(first[0].parameters(), second[0].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    expected, found = first[1].callback_metrics, second[1].callback_metrics
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_weights_and_metrics_equal_those_of_one_device(devices):
    """Batches of 5 on 2, 3 and 8 devices: uneven shares, and fewer samples than devices."""
    assert_equal_training(trained(), trained(devices=devices))


@pytest.mark.parametrize(
    "options", [{"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.01}, {"precision": "64-true"}], ids=str
)
def test_with_other_options_too(options):
    assert_equal_training(trained(**options), trained(devices=2, **options))


def test_batches_of_one_sample_run_as_they_are():
    data = batches(4, size=1)
    assert_equal_training(trained(data=data), trained(devices=2, data=data))


class Sums(Regression):
    """Returns a sum and its weight."""

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self(batch[0]), batch[1], reduction="sum")
        return loss, batch[0].shape[0]


class SumsByName(Sums):
    def training_step(self, batch, batch_idx):
        loss, weight = super().training_step(batch, batch_idx)
        return {"loss_sum": loss, "weight": torch.tensor(weight)}


class ByName(Regression):
    def training_step(self, batch, batch_idx):
        prediction = self(batch[0])
        return {"loss": nn.functional.mse_loss(prediction, batch[1]), "prediction": prediction.detach()}


class OneElement(Regression):
    def training_step(self, batch):  # without an index
        return nn.functional.mse_loss(self(batch[0]), batch[1]).view(1)


@pytest.mark.parametrize("cls", [Sums, SumsByName, ByName, OneElement])
def test_all_forms_of_losses_are_merged(cls):
    assert_equal_training(trained(cls), trained(cls, devices=2))


def test_outputs_reach_callbacks_as_for_the_whole_batch():
    class Keep(Callback):
        def __init__(self):
            self.shapes = []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.shapes.append((outputs["prediction"].shape[0], batch[0].shape[0], outputs["loss"].shape))

    keep = Keep()
    trained(ByName, devices=2, callbacks=keep, max_epochs=1)
    assert keep.shapes == [(5, 5, ())] * 6


class Skips(Regression):
    """One share of a batch, or all, have no loss."""

    def training_step(self, batch, batch_idx):
        return None if batch[0][0, 0] < 0 else super().training_step(batch, batch_idx)


def test_a_share_without_a_loss_is_left_out_and_a_batch_without_one_is_skipped():
    x, y = torch.ones(4, 3), torch.ones(4, 1)
    half, none = torch.cat([x[:2], -x[:2]]), -x
    first, _ = trained(Skips, devices=2, data=[(half, y), (none, y)], max_epochs=1)
    second, trainer = trained(Skips, data=[(x[:2], y[:2])], max_epochs=1)
    assert trainer.global_step == 1
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other)


# ---- training_step_end and the like


class Ends(Validated):
    """The loss is computed from the predictions of the whole batch."""

    def training_step(self, batch, batch_idx):
        return {"prediction": self(batch[0]), "target": batch[1], "size": torch.tensor(len(batch[0]))}

    def training_step_end(self, outputs):
        self.sizes = outputs["size"].tolist()
        loss = nn.functional.mse_loss(outputs["prediction"], outputs["target"])
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        return self(batch[0]), batch[1]

    def validation_step_end(self, outputs):
        self.log("val_loss", nn.functional.mse_loss(*outputs))


@pytest.mark.parametrize(("devices", "sizes"), [(2, [3, 2]), (8, [1] * 5)])
def test_the_module_may_merge_outputs_itself(devices, sizes):
    found = trained(Ends, devices=devices)
    assert found[0].sizes == sizes
    assert_equal_training(trained(), found)


def test_it_is_called_with_one_device_too():
    module = without_dropout(Ends())
    quiet(strategy="dp", devices=1, accelerator="cpu", max_epochs=1).fit(module, batches(2), batches(1))
    assert module.sizes == [4]


def test_other_strategies_say_that_it_is_never_called():
    with pytest.raises(ModuleError, match=r"Ends\.training_step_end would never be called"):
        quiet(max_epochs=1).fit(Ends(), batches(1), batches(1))


# ---- Testing and prediction


def test_test_and_prediction_equal_those_of_one_device():
    module, data = without_dropout(Validated()), batches(3, size=5)
    one, two = (quiet(accelerator="cpu", devices=count, strategy=name) for count, name in ((1, "auto"), (2, "dp")))
    assert two.test(module, data, verbose=False)[0] == pytest.approx(one.test(module, data, verbose=False)[0])
    for ours, theirs in zip(two.predict(module, data), one.predict(module, data), strict=True):
        torch.testing.assert_close(ours, theirs)


# ---- Logging


class Logs(Regression):
    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.mse_loss(self(x), y)
        self.log("mean", x.mean(), on_epoch=True)
        self.log("sum", float(x.sum()), reduce_fx="sum", on_step=False, on_epoch=True)
        self.log("low", x.min(), reduce_fx="min", on_epoch=True, prog_bar=True)
        self.log("high", float(x.max()), reduce_fx="max", on_epoch=True, logger=False)
        self.log_dict({"weighted": x.mean()}, on_step=False, on_epoch=True, batch_size=len(x) * 10)
        return loss


def test_what_steps_log_is_counted_once_with_the_size_of_the_batch():
    data = [*batches(3, size=5), *batches(2, size=3, seed=4)]
    rows = []
    for devices in (1, 2):
        logger = RecordingLogger()
        module, trainer = trained(Logs, devices, data, logger=logger, log_every_n_steps=1, max_epochs=1)
        rows.append((logger.rows, trainer.callback_metrics, trainer.progress_bar_metrics))
        assert "log" not in vars(module)
    assert len(rows[0][0]) == len(rows[1][0]) == 6
    for one, other in zip(rows[0][0], rows[1][0], strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    for index in (1, 2):
        assert {k: float(v) for k, v in rows[1][index].items()} == pytest.approx(
            {k: float(v) for k, v in rows[0][index].items()}, rel=1e-5
        )


class Stateful:
    def update(self): ...

    def compute(self):
        return 1.0

    def reset(self): ...


def test_objects_that_count_by_themselves_are_refused():
    class LogsObject(Regression):
        def training_step(self, batch, batch_idx):
            self.log("accuracy", Stateful())
            return super().training_step(batch, batch_idx)

    with pytest.raises(ModuleError) as caught:
        trained(LogsObject, devices=2)
    assert str(caught.value) == (
        "self.log('accuracy', Stateful) in a step under strategy 'dp': each device would update a copy of its own; update and "
        "log it in training_step_end, or in a hook"
    )


# ---- State


class Counts(Regression):
    """Counts calls in a buffer and in an attribute."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen = 0

    def training_step(self, batch, batch_idx):
        self.calls += 1
        self.seen += 1
        return super().training_step(batch, batch_idx)


def test_the_first_share_keeps_what_it_sets():
    module, _ = trained(Counts, devices=2, max_epochs=1)
    assert (module.calls.item(), module.seen) == (6, 6)
    assert len(module.losses) == 12  # attributes that are not set anew are shared


def test_a_resumed_training_equals_one_that_was_not_interrupted(tmp_path):
    whole, trainer = trained(devices=2, max_epochs=2)
    _, half = trained(devices=2, max_epochs=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = without_dropout(Validated())
    again = quiet(accelerator="cpu", devices=3, strategy="dp", max_epochs=2)  # the number of devices may change
    again.fit(resumed, batches(6, size=5), batches(3, size=5, seed=2), ckpt_path=tmp_path / "half.ckpt")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert trainer.global_step == again.global_step


def test_an_error_in_a_step_comes_through_and_leaves_nothing_behind():
    class Fails(Regression):
        def training_step(self, batch, batch_idx):
            raise ValueError("as asked")

    module = Fails()
    with pytest.raises(ValueError, match="as asked"):
        quiet(accelerator="cpu", devices=2, strategy="dp", max_epochs=1).fit(module, batches(1))
    assert "log" not in vars(module)


# ---- Refused


def test_manual_optimization_is_refused():
    class Manual(Regression):
        automatic_optimization = False

    with pytest.raises(ModuleError) as caught:
        trained(Manual, devices=2)
    assert str(caught.value) == (
        "Manual sets automatic_optimization = False, and strategy 'dp' would step its optimizers once for each share of a "
        "batch; use one device, or strategy='ddp'"
    )


def test_several_nodes_are_refused():
    with pytest.raises(ConfigurationError) as caught:
        Runtime(accelerator="cpu", devices=2, num_nodes=2, strategy="dp")
    assert str(caught.value) == "strategy 'dp' works in one process, and num_nodes=2; use strategy='ddp'"


# ---- A loop of one's own


def test_a_loop_of_ones_own_splits_the_inputs_of_forward(tmp_path):
    results = []
    for devices, strategy in ((1, "auto"), (2, DataParallelStrategy())):
        runtime = Runtime(accelerator="cpu", devices=devices, strategy=strategy)
        net = network()
        net[2] = nn.Identity()
        sizes = []
        net[0].register_forward_hook(lambda module, args, output, sizes=sizes: sizes.append(len(args[0])))
        model, optimizer = runtime.setup(net, torch.optim.SGD, lr=0.1)
        for x, y in batches(3, size=5):
            optimizer.zero_grad()
            runtime.backward(nn.functional.mse_loss(model(x), y))
            runtime.step(optimizer)
        runtime.save(tmp_path / "own.ckpt", {"model": model})
        runtime.load(tmp_path / "own.ckpt", {"model": model})
        net.note = "of the module"
        assert model.note == "of the module"
        results.append((sizes, net.state_dict()))
        runtime.close()
    assert (results[0][0], results[1][0]) == ([5, 5, 5], [3, 2] * 3)
    assert torch.load(tmp_path / "own.ckpt", weights_only=True)["model"].keys() == results[0][1].keys()
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value, rtol=1e-5, atol=1e-6)


# ---- On GPUs


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA devices")
def test_two_gpus_equal_the_processor():
    seen = set()

    class Devices(Validated):
        def training_step(self, batch, batch_idx):
            seen.add((batch[0].device, self.device, next(self.parameters()).device))
            return super().training_step(batch, batch_idx)

    found = trained(Devices, devices=2, accelerator="cuda")
    assert seen == {(torch.device("cuda", i),) * 3 for i in (0, 1)}
    assert_equal_training(trained(), (found[0], found[1]))


def test_a_module_with_a_shared_layer_keeps_it_shared():
    class Tied(Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def training_step(self, batch, batch_idx):
            assert self.second.weight is self.first.weight
            assert len(list(self.parameters())) == 3
            return self.second(self.first(batch[0])).pow(2).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Tied()
    quiet(accelerator="cpu", devices=2, strategy="dp", max_epochs=1).fit(module, batches(2))
    assert module.second.weight is module.first.weight
