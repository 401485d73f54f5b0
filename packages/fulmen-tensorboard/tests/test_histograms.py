"""Histograms of weights and gradients."""

from __future__ import annotations

import pytest
import torch
from eventfiles import read
from fulmen_tensorboard.histograms import histogram

from fulmen import Callback, ConfigurationError
from fulmen.callbacks import HistogramMonitor
from fulmen.loggers import TensorBoardLogger
from fulmen.testing import Failure, Validated, batches, quiet
from fulmen.testing.conformance.measure import Between, DeviceReads


def fit(logger, callbacks, module=None, **options):
    trainer = quiet(**{"max_epochs": 2, "log_every_n_steps": 4, "logger": logger, "callbacks": callbacks, **options})
    trainer.fit(module or Validated(), batches(8), ckpt_path=options.pop("ckpt_path", None))
    return trainer


def steps(logger, tag):
    return [each.step for each in read(logger.log_dir).Histograms(tag)]


class Copies(Callback):
    """Keeps what the histograms must show."""

    def __init__(self):
        self.weights, self.gradients = {}, {}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        step = trainer.progress.updates
        self.weights[step] = module.net[0].weight.detach().clone()
        self.gradients[step] = module.net[0].weight.grad.clone()


@pytest.mark.filterwarnings(r"ignore:\[no-validation-data\]")
class TestTrainings:
    def test_every_n_steps_with_the_values_of_that_step(self):
        logger, copies = TensorBoardLogger(), Copies()
        fit(logger, [HistogramMonitor(every_n_steps=3), copies])
        assert steps(logger, "weights/net.0.weight") == steps(logger, "gradients/net.0.bias") == [2, 5, 8, 11, 14]
        for kind, values in (("weights", copies.weights), ("gradients", copies.gradients)):
            for each in read(logger.log_dir).Histograms(f"{kind}/net.0.weight"):
                found, expected = each.histogram_value, values[each.step]
                assert (found.min, found.max) == pytest.approx((expected.min().item(), expected.max().item()))
                assert (found.num, sum(found.bucket)) == (15, 15)
                assert found.sum == pytest.approx(expected.sum().item(), abs=1e-5)
                assert found.sum_squares == pytest.approx(expected.square().sum().item())

    @pytest.mark.parametrize("kept", ["weights", "gradients"])
    def test_one_kind_alone(self, kept):
        logger = TensorBoardLogger()
        other = {"weights": "gradients", "gradients": "weights"}[kept]
        fit(logger, [HistogramMonitor(8, **{other: False})])
        assert {tag.partition("/")[0] for tag in read(logger.log_dir).Tags()["histograms"]} == {kept}

    def test_by_name(self):
        logger = TensorBoardLogger()
        fit(logger, ["histograms?every_n_steps=16"])
        assert steps(logger, "weights/net.3.bias") == [15]

    def test_with_accumulation_steps_are_counted_not_batches(self):
        logger = TensorBoardLogger()
        fit(logger, [HistogramMonitor(2)], accumulate_grad_batches=2)
        assert steps(logger, "weights/net.0.weight") == [1, 3, 5, 7]

    def test_it_reads_nothing_from_the_device(self):
        class Elsewhere(HistogramMonitor):
            def _write(self, wait):
                self.rows = len(self._pending)  # on a device, they are copied while the training goes on

        reads = {}
        for callback in (Elsewhere(1), None):
            reads[callback is None] = DeviceReads()
            fit(TensorBoardLogger(), [*([callback] if callback else []), Between(reads[callback is None], 2, 6)])
            assert callback is None or callback.rows > 5
        assert reads[False].count == reads[True].count

    def test_a_resumed_run_has_each_once(self):
        class Cut(Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
                if trainer.progress.batches == 5:
                    trainer.save_checkpoint("cut.ckpt")
                if trainer.progress.batches == 7:
                    raise Failure

        with pytest.raises(Failure):
            fit(TensorBoardLogger(), [HistogramMonitor(2), Cut()])
        logger = TensorBoardLogger()
        quiet(max_epochs=2, log_every_n_steps=4, logger=logger, callbacks=[HistogramMonitor(2)]).fit(
            Validated(), batches(8), ckpt_path="cut.ckpt"
        )
        assert steps(logger, "weights/net.0.weight") == [1, 3, 5, 7, 9, 11, 13, 15]

    def test_without_a_logger_for_them(self):
        with pytest.raises(ConfigurationError) as caught:
            fit("csv", [HistogramMonitor()])
        assert str(caught.value) == ("HistogramMonitor needs a TensorBoardLogger: use logger='tensorboard', or drop it")

    def test_fast_dev_run_does_without(self, tmp_path):
        fit("tensorboard", [HistogramMonitor(1)], fast_dev_run=True)
        assert list(tmp_path.iterdir()) == []


def test_two_optimizers_that_step_by_hand_give_one_histogram_each():
    class Manual(Validated):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in (*self.optimizers(), self.optimizers()[0]):  # the first steps twice
                optimizer.zero_grad()
                self.manual_backward(self(batch[0]).square().mean())
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[index].parameters(), 0.1) for index in (0, 3)]

    logger = TensorBoardLogger()
    quiet(max_epochs=1, logger=logger, callbacks=[HistogramMonitor(4)], log_every_n_steps=0, limit_val_batches=0).fit(
        Manual(), batches(8)
    )
    assert steps(logger, "weights/net.0.weight") == steps(logger, "weights/net.3.weight") == [3, 7]


def test_bins_cover_all_finite_values():
    values = torch.cat([torch.linspace(-2, 3, 1000), torch.tensor([torch.nan, torch.inf, -torch.inf])])
    low, high, count, total, squares, *bins = histogram(values).tolist()
    assert (low, high, count, sum(bins)) == (-2, 3, 1000, 1000)
    assert min(bins) >= 14
    assert (total, squares) == pytest.approx((500, torch.linspace(-2, 3, 1000).square().sum().item()), rel=1e-4)


@pytest.mark.parametrize("value", [0.0, 5.0, -1e30])
def test_equal_values_are_in_one_bin(value):
    low, high, count, *_, first = histogram(torch.full((7,), value, dtype=torch.float64)).tolist()[:6]
    assert (low, high, count, first) == pytest.approx((value, value, 7, 7))


def test_a_parameter_without_finite_values_is_left_out():
    logger = TensorBoardLogger()
    module = Validated()
    module.net[0].weight.data.fill_(torch.nan)
    quiet(max_epochs=1, logger=logger, callbacks=[HistogramMonitor(8)], limit_val_batches=0, log_every_n_steps=0).fit(
        module, batches(8)
    )
    assert "weights/net.0.weight" not in read(logger.log_dir).Tags()["histograms"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps=0 is not allowed; allowed: a whole number from 1"),
        (
            {"weights": False, "gradients": False},
            "HistogramMonitor has nothing to write: set weights or gradients, or leave it out",
        ),
    ],
)
def test_arguments_that_cannot_work(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        HistogramMonitor(**arguments)
    assert str(caught.value) == message


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_for_it():

    values = torch.randn(1000, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        counted = histogram(values)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counted[2].item() == 1000
