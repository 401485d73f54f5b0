"""The module away from a trainer, and the small things it offers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from fulmen import CheckpointError, Module, ModuleError, PluginError
from fulmen.contracts.module import load_weights
from fulmen.testing import Regression, Validated, batches, network, quiet, same_weights
from fulmen.testing.fakes import RecordingLogger


def test_without_a_trainer_it_is_a_torch_module():
    module = Regression()
    assert isinstance(module, nn.Module)
    assert (module.current_epoch, module.global_step, module.loggers, module.logger) == (0, 0, [], None)
    assert (module.global_rank, module.local_rank) == (0, 0)
    assert (str(module.device), module.dtype) == ("cpu", torch.float32)
    assert (Module().device.type, Module().dtype) == ("cpu", torch.get_default_dtype())
    assert module.predict_step(torch.zeros(2, 3), 0).shape == (2, 1)


UNATTACHED = [
    lambda m: m.trainer,
    lambda m: m.optimizers(),
    lambda m: m.lr_schedulers(),
    lambda m: m.print("x"),
    lambda m: m.all_gather(torch.ones(1)),
    lambda m: m.toggle_optimizer(None),
]


@pytest.mark.parametrize("action", UNATTACHED, ids=range(len(UNATTACHED)))
def test_what_needs_a_trainer_says_so(action):
    with pytest.raises(ModuleError) as caught:
        action(Regression())
    assert str(caught.value) == (
        "Regression is not attached to a trainer yet: pass it to trainer.fit, validate, test or predict"
    )


MISSING = [
    (
        lambda m: m.training_step(None, 0),
        "Module has no training_step, which fit needs: def training_step(self, batch, batch_idx)",
    ),
    (
        lambda m: m.configure_optimizers(),
        "Module has no configure_optimizers, which fit needs: return an optimizer, or None to train without",
    ),
    (
        lambda m: m.manual_backward(torch.ones(1)),
        "manual_backward is for manual optimization: set self.automatic_optimization = False in __init__",
    ),
]


@pytest.mark.parametrize(("action", "message"), MISSING, ids=range(len(MISSING)))
def test_what_is_missing_is_named(action, message):
    with pytest.raises(ModuleError) as caught:
        action(Module())
    assert str(caught.value) == message


def test_freezing_and_back():
    module = Regression()
    assert module.freeze() is module
    assert not module.training and not any(p.requires_grad for p in module.parameters())
    assert module.unfreeze() is module
    assert module.training and all(p.requires_grad for p in module.parameters())


def test_within_a_run_it_knows_where_it_is(capsys):
    class Asking(Regression):
        def training_step(self, batch, batch_idx):
            self.seen = (
                self.current_epoch, self.global_step, self.device.type, self.trainer.module is self, self.optimizers(False),
                self.lr_schedulers(), self.all_gather(torch.ones(1)),
            )  # fmt: skip
            self.print("printed", batch_idx)
            return super().training_step(batch, batch_idx)

    module, trainer = Asking(), quiet(max_epochs=2)
    trainer.fit(module, batches(2))
    epoch, step, device, is_module, optimizer, schedulers, gathered = module.seen
    assert (epoch, step, device, is_module, schedulers) == (1, 3, "cpu", True, None)
    assert type(optimizer) is torch.optim.SGD
    assert torch.equal(gathered, torch.ones(1))
    assert capsys.readouterr().out == "printed 0\nprinted 1\n" * 2
    assert (module.current_epoch, module.global_step) == (2, 4)


def test_several_optimizers_and_schedulers_are_lists():
    class Several(Regression):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            one, two = self.lr_schedulers()
            assert (first.param_groups[0]["lr"], second.param_groups[0]["lr"]) == (0.1, 0.2)
            assert (type(one).__name__, type(two).__name__) == ("StepLR", "ExponentialLR")

        def configure_optimizers(self):
            first, second = (torch.optim.SGD(self.parameters(), lr=lr) for lr in (0.1, 0.2))
            return [first, second], [
                torch.optim.lr_scheduler.StepLR(first, 1),
                torch.optim.lr_scheduler.ExponentialLR(second, 0.9),
            ]

    trainer = quiet(max_epochs=1)
    trainer.fit(Several(), batches(1))
    assert trainer.global_step == 0


def test_toggling_leaves_one_optimizers_parameters_trainable():
    class Toggling(Regression):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.other = nn.Linear(3, 1)
            self.other.bias.requires_grad = False

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            with self.toggled_optimizer(second):
                self.inside = [p.requires_grad for p in (self.net[0].weight, self.other.weight, self.other.bias)]
            with first.toggle_model():
                self.then = [p.requires_grad for p in (self.net[0].weight, self.other.weight, self.other.bias)]
            self.after = [p.requires_grad for p in (self.net[0].weight, self.other.weight, self.other.bias)]

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net, self.other)]

    module = Toggling()
    quiet(max_epochs=1).fit(module, batches(1))
    assert module.inside == [False, True, False]
    assert module.then == [True, False, False]
    assert module.after == [True, True, False]


def test_a_copy_leaves_the_trainer_behind():
    module = Validated()
    quiet(max_epochs=1).fit(module, batches(1), batches(1))
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copied._run is None
        assert same_weights(copied, module)
        assert copied.hparams == {"lr": 0.1}


def test_its_state_is_that_of_its_layers_only(tmp_path):
    module, trainer = Regression(), quiet(max_epochs=1)
    trainer.fit(module, batches(1))
    assert list(module.state_dict()) == [f"net.{name}" for name in network().state_dict()]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    plain = nn.Module()
    plain.net = network(5)
    plain.load_state_dict(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"])
    assert same_weights(plain, module)


def test_hooks_change_what_is_saved_and_loaded(tmp_path):
    class Extra(Regression):
        extra = 0

        def on_save_checkpoint(self, checkpoint):
            checkpoint["extra"] = self.extra

        def on_load_checkpoint(self, checkpoint):
            self.extra = checkpoint["extra"]

    module, trainer = Extra(), quiet(max_epochs=1)
    module.extra = 7
    trainer.fit(module, batches(1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert Extra.load_from_checkpoint(tmp_path / "a.ckpt").extra == 7
    again = Extra()
    quiet(max_epochs=1).fit(again, batches(1), ckpt_path=tmp_path / "a.ckpt")
    assert again.extra == 7


def test_it_is_loaded_onto_a_device(tmp_path):
    trainer = quiet(max_epochs=1)
    trainer.fit(Regression(), batches(1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert Regression.load_from_checkpoint(tmp_path / "a.ckpt", map_location=torch.device("cpu")).device.type == "cpu"
    loaded = Regression.load_from_checkpoint(tmp_path / "a.ckpt", map_location=lambda storage, location: storage)
    assert loaded.device.type == "cpu"


def test_loading_what_fits_by_name():
    module = nn.Linear(2, 1)
    load_weights(module, {"weight": torch.ones(1, 2)}, strict=False, source="here")
    assert module.weight.sum() == 2
    with pytest.raises(CheckpointError) as caught:
        load_weights(module, {"weight": torch.ones(1, 3), "w": torch.ones(1)}, strict=True, source="here")
    assert str(caught.value) == (
        "here does not fit Linear: missing keys: bias; unexpected keys: w; wrong shapes: weight (1, 3) for (1, 2). Build the "
        "module with the arguments it was saved with, or set strict_loading = False to load what fits by name"
    )


def test_strictness_is_a_property_of_the_module(tmp_path):
    class Loose(Regression):
        strict_loading = False

    trainer = quiet(max_epochs=1)
    trainer.fit(Regression(), batches(1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    payload = torch.load(tmp_path / "a.ckpt", weights_only=True)
    payload["state_dict"] = {"net.0.bias": payload["state_dict"]["net.0.bias"], "unknown": torch.ones(1)}
    torch.save(payload, tmp_path / "a.ckpt")
    assert torch.equal(Loose.load_from_checkpoint(tmp_path / "a.ckpt").net[0].bias, payload["state_dict"]["net.0.bias"])
    with pytest.raises(CheckpointError):
        Loose.load_from_checkpoint(tmp_path / "a.ckpt", strict=True)


def test_exports_name_the_package_that_makes_them(tmp_path, monkeypatch):
    monkeypatch.setenv("FULMEN_PLUGIN_AUTOLOAD", "0")
    packages = {"to_onnx": "onnx", "to_torchscript": "torchscript", "to_torch_export": "torchscript"}
    for method, name in packages.items():
        with pytest.raises(PluginError, match=f"needs the package fulmen-{name}: pip install fulmen-{name}"):
            getattr(Regression(), method)(tmp_path / "a")


# ---- Arguments of self.log


class Logging(Regression):
    """Logs with given arguments."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def training_step(self, batch, batch_idx):
        self.call(self)
        return super().training_step(batch, batch_idx)


def test_log_dict_takes_the_arguments_of_log_in_their_order():
    recorded = RecordingLogger()
    module = Logging(lambda m: m.log_dict({"a": 1.0, "b": 2.0}, True, True, True, True, "sum", batch_size=3))
    trainer = quiet(max_epochs=1, logger=recorded, log_every_n_steps=1)
    trainer.fit(module, batches(4))
    assert trainer.callback_metrics.keys() == {"a", "a_step", "a_epoch", "b", "b_step", "b_epoch"}
    assert (trainer.callback_metrics["b_epoch"], trainer.progress_bar_metrics["a_step"]) == (8, 1)


def test_arguments_of_lightning_that_ask_for_nothing_are_let_through():
    module = Logging(
        lambda m: m.log("a", 1.0, enable_graph=False, sync_dist_group=None, metric_attribute="accuracy", on_epoch=True)
    )
    trainer = quiet(max_epochs=1)
    trainer.fit(module, batches(1))
    assert trainer.callback_metrics["a_epoch"] == 1


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ({"enable_graph": True}, ": values are detached; keep the tensor itself where you need its graph"),
        (
            {"sync_dist_group": "g"},
            ": sync_dist=True combines over all ranks; for fewer, reduce the value with torch.distributed before",
        ),
        ({"prog_bra": True}, "; did you mean 'prog_bar'?"),
        ({"colour": "red"}, ""),
    ],
)
def test_other_arguments_are_errors(argument, remedy):
    ((name, value),) = argument.items()
    for call in (lambda m: m.log("a", 1.0, **argument), lambda m: m.log_dict({"a": 1.0}, **argument)):
        with pytest.raises(ModuleError) as caught:
            quiet(max_epochs=1).fit(Logging(call), batches(1))
        assert str(caught.value) == f"self.log('a') has no argument {name}={value!r}{remedy}"
