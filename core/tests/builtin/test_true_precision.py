"""One number format for parameters, inputs and computation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fulmen import ConfigurationError
from fulmen.builtin.true_precision import TruePrecision
from fulmen.testing import Regression, Validated, batches, mse, network, quiet, same_weights

FORMATS = [("64-true", torch.float64), ("bf16-true", torch.bfloat16)]


class Looking(Validated):
    """Keeps the formats it meets."""

    def training_step(self, batch, batch_idx):
        loss = mse(self.net, batch)
        self.formats = {batch[0].dtype, loss.dtype, torch.zeros(1).dtype, *(p.dtype for p in self.parameters())}
        return loss

    def validation_step(self, batch, batch_idx):
        self.formats.update({batch[0].dtype, self(batch[0]).dtype})
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize(("name", "dtype"), FORMATS)
def test_a_training_has_one_format(name, dtype):
    module, trainer = Looking(), quiet(max_epochs=1, precision=name, num_sanity_val_steps=0)
    trainer.fit(module, batches(2), batches(1))
    assert module.formats == {dtype}
    state = trainer.optimizers[0].state_dict()["state"]
    assert {value.dtype for entry in state.values() for value in entry.values()} == {dtype}
    assert torch.get_default_dtype() == torch.float32
    assert module.dtype == dtype
    (prediction,) = trainer.predict(module, batches(1))
    assert prediction.dtype == dtype


def test_double_precision_equals_a_loop_by_hand():
    data = batches(8)
    model = network().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(7)
    for x, y in data:
        optimizer.zero_grad()
        mse(model, (x.double(), y.double())).backward()
        optimizer.step()
    module = Regression()
    torch.manual_seed(7)
    quiet(max_epochs=1, precision="64-true").fit(module, data)
    assert same_weights(module.net, model)


def test_a_resumed_training_equals_one_that_never_stopped(tmp_path):
    def fitted(epochs, path=None):
        torch.manual_seed(3)
        module, trainer = Regression(), quiet(max_epochs=epochs, precision="64-true")
        trainer.fit(module, batches(4), ckpt_path=path)
        return module, trainer

    whole, _ = fitted(2)
    _, trainer = fitted(1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed, _ = fitted(2, tmp_path / "a.ckpt")
    assert same_weights(whole, resumed)
    assert resumed.dtype == torch.float64


def test_whole_numbers_stay_whole():
    precision = TruePrecision("64-true")
    x, y = precision.convert_input((torch.ones(1), torch.ones(1, dtype=torch.int32)))
    assert (x.dtype, y.dtype) == (torch.float64, torch.int32)
    layer = precision.convert_module(nn.BatchNorm1d(2))
    assert (layer.running_mean.dtype, layer.num_batches_tracked.dtype) == (torch.float64, torch.int64)


def test_a_step_that_fails_leaves_the_default_format():
    def failing():
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        TruePrecision("bf16-true").wrap_step(failing)()
    assert torch.get_default_dtype() == torch.float32


def test_another_name_is_refused():
    with pytest.raises(ConfigurationError) as caught:
        TruePrecision("8-true")
    assert str(caught.value) == "name='8-true' is not one of 64-true, bf16-true"
