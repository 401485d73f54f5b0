"""Accelerator, strategy and precision joined, in a loop of one's own."""

from __future__ import annotations

import doctest
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen import (
    Accelerator,
    CheckpointError,
    ConfigurationError,
    FulmenWarning,
    Launcher,
    PluginError,
    PluginSet,
    Precision,
    Runtime,
    Strategy,
    runtime,
)
from fulmen.runtime import DeviceLoader, choose_accelerator, detect_environment
from fulmen.testing import FakeAccelerator, Regression, Validated, batches, mse, network, quiet, same_weights


def trained(runtime_: Runtime | None, steps: int = 6) -> tuple[nn.Module, list[float]]:
    """A loop by hand, and the same loop with a runtime."""
    model, losses = network(), []
    data: Iterator = iter(batches(steps))
    if runtime_ is None:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    else:
        model, optimizer = runtime_.setup(model, torch.optim.Adam, lr=0.1)
        data = iter(runtime_.setup_dataloaders(batches(steps)))
    torch.manual_seed(1)
    for batch in data:
        optimizer.zero_grad()
        loss = mse(model, batch)
        if runtime_ is None:
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        else:
            runtime_.backward(loss)
            runtime_.clip_gradients(optimizer, 0.5)
            runtime_.step(optimizer)
        losses.append(loss.item())
    return model, losses


def test_a_loop_of_ones_own_equals_one_without_fulmen():
    (plain, losses), (model, same) = trained(None), trained(Runtime(accelerator="cpu"))
    assert losses == same
    assert same_weights(plain, model)


def test_the_example_runs():
    found = doctest.testmod(runtime, extraglobs={"Runtime": Runtime, "nn": nn, "torch": torch})
    assert (found.failed, found.attempted) == (0, 5)


def test_what_it_says_of_itself():
    found = Runtime(accelerator="cpu")
    assert str(found.device) == "cpu"
    assert (found.world_size, found.global_rank, found.local_rank, found.node_rank) == (1, 0, 0, 0)
    assert (found.is_global_zero, found.must_launch, found.num_nodes) == (True, False, 1)
    assert (found.strategy.name, found.precision.name, found.environment) == ("single_device", "32-true", None)
    assert [str(device) for device in found.devices] == ["cpu"]


def test_collectives_of_one_process(capsys):
    found = Runtime(accelerator="cpu")
    data = {"a": [torch.tensor(2.0)], "b": "text"}
    assert found.all_reduce(data) == data
    assert found.all_gather(data) is data
    assert found.broadcast("value") == "value"
    assert found.barrier() is None
    assert found.launch(lambda a, b: a + b, 1, 2) == 3
    found.print("hello", end="!\n")
    assert capsys.readouterr().out == "hello!\n"


def test_objects_are_saved_and_take_their_state_back(tmp_path):
    found = Runtime(accelerator="cpu")
    model, optimizer = found.setup(network(), torch.optim.Adam)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    mse(model, batches(1)[0]).backward()
    optimizer.step()
    scheduler.step()
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    found.save(tmp_path / "a.ckpt", {**parts, "epoch": 3})
    new, new_optimizer = found.setup(network(1), torch.optim.Adam)
    new_scheduler = torch.optim.lr_scheduler.StepLR(new_optimizer, 1)
    rest = found.load(
        tmp_path / "a.ckpt", {"model": new, "optimizer": new_optimizer, "scheduler": new_scheduler, "epoch": None}
    )
    assert rest == {"epoch": 3}
    assert same_weights(new, model)
    assert new_scheduler.last_epoch == 1
    assert new_optimizer.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    assert set(torch.load(tmp_path / "a.ckpt", weights_only=True)) == {"model", "optimizer", "scheduler", "epoch"}
    assert set(found.load(tmp_path / "a.ckpt")) == {"model", "optimizer", "scheduler", "epoch"}


def test_a_file_without_what_is_wanted(tmp_path):
    found = Runtime(accelerator="cpu")
    path = tmp_path / "a.ckpt"
    found.save(path, {"model": nn.Linear(1, 1)})
    with pytest.raises(ConfigurationError) as caught:
        found.load(path, {"modle": nn.Linear(1, 1)})
    assert str(caught.value) == f"{path} has no 'modle'; it holds: model"
    with pytest.raises(CheckpointError) as caught:
        found.load(path, {"model": nn.Linear(2, 1)})
    assert str(caught.value).startswith(
        f"{path} does not fit Linear: missing keys: (none); unexpected keys: (none); wrong shapes: weight (1, 1) for (1, 2)."
    )
    with pytest.raises(CheckpointError, match="which a checkpoint cannot hold"):
        found.save(path, {"function": print})


# ---- Precision


@pytest.mark.parametrize(("name", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_one_format_throughout(tmp_path, name, dtype):
    found = Runtime(accelerator="cpu", precision=name)
    before = torch.get_default_dtype()
    original = network()
    model, optimizer = found.setup(original, torch.optim.SGD, lr=0.1)
    x, y = next(iter(found.setup_dataloaders(batches(1))))
    output = model(x)
    assert (x.dtype, output.dtype) == (torch.float32, dtype)
    found.backward(nn.functional.mse_loss(output, y.to(dtype)))
    assert {parameter.grad.dtype for parameter in model.parameters()} == {dtype}
    found.step(optimizer)
    with found.autocast():
        assert torch.zeros(1).dtype == dtype
    with found.init_module():
        assert nn.Linear(1, 1).weight.dtype == dtype
    assert torch.get_default_dtype() == before
    assert list(model.state_dict()) == list(original.state_dict())  # no prefix, so that the file fits the bare module
    found.save(tmp_path / "a.ckpt", {"model": model})
    other = Runtime(accelerator="cpu")
    other.load(tmp_path / "a.ckpt", {"model": network(1)})
    model.load_state_dict(original.state_dict())
    original.extra = 3
    assert model.extra == 3


SPELLINGS = [(None, "32-true"), (32, "32-true"), ("32", "32-true"), (64, "64-true"), ("64-true", "64-true")]


@pytest.mark.parametrize(("given", "name"), SPELLINGS)
def test_spellings_of_precisions(given, name):
    assert Runtime(accelerator="cpu", precision=given).precision.name == name


def test_a_precision_of_ones_own():
    class Halved(Precision):
        name = "halved"

        def scale_loss(self, loss):
            return loss / 2

    found = Runtime(accelerator="cpu", precision=Halved())
    weight = nn.Parameter(torch.ones(1))
    found.backward(weight.sum())
    assert weight.grad.item() == 0.5


class Scaled(Precision):
    """Doubles gradients until they are looked at."""

    name = "scaled"

    def __init__(self):
        self.connected, self.unscaled = [], []

    def connect(self, device):
        self.connected.append(device)

    def scale_loss(self, loss):
        return loss * 2

    def unscale(self, optimizer):
        if optimizer in self.unscaled:
            return
        self.unscaled.append(optimizer)
        for group in optimizer.param_groups:
            for parameter in (each for each in group["params"] if each.grad is not None):
                parameter.grad /= 2


def test_a_precision_is_told_its_device():
    precision = Scaled()
    Runtime(accelerator="cpu", precision=precision)
    assert precision.connected == [torch.device("cpu")]


def test_gradients_are_unscaled_before_they_are_clipped():
    found, model = Runtime(accelerator="cpu", precision=Scaled()), nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found.backward((model.weight * torch.tensor([[3.0, 4.0]])).sum())
    assert found.clip_gradients(optimizer, 1.0).item() == pytest.approx(5.0)
    with pytest.raises(ConfigurationError) as caught:
        found.clip_gradients(model, 1.0)
    assert str(caught.value) == (
        "the gradients of a module cannot be clipped in precision 'scaled', which scales them for each optimizer: pass the "
        "optimizer to clip_gradients"
    )


def test_clipping_in_manual_optimization_unscales_the_optimizer_itself():
    norms = []

    class Manual(Regression):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.net[0].weight.sum())
            self.clip_gradients(optimizer, 100.0)
            norms.append(self.net[0].weight.grad.norm().item())
            optimizer.step()

    precision = Scaled()
    trainer = quiet(max_epochs=1, precision=precision)
    trainer.fit(Manual(), batches(1))
    assert norms == [pytest.approx(15**0.5)]
    assert precision.unscaled == trainer.optimizers


# ---- Parts


def test_gradients_are_clipped_by_norm_or_value():
    found = Runtime(accelerator="cpu")
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert found.clip_gradients(optimizer, 1.0).item() == pytest.approx(5.0)
    assert model.weight.grad.norm().item() == pytest.approx(1.0)
    assert found.clip_gradients(model, 0.5, "value") is None
    assert model.weight.grad.abs().max() == 0.5
    with pytest.raises(ConfigurationError) as caught:
        found.clip_gradients(model, 1.0, "l1")
    assert str(caught.value) == "gradient clipping algorithm 'l1'; allowed are 'norm' and 'value'"


def test_loaders_give_batches_on_the_device():
    found = Runtime(accelerator="cpu")
    first, second = found.setup_dataloaders(batches(2), DataLoader(range(6), 2, shuffle=True))
    assert (len(first), len(second), len(list(second))) == (2, 3, 3)
    assert second.set_epoch(1) is None
    moved = list(DeviceLoader(batches(2), torch.device("meta")))
    assert {tensor.device.type for batch in moved for tensor in batch} == {"meta"}


def test_setting_up_is_possible_in_parts():
    found = Runtime(accelerator="cpu")
    model = found.setup(network())
    assert isinstance(model, nn.Sequential)
    optimizers = [torch.optim.SGD(model.parameters(), lr=lr) for lr in (0.1, 0.2)]
    assert found.setup(model, *optimizers) == (model, *optimizers)
    assert found.setup_optimizers(*optimizers) == optimizers
    assert found.to_device({"a": torch.ones(1)}) == {"a": torch.ones(1)}
    assert found.to_device(model) is model


def test_closing_frees_every_part_even_if_one_fails():
    told = []

    class Failing(Precision):
        def teardown(self):
            told.append("precision")
            raise RuntimeError("broken")

    class Telling(Strategy):
        name = "telling"
        root_device = torch.device("cpu")

        def connect(self, accelerator, devices, num_nodes, environment):
            pass

        def setup_environment(self):
            told.append("joined")

        def teardown(self):
            told.append("strategy")

    found = Runtime(accelerator="cpu", strategy=Telling(), precision=Failing())
    found.close()
    assert told == []
    found.open()
    found.open()
    with pytest.raises(RuntimeError, match="broken"):
        found.close()
    found.close()
    assert told == ["joined", "precision", "strategy"]


def test_a_launcher_runs_a_function_in_its_processes():
    class Twice(Launcher):
        is_interactive_compatible = True

        def launch(self, function, *args):
            return [function(*args), function(*args)]

    found = Runtime(accelerator="cpu")
    found.strategy.launcher = Twice()
    assert found.must_launch
    assert found.launch(len, "abc") == [3, 3]


def test_several_devices_need_a_strategy_for_them(monkeypatch):
    monkeypatch.setenv("FULMEN_PLUGIN_AUTOLOAD", "0")
    with pytest.raises(PluginError) as caught:
        Runtime(accelerator="cpu", devices=2)
    assert "pip install" in str(caught.value) and "'ddp'" in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        Runtime(accelerator="cpu", devices=2, strategy="single_device")
    assert str(caught.value) == (
        "strategy 'single_device' works on one device of one node, and there are 2 on 1; use strategy='ddp', or devices=1, "
        "num_nodes=1"
    )


# ---- Choosing

ACCELERATOR = """
from fulmen import Accelerator

class Other(Accelerator):
    name = "other"

    @staticmethod
    def is_available():
        return AVAILABLE

    @staticmethod
    def num_available():
        return 2

    def setup_device(self, device):
        pass

    def devices(self, indices):
        import torch
        return [torch.device("meta", index) for index in indices]
"""
REGISTER = """
@hookimpl
def register(registry):
    registry.accelerator("other", "{module}:Other", summary="another", priority={priority})
"""


def install(site, name, code, priority=50):
    """An accelerator in a distribution of its own; its class is in a module of its own, imported when it is needed."""
    module = f"{name.replace('-', '_')}_parts"
    site.install(name, REGISTER.format(module=module, priority=priority))
    (site.packages / f"{module}.py").write_text(code, encoding="utf-8")
    site.modules.add(module)


def test_the_best_that_is_available_is_chosen(site):
    install(site, "other-hardware", ACCELERATOR.replace("AVAILABLE", "True"))
    assert choose_accelerator("auto", PluginSet.discover()).name == "other"
    assert choose_accelerator("cpu", PluginSet.discover()).name == "cpu"
    assert choose_accelerator("other", PluginSet.discover()).name == "other"
    assert Runtime(devices=[1]).device == torch.device("meta", 1)


def test_one_that_finds_no_device_is_passed_over_unless_it_is_named(site):
    install(site, "other-hardware", ACCELERATOR.replace("AVAILABLE", "False"))
    assert choose_accelerator("auto", PluginSet.discover()).name == "cpu"
    with pytest.raises(ConfigurationError) as caught:
        choose_accelerator("other", PluginSet.discover())
    assert str(caught.value) == "accelerator 'other' finds no device on this machine (available: cpu); use 'auto'"


def test_an_accelerator_may_say_why_there_is_no_device(site):
    advice = "    advice = staticmethod(lambda: 'plug it in')\n"
    install(site, "other-hardware", ACCELERATOR.replace("AVAILABLE", "False") + advice)
    with pytest.raises(ConfigurationError) as caught:
        choose_accelerator("other", PluginSet.discover())
    assert str(caught.value) == (
        "accelerator 'other' finds no device on this machine (available: cpu); plug it in, or use 'auto'"
    )


def test_a_loop_of_ones_own_gets_batches_as_the_accelerator_brings_them():
    class Delivers(FakeAccelerator):
        def batches(self, batches, move, ahead):
            self.calls.append(ahead)
            return map(move, batches)

    runtime = Runtime(accelerator=Delivers(1))
    loader = runtime.setup_dataloaders(batches(3))
    assert len(list(loader)) == len(list(loader)) == 3
    assert runtime.accelerator.calls == [True, True]


BROKEN = {
    "import": "raise ImportError('libother.so.1 is missing')",
    "class": "Something = 1",
    "answer": ACCELERATOR.replace("AVAILABLE", "1 / 0"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_accelerator_is_one_warning_for_those_who_did_not_ask_for_it(site, kind):
    install(site, "other-hardware", BROKEN[kind])
    plugins = PluginSet.discover()
    with pytest.warns(FulmenWarning) as caught:
        assert choose_accelerator("auto", plugins).name == "cpu"
    (text,) = [str(warning.message) for warning in caught]
    assert text.startswith("[plugin-broken] ") and "other-hardware" in text and text.endswith(". It is passed over")
    assert choose_accelerator("cpu", plugins).name == "cpu"
    with pytest.raises((PluginError, ZeroDivisionError)):
        choose_accelerator("other", plugins)


def test_a_training_goes_on_beside_a_broken_accelerator(site):
    install(site, "other-hardware", BROKEN["import"])
    with pytest.warns(FulmenWarning, match=r"^\[plugin-broken\] "):
        trainer = quiet(max_epochs=1)
    trainer.fit(Validated(), batches(2), batches(1))
    assert trainer.global_step == 2


def test_two_accelerators_of_one_name_disturb_only_those_who_ask(site):
    install(site, "one-hardware", ACCELERATOR.replace("AVAILABLE", "True"))
    install(site, "two-hardware", ACCELERATOR.replace("AVAILABLE", "True"))
    plugins = PluginSet.discover()
    with pytest.warns(FulmenWarning, match=r"^\[plugin-broken\] "):
        assert choose_accelerator("auto", plugins).name == "cpu"
    with pytest.raises(PluginError, match=r"one-hardware.*two-hardware"):
        choose_accelerator("other", plugins)


ENVIRONMENT = """
import os
from fulmen import ClusterEnvironment

class Found(ClusterEnvironment):
    creates_processes_externally, main_address, main_port = True, "localhost", 1

    @staticmethod
    def detect():
        return "INSIDE_OTHER" in os.environ

    def world_size(self):
        return 1

    global_rank = local_rank = node_rank = lambda self: 0
"""


@pytest.mark.parametrize("broken", [False, True])
def test_the_environment_is_detected_past_broken_ones(site, monkeypatch, broken):
    site.install("found", ENVIRONMENT + REGISTER.replace("accelerator", "environment").format(module="found", priority=1)
                 .replace("Other", "Found"))  # fmt: skip
    if broken:
        site.install("broken", REGISTER.replace("accelerator", "environment").format(module="missing_module", priority=9)
                     .replace('"other"', '"broken"'))  # fmt: skip
    plugins = PluginSet.discover()

    def detected():
        if not broken:
            return detect_environment(plugins)
        with pytest.warns(FulmenWarning, match=r"^\[plugin-broken\] .*missing_module.*It is passed over$"):
            return detect_environment(plugins)

    assert detected() is None
    monkeypatch.setenv("INSIDE_OTHER", "1")
    assert type(detected()).__name__ == "Found"


def test_an_accelerator_may_be_an_instance():
    class Mine(Accelerator):
        name = "meta"
        is_available = staticmethod(lambda: True)
        num_available = staticmethod(lambda: 1)

        def setup_device(self, device):
            pass

    assert Runtime(Mine()).device == torch.device("meta", 0)
