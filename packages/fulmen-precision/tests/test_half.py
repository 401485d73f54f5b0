"""float16 throughout, against a loop by hand."""

from __future__ import annotations

import torch

from fulmen import Runtime
from fulmen.testing import Regression, batches, mse, network, quiet, same_weights


def test_a_training_in_half_precision_is_that_of_a_loop_by_hand():
    model = network().half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(3)
    losses = []
    for batch in batches():
        optimizer.zero_grad()
        loss = mse(model, [part.half() for part in batch])
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    module = Regression()
    torch.manual_seed(3)
    quiet(max_epochs=1, precision="16-true", accelerator="cpu").fit(module, batches())
    assert module.losses == losses and same_weights(module.net, model)
    assert module.dtype == torch.float16


def test_new_tensors_have_the_format_in_steps_only():
    class Making(Regression):
        def training_step(self, batch, batch_idx):
            self.made, self.whole = torch.zeros(1).dtype, torch.zeros(1, dtype=torch.int64).dtype
            return super().training_step(batch, batch_idx)

    module = Making()
    quiet(max_epochs=1, precision="16-true", accelerator="cpu").fit(module, batches(1))
    assert (module.made, module.whole) == (torch.float16, torch.int64)
    assert torch.zeros(1).dtype == torch.float32


def test_integers_of_a_batch_are_left_alone():
    runtime = Runtime(accelerator="cpu", precision="16-true")
    floats, ints = runtime.precision.convert_input((torch.zeros(1), torch.zeros(1, dtype=torch.int64)))
    assert (floats.dtype, ints.dtype) == (torch.float16, torch.int64)
    with runtime.init_module():
        assert torch.nn.Linear(1, 1).weight.dtype == torch.float16
    with runtime.autocast():
        assert torch.ones(1).dtype == torch.float16
