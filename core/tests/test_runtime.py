"""Accelerator, strategy and precision in a loop of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training import batches, mse, network, same_weights

from fulmen import CheckpointError, ConfigurationError, Runtime


def train(runtime, model, optimizer, data):
    for batch in data:
        optimizer.zero_grad()
        runtime.backward(mse(model, batch))
        runtime.clip_gradients(optimizer, 0.1)
        runtime.step(optimizer)


def test_a_loop_of_ones_own_equals_the_plain_one():
    runtime = Runtime(accelerator="cpu")
    model, optimizer = runtime.setup(network(), torch.optim.SGD, lr=0.1)
    torch.manual_seed(1)
    train(runtime, model, optimizer, runtime.setup_dataloaders(batches()))
    plain = network()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    torch.manual_seed(1)
    for batch in batches():
        optimizer.zero_grad()
        mse(plain, batch).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        optimizer.step()
    assert same_weights(model, plain)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16), (None, torch.float32)]
)
def test_the_precision_reaches_parameters_inputs_and_new_tensors(precision, dtype):
    runtime = Runtime(accelerator="cpu", precision=precision)

    class Noisy(nn.Linear):
        def forward(self, x):
            assert x.dtype == torch.zeros(1).dtype == dtype
            return super().forward(x)

    model = runtime.setup(Noisy(3, 1))
    assert model(torch.ones(2, 3)).dtype == dtype
    assert {key: value.dtype for key, value in model.state_dict().items()} == {"weight": dtype, "bias": dtype}
    with runtime.init_module():
        assert nn.Linear(1, 1).weight.dtype == dtype
    assert torch.get_default_dtype() == torch.float32


def test_one_process_takes_part_in_collectives_with_itself():
    runtime = Runtime(accelerator="cpu")
    data = {"a": torch.tensor([1.0, 2.0])}
    assert torch.equal(runtime.all_reduce(data, "sum")["a"], data["a"])
    assert runtime.all_gather(data) is data
    assert runtime.broadcast("x") == "x"
    runtime.barrier("here")
    assert (runtime.world_size, runtime.global_rank, runtime.is_global_zero) == (1, 0, True)
    assert runtime.launch(lambda a: a + 1, 1) == 2


def test_objects_are_saved_and_loaded(tmp_path):
    runtime = Runtime(accelerator="cpu")
    model, optimizer = runtime.setup(network(), torch.optim.Adam, lr=0.01)
    train(runtime, model, optimizer, batches())
    runtime.save(tmp_path / "a.ckpt", {"model": model, "optimizer": optimizer, "epoch": 3})
    other, other_optimizer = runtime.setup(network(seed=9), torch.optim.Adam, lr=0.5)
    rest = runtime.load(tmp_path / "a.ckpt", {"model": other, "optimizer": other_optimizer})
    assert rest == {"epoch": 3}
    assert same_weights(model, other)
    assert other_optimizer.param_groups[0]["lr"] == 0.01
    with pytest.raises(ConfigurationError) as caught:
        runtime.load(tmp_path / "a.ckpt", {"modell": other})
    assert str(caught.value) == f"{tmp_path / 'a.ckpt'} has no 'modell'; it holds: model, optimizer, epoch"
    with pytest.raises(CheckpointError, match="does not fit Linear"):
        runtime.load(tmp_path / "a.ckpt", {"model": nn.Linear(1, 1)})


def test_loaders_keep_their_length():
    loader = DataLoader(TensorDataset(torch.ones(10, 2)), 3)
    made = Runtime(accelerator="cpu").setup_dataloaders(loader)
    assert len(made) == 4
    assert [len(x) for (x,) in made] == [3, 3, 3, 1]


FAULTS = [
    (
        {"accelerator": "cpu", "devices": 2, "strategy": "single_device"},
        "strategy 'single_device' works on one device of one node, and there are 2 on 1; use strategy='ddp', or devices=1, "
        "num_nodes=1",
    ),
    (
        {"accelerator": "cpu", "devices": -1},
        "devices=-1 does not fit accelerator 'cpu'; allowed are 'auto' (one process) and a number of processes from 1",
    ),
    (
        {"accelerator": "cpu", "devices": [0]},
        "devices=[0] does not fit accelerator 'cpu'; allowed are 'auto' (one process) and a number of processes from 1",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), FAULTS)
def test_parts_that_do_not_fit_say_why(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        Runtime(**arguments)
    assert str(caught.value) == message


def test_a_broken_accelerator_that_nobody_asked_for_is_passed_over(site):
    site.install(
        "broken-device",
        """
        @hookimpl
        def register(registry):
            registry.accelerator("strange", "no_such_module:Strange", summary="does not exist", priority=99)
        """,
    )
    code = "import warnings; warnings.simplefilter('always'); import fulmen; print(fulmen.Runtime().accelerator.name)"
    done = site.python("-c", code)
    assert done.stdout == "cpu\n", done.stderr
    assert "[plugin-broken] accelerator 'strange' of broken-device 1.0 cannot be imported" in done.stderr
