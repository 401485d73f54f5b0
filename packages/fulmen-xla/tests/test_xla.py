"""With torch_xla, on whatever device it has: ``PJRT_DEVICE=CPU`` will do."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from fulmen import Callback, Runtime
from fulmen.testing import RecordingLogger, Regression, Validated, batches, network, quiet, same_weights

pytestmark = pytest.mark.hardware("xla")


class Silent(Validated):
    """Does not read its losses."""

    def training_step(self, batch, batch_idx):
        loss = mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss


def trained(accelerator="xla", module=None, dropout=0.0, **options):
    torch.manual_seed(5)
    module = Silent() if module is None else module
    module.net[2].p = dropout
    trainer = quiet(**{"accelerator": accelerator, "devices": 1, "max_epochs": 2, **options})
    trainer.fit(module, batches(8), batches(2) if isinstance(module, Validated) else None)
    return module, trainer


def compiled():
    import torch_xla.debug.metrics as metrics

    return metrics.counter_value("UncachedCompile") or 0


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.05}], ids=str)
def test_it_learns_what_the_processor_learns(options):
    here, there = trained(**options), trained("cpu", **options)
    assert here[1].runtime.strategy.name == "xla"
    for one, other in zip(here[0].parameters(), there[0].parameters(), strict=True):
        assert one.device.type == "cpu"  # brought back
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    expected = {name: float(value) for name, value in there[1].callback_metrics.items()}
    assert {name: float(value) for name, value in here[1].callback_metrics.items()} == pytest.approx(expected, rel=1e-4)


class Count(Callback):
    """How many graphs were compiled before each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(compiled())


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}], ids=str)
def test_steps_are_the_same_graph(options):
    count = Count()
    trained(callbacks=count, max_epochs=4, log_every_n_steps=0, num_sanity_val_steps=0, **options)
    assert len(set(count.seen[16:])) == 1, count.seen


def test_a_step_does_not_wait_for_the_device():
    """Nothing is brought to the host between two batches."""
    import torch_xla.debug.metrics as metrics

    class Transfers(Callback):
        seen = ()

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            data = metrics.metric_data("TransferFromDeviceTime")
            self.seen = (*self.seen, data[0] if data else 0)

    transfers = Transfers()
    trained(callbacks=transfers, max_epochs=1, log_every_n_steps=0, num_sanity_val_steps=0)
    assert len(transfers.seen) == 8 and len(set(transfers.seen)) == 1


def test_metrics_reach_loggers():
    rows = []
    for accelerator in ("xla", "cpu"):
        logger = RecordingLogger()
        trained(accelerator, logger=logger, log_every_n_steps=2)
        rows.append(logger.rows)
    assert len(rows[0]) == len(rows[1])
    for one, other in zip(*rows, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


class Save(Callback):
    def __init__(self, path, at):
        self.path, self.at = path, at

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == self.at:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("at", [5, 11])
def test_a_resumed_training_equals_one_that_was_not_interrupted(tmp_path, at):
    """With dropout on the device, in the middle of a window of accumulation."""
    options = {"dropout": 0.3, "accumulate_grad_batches": 2}
    whole, _ = trained(callbacks=Save(tmp_path / "a.ckpt", at), **options)
    torch.manual_seed(77)
    resumed = Silent()
    resumed.net[2].p = 0.3
    again = quiet(accelerator="xla", devices=1, max_epochs=2, accumulate_grad_batches=2)
    again.fit(resumed, batches(8), batches(2), ckpt_path=tmp_path / "a.ckpt")
    assert same_weights(whole, resumed)


def test_checkpoints_hold_plain_tensors_of_the_host(tmp_path):
    trained(callbacks=Save(tmp_path / "a.ckpt", 5), accumulate_grad_batches=2)
    devices = []

    def walk(value):
        if isinstance(value, torch.Tensor):
            devices.append(value.device.type)
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            walk(each)

    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    walk(checkpoint)
    assert len(devices) > 10 and set(devices) == {"cpu"}
    assert checkpoint["loops"]["fit_loop"]["gradients"]
    code = "import sys, torch; sys.modules['torch_xla'] = None; torch.load(sys.argv[1], weights_only=True); print('read')"
    command = [sys.executable, "-c", code, str(tmp_path / "a.ckpt")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "read\n"
    there, _ = trained("cpu")
    again = quiet(accelerator="cpu", max_epochs=2, accumulate_grad_batches=2)
    again.fit(there, batches(8), batches(2), ckpt_path=tmp_path / "a.ckpt")  # goes on elsewhere
    assert again.global_step == 8


@pytest.mark.parametrize(("precision", "kept"), [("xla-bf16-mixed", torch.float32), ("xla-bf16-true", torch.bfloat16)])
def test_precisions_compute_in_bfloat16(precision, kept):
    seen = set()

    class Look(Regression):
        def training_step(self, batch, batch_idx):
            prediction = self(batch[0])
            seen.add((prediction.dtype, batch[0].dtype, self.net[0].weight.dtype))
            return mse_loss(prediction, batch[1].to(prediction.dtype))

    module, trainer = trained(module=Look(), precision=precision)
    assert seen == {(torch.bfloat16, kept, kept)}
    assert trainer.global_step == 16
    assert torch.get_default_dtype() == torch.float32
    full, _ = trained(module=Regression(), accelerator="cpu")
    for one, other in zip(module.parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.3, atol=0.1)


def test_testing_and_prediction():
    module, _ = trained()
    xla, cpu = (quiet(accelerator=name, devices=1) for name in ("xla", "cpu"))
    first, second = (trainer.test(module, batches(3), verbose=False)[0] for trainer in (xla, cpu))
    assert first == pytest.approx(second, rel=1e-4)
    for ours, theirs in zip(xla.predict(module, batches(3)), cpu.predict(module, batches(3)), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-5)


def test_figures_count_graphs():
    runtime = Runtime(accelerator="tpu", devices=1)
    runtime.open()
    before = runtime.accelerator.stats(runtime.device)
    (torch.ones(7, device=runtime.device) * 3).sum().item()
    after = runtime.accelerator.stats(runtime.device)
    assert after["graphs_compiled"] + after["graphs_reused"] > before["graphs_compiled"] + before["graphs_reused"]
    runtime.accelerator.synchronize(runtime.device)
    runtime.close()


def test_a_loop_of_ones_own(tmp_path):
    found = []
    for name in ("xla", "cpu"):
        runtime = Runtime(accelerator=name, devices=1)
        net = network()
        net[2] = nn.Identity()
        model, optimizer = runtime.setup(net, torch.optim.SGD, lr=0.1)
        for x, y in runtime.setup_dataloaders(batches(4)):
            optimizer.zero_grad()
            runtime.backward(mse_loss(model(x), y), model)
            runtime.step(optimizer)
        runtime.save(tmp_path / "own.ckpt", {"model": model, "optimizer": optimizer})
        found.append(torch.load(tmp_path / "own.ckpt", weights_only=True)["model"])
        runtime.close()
    for key, value in found[1].items():
        torch.testing.assert_close(found[0][key], value, rtol=1e-4, atol=1e-5)
