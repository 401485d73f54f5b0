"""One update, against the same loop written by hand: equal losses and weights, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fulmen import ModuleError
from fulmen.builtin.single_device import SingleDevice
from fulmen.testing import Regression, batches, mse, network, quiet, same_weights


def by_hand(data, epochs=2, accumulate=1, clip=None, lr=0.1, seed=7):
    """The loop that a careful person writes: a short last window is divided by its real size."""
    model, losses = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    torch.manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for index, batch in enumerate(data):
            first = index - index % accumulate
            window = min(accumulate, len(data) - first)
            loss = mse(model, batch)
            losses.append(loss.item())
            if index == first:
                optimizer.zero_grad()
            (loss / window if accumulate > 1 else loss).backward()
            if index + 1 == first + window:
                if clip is not None:
                    clip(model.parameters())
                optimizer.step()
    return model, losses


def trained(data, module=None, seed=7, **options):
    module = module or Regression()
    trainer = quiet(max_epochs=2, **options)
    torch.manual_seed(seed)
    trainer.fit(module, data)
    return module, trainer


CASES = {
    "automatic": ({}, {}),
    "accumulated": ({"accumulate_grad_batches": 4}, {"accumulate": 4}),
    "ragged window": ({"accumulate_grad_batches": 3}, {"accumulate": 3}),
    "clipped by norm": ({"gradient_clip_val": 0.1}, {"clip": lambda p: nn.utils.clip_grad_norm_(p, 0.1)}),
    "clipped by value": (
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"clip": lambda p: nn.utils.clip_grad_value_(p, 0.01)},
    ),
    "clipped windows": (
        {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2},
        {"accumulate": 2, "clip": lambda p: nn.utils.clip_grad_norm_(p, 0.1)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_equals_a_loop_by_hand(case):
    options, arguments = CASES[case]
    data = batches()
    model, losses = by_hand(data, **arguments)
    module, trainer = trained(data, **options)
    assert module.losses == losses
    assert same_weights(module.net, model)
    assert trainer.global_step == 2 * -(-len(data) // arguments.get("accumulate", 1))


def test_the_strategy_computes_gradients_where_it_has_a_way_of_its_own():
    class Doubles(SingleDevice):
        def backward(self, module, loss):
            module.backwards = getattr(module, "backwards", 0) + 1
            loss.backward()

    module = Regression()
    quiet(max_epochs=1, strategy=Doubles()).fit(module, batches(3))
    assert module.backwards == 3


def test_an_overridden_optimizer_step_and_backward_change_nothing():
    class Overriding(Regression):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)

        def backward(self, loss):
            loss.backward()

        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            optimizer.zero_grad()

    for accumulate in (1, 3):
        plain, _ = trained(batches(), accumulate_grad_batches=accumulate)
        module, _ = trained(batches(), Overriding(), accumulate_grad_batches=accumulate)
        assert module.losses == plain.losses
        assert same_weights(module, plain)


def test_manual_optimization_equals_automatic():
    class Manual(Regression):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 0.1)
            optimizer.step()

    plain, _ = trained(batches(), gradient_clip_val=0.1)
    module, trainer = trained(batches(), Manual())
    assert module.losses == plain.losses
    assert same_weights(module, plain)
    assert trainer.global_step == 16


def test_two_optimizers_equal_a_loop_by_hand():
    class Pair(Regression):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                self.toggle_optimizer(optimizer)
                loss = mse(self.net, batch)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                self.untoggle_optimizer(optimizer)
                self.losses.append(loss.item())

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[0].parameters(), lr=0.1), torch.optim.Adam(self.net[3].parameters(), lr=0.01)]

    model, losses = network(), []
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[3].parameters(), lr=0.01)]
    torch.manual_seed(7)
    for batch in batches() * 2:
        for optimizer in optimizers:
            loss = mse(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    module, trainer = trained(batches(), Pair())
    assert module.losses == losses
    assert same_weights(module.net, model)
    assert trainer.global_step == 2 * 2 * 8


def test_lbfgs_equals_a_loop_by_hand():
    class Closure(Regression):
        def __init__(self):
            super().__init__()
            self.net[2].p = 0.0

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=4)

    model = network()
    model[2].p = 0.0
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    for batch in batches() * 2:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = mse(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
    module, trainer = trained(batches(), Closure())
    assert same_weights(module.net, model)
    assert trainer.global_step == 16


def test_weighted_sums_accumulate_to_one_large_batch():
    class Weighted(Regression):
        def __init__(self):
            super().__init__()
            self.net[2].p = 0.0
            self.double()

        def training_step(self, batch, batch_idx):
            x, y = batch
            return nn.functional.mse_loss(self.net(x), y, reduction="sum"), len(x)

    x, y = torch.randn(10, 3, dtype=torch.float64), torch.randn(10, 1, dtype=torch.float64)
    whole, _ = trained([(x, y)], Weighted())
    pieces = list(zip(x.split([4, 4, 2]), y.split([4, 4, 2]), strict=True))
    ragged, trainer = trained(pieces, Weighted(), accumulate_grad_batches=3)
    assert trainer.global_step == 2
    for one, other in zip(whole.parameters(), ragged.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_double_precision_is_that_of_a_double_loop():
    data = [(x.double(), y.double()) for x, y in batches()]
    model = network().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(7)
    for batch in data * 2:
        optimizer.zero_grad()
        mse(model, batch).backward()
        optimizer.step()
    module, _ = trained(batches(), precision="64-true")
    assert module.dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
    assert same_weights(module.net, model)


def test_none_skips_a_batch_without_counting_a_step():
    class Skipping(Regression):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx % 2 else {"loss": loss}

    _, trainer = trained(batches(), Skipping())
    assert trainer.global_step == 8


WRONG = {
    "shape": (
        lambda self, loss: loss.expand(2),
        "training_step returned a loss of shape (2,); it must have one element: return loss.mean()",
    ),
    "detached": (
        lambda self, loss: loss.detach(),
        "training_step returned a loss that does not depend on any parameter that is trained: it was detached, made from "
        "a number, or all parameters are frozen",
    ),
    "text": (
        lambda self, loss: "loss",
        "training_step returned str; allowed are the loss as a tensor, a mapping with 'loss', (loss_sum, weight), a mapping "
        "with 'loss_sum' and 'weight', and None to skip the batch",
    ),
    "mapping": (
        lambda self, loss: {"los": loss},
        "training_step returned a mapping with ['los']; allowed are the loss as a tensor, a mapping with 'loss', "
        "(loss_sum, weight), a mapping with 'loss_sum' and 'weight', and None to skip the batch",
    ),
    "not finite": (
        lambda self, loss: loss * float("nan"),
        "training_step returned a loss of nan in epoch 0, batch 0; look at that batch and at the learning rate",
    ),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_a_wrong_loss_says_what_is_wrong(case):
    change, message = WRONG[case]

    class Wrong(Regression):
        def training_step(self, batch, batch_idx):
            return change(self, super().training_step(batch, batch_idx))

    with pytest.raises(ModuleError) as caught:
        trained(batches(), Wrong(), detect_anomaly=case == "not finite")
    assert str(caught.value) == message
