"""Hyper-parameters are kept from whatever __init__ takes, and build the object again."""

from __future__ import annotations

import copy
import io
import json
import pickle
from argparse import Namespace
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from fulmen import CheckpointError, ConfigurationError, DataModule, FulmenWarning, Module, ModuleError
from fulmen.contracts.hyperparameters import Hyperparameters, init_arguments_from, plain, read_hparams_file
from fulmen.testing import Regression, Validated, batches, quiet

if TYPE_CHECKING:
    from somewhere import Unknown


@dataclass
class Inner:
    depth: int = 1


@dataclass
class Config:
    lr: float = 0.1
    inner: Inner = field(default_factory=Inner)


class All(Module):
    def __init__(self, lr, width=4, *args, activation="relu", **kwargs):
        super().__init__()
        local = "not an argument"
        self.save_hyperparameters()
        assert local


class Named(Module):
    def __init__(self, lr, width, secret=None):
        super().__init__()
        self.save_hyperparameters("lr", "width")


class Ignoring(Module):
    def __init__(self, lr, net=None, other=None):
        super().__init__()
        self.save_hyperparameters(ignore=["net", "other"])
        self.layer = nn.Linear(1, 1)


class OneObject(Module):
    def __init__(self, config: Config):
        super().__init__()
        self.save_hyperparameters(config)
        self.config = config


class Untyped(Module):
    def __init__(self, conf):
        super().__init__()
        self.save_hyperparameters(conf)
        self.conf = conf


class WithNamespace(Module):
    def __init__(self, args: Namespace):
        super().__init__()
        self.save_hyperparameters(args)
        self.args = args


class TypedArgument(Module):
    def __init__(self, config: Config, lr: float = 1.0):
        super().__init__()
        self.save_hyperparameters()
        self.config = config


class Open(Module):
    def __init__(self, config: Config, kwargs=None, **options):
        super().__init__()
        self.save_hyperparameters()
        self.config = config


class Base(Module):
    def __init__(self, lr=0.1):
        super().__init__()
        self.save_hyperparameters()


class Derived(Base):
    def __init__(self, width, lr=0.2):
        super().__init__(lr=lr)
        self.made = Base(lr=9.0)  # another object made in __init__ keeps its own


class Unresolvable(Module):
    def __init__(self, a: Unknown = 3):
        super().__init__()
        self.save_hyperparameters()


KEPT = [
    (lambda: All(0.1), {"lr": 0.1, "width": 4, "activation": "relu"}),
    (lambda: All(0.1, 5, activation="tanh", depth=3), {"lr": 0.1, "width": 5, "activation": "tanh", "depth": 3}),
    (lambda: All(0.1, 5, 6, 7), {"lr": 0.1, "width": 5, "args": (6, 7), "activation": "relu"}),
    (lambda: Named(0.1, 4, secret="x"), {"lr": 0.1, "width": 4}),
    (lambda: Ignoring(0.1, nn.ReLU()), {"lr": 0.1}),
    (lambda: OneObject(Config(0.5, Inner(2))), {"lr": 0.5, "inner": {"depth": 2}}),
    (lambda: Untyped({"lr": 1, "nested": {"a": Config()}}), {"lr": 1, "nested": {"a": {"lr": 0.1, "inner": {"depth": 1}}}}),
    (lambda: WithNamespace(Namespace(lr=0.3, sub=Namespace(a=1))), {"lr": 0.3, "sub": {"a": 1}}),
    (lambda: Derived(8), {"lr": 0.2, "width": 8}),
]


@pytest.mark.parametrize(("make", "expected"), KEPT, ids=range(len(KEPT)))
def test_what_is_kept(make, expected):
    module = make()
    assert module.hparams == expected
    assert module.hparams_initial == expected


def test_they_are_read_and_set_as_attributes():
    module = All(0.1)
    assert module.hparams.lr == module.hparams["lr"] == 0.1
    module.hparams.lr = 0.5
    assert (module.hparams["lr"], module.hparams_initial["lr"]) == (0.5, 0.1)
    del module.hparams.lr
    with pytest.raises(AttributeError) as caught:
        module.hparams.lr  # noqa: B018
    assert str(caught.value) == "there is no hyper-parameter 'lr'; saved are: width, activation"
    assert not hasattr(module.hparams, "__deepcopy__")
    assert copy.deepcopy(module.hparams) == module.hparams
    assert pickle.loads(pickle.dumps(module.hparams)) == module.hparams
    assert repr(Hyperparameters(a=1, b="x")) == '"a": 1\n"b": \'x\''


def test_a_module_without_them():
    module = Module()
    assert (module.hparams, module.hparams_initial, module.hparams_name) == ({}, {}, None)
    assert module.logs_hyperparameters is False


def test_saving_twice_adds_up():
    class Twice(Module):
        def __init__(self, a, b):
            super().__init__()
            self.save_hyperparameters("a")
            self.save_hyperparameters({"c": 3}, logger=False)

    module = Twice(1, 2)
    assert module.hparams == {"a": 1, "c": 3}
    assert module.logs_hyperparameters is False


FAULTS = [
    ("lrr", "save_hyperparameters('lrr'): __init__ has no such argument; it has: lr, what"),
    (3, "save_hyperparameters takes names, or one mapping, dataclass or namespace; got int"),
]


@pytest.mark.parametrize(("argument", "message"), FAULTS)
def test_faults_say_what_is_allowed(argument, message):
    class Faulty(Module):
        def __init__(self, lr, what):
            super().__init__()
            self.save_hyperparameters(what)

    with pytest.raises(ConfigurationError) as caught:
        Faulty(0.1, argument)
    assert str(caught.value) == message


# ---- Back from a file


def checkpoint_of(module, path):
    trainer = quiet()
    module.predict_step = lambda batch, batch_idx: batch
    trainer.predict(module, [1])
    trainer.save_checkpoint(path, weights_only=True)
    return torch.load(path, weights_only=True)


def test_typed_objects_are_built_again(tmp_path):
    path = tmp_path / "a.ckpt"
    found = checkpoint_of(OneObject(Config(0.5, Inner(2))), path)
    assert (found["hparams_name"], found["hyper_parameters"]) == ("config", {"lr": 0.5, "inner": {"depth": 2}})
    assert OneObject.load_from_checkpoint(path).config == Config(0.5, Inner(2))
    assert OneObject.load_from_checkpoint(path, config=Config(9.0)).config == Config(9.0)
    checkpoint_of(TypedArgument(Config(0.5, Inner(2)), lr=3.0), path)
    again = TypedArgument.load_from_checkpoint(path)
    assert (again.config, again.hparams.lr) == (Config(0.5, Inner(2)), 3.0)
    checkpoint_of(WithNamespace(Namespace(lr=0.3)), path)
    assert WithNamespace.load_from_checkpoint(path).args == Namespace(lr=0.3)
    checkpoint_of(Untyped({"lr": 0.3}), path)
    assert Untyped.load_from_checkpoint(path).conf.lr == 0.3


def test_arguments_of_every_form_come_back(tmp_path):
    path = tmp_path / "a.ckpt"
    assert checkpoint_of(All(0.1, 5, depth=3), path)["hparams_name"] == "kwargs"
    assert All.load_from_checkpoint(path).hparams == {"lr": 0.1, "width": 5, "activation": "relu", "depth": 3}
    assert All.load_from_checkpoint(path, width=7, extra=1).hparams.width == 7
    checkpoint_of(Named(0.1, 4, secret="x"), path)
    assert Named.load_from_checkpoint(path, secret="y").hparams == {"lr": 0.1, "width": 4}
    checkpoint_of(Derived(8), path)
    assert Derived.load_from_checkpoint(path).hparams == {"lr": 0.2, "width": 8}
    checkpoint_of(Open(Config(0.5), kwargs={"a": 1}, depth=2), path)
    again = Open.load_from_checkpoint(path)
    assert (again.config, again.hparams.kwargs, again.hparams.depth) == (Config(0.5), {"a": 1}, 2)
    checkpoint_of(Unresolvable(4), path)
    assert Unresolvable.load_from_checkpoint(path).hparams == {"a": 4}


def test_ignored_arguments_are_given_again(tmp_path):
    path = tmp_path / "a.ckpt"
    module = Ignoring(0.1, nn.ReLU())
    assert checkpoint_of(module, path)["hyper_parameters"] == {"lr": 0.1}
    assert torch.equal(Ignoring.load_from_checkpoint(path, net=nn.Tanh()).layer.weight, module.layer.weight)


def test_an_argument_that_was_not_kept_must_be_given(tmp_path):
    class Encoder(Module):
        def __init__(self, encoder, lr=0.1):
            super().__init__()
            self.save_hyperparameters(ignore=["encoder"])
            self.encoder = encoder

    path = tmp_path / "a.ckpt"
    checkpoint_of(Encoder(nn.Linear(1, 1), lr=0.3), path)
    with pytest.raises(CheckpointError) as caught:
        Encoder.load_from_checkpoint(path)
    assert str(caught.value) == (
        f"{path} does not hold the arguments encoder of Encoder, which save_hyperparameters did not keep; pass them: "
        "Encoder.load_from_checkpoint(..., encoder=...)"
    )
    assert Encoder.load_from_checkpoint(path, encoder=nn.Linear(1, 1)).hparams.lr == 0.3


def test_an_argument_that_the_constructor_does_not_have(tmp_path):
    path = tmp_path / "a.ckpt"
    checkpoint_of(Ignoring(0.1), path)
    with pytest.raises(ConfigurationError) as caught:
        Ignoring.load_from_checkpoint(path, nett=nn.Tanh())
    assert str(caught.value) == "Ignoring has no argument 'nett'; did you mean 'net'?; it has: lr, net, other"


def test_a_module_is_not_loaded_into(tmp_path):
    path = tmp_path / "a.ckpt"
    module = Ignoring(0.1)
    checkpoint_of(module, path)
    assert callable(module.load_from_checkpoint)
    for instance in (module, DataModule()):
        with pytest.raises(ModuleError, match=r"call it on the class, and take what it returns: model = Model\.load"):
            instance.load_from_checkpoint(path)


def test_an_open_file_is_read(tmp_path):
    path = tmp_path / "a.ckpt"
    module = Ignoring(0.1)
    checkpoint_of(module, path)
    with open(path, "rb") as file:
        for stream in (io.BytesIO(path.read_bytes()), file):
            assert torch.equal(Ignoring.load_from_checkpoint(stream).layer.weight, module.layer.weight)
    with open(path, encoding="latin-1") as text, pytest.raises(CheckpointError, match=r"could not read .*TypeError"):
        Ignoring.load_from_checkpoint(text)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        Ignoring.load_from_checkpoint(io.BytesIO(b"something else"))


def test_nothing_but_plain_data_is_read(tmp_path):
    path = tmp_path / "a.ckpt"
    trainer = quiet(max_epochs=1)
    trainer.fit(Regression(), batches(1), weights_only=True)
    trainer.save_checkpoint(path)
    assert isinstance(Regression.load_from_checkpoint(path, weights_only=True), Regression)
    with pytest.raises(ConfigurationError, match="weights_only=False is not possible: checkpoints are plain data"):
        Regression.load_from_checkpoint(path, weights_only=False)
    for stage in ("fit", "validate", "test", "predict"):
        with pytest.raises(ConfigurationError, match="weights_only=False is not possible"):
            getattr(trainer, stage)(Validated(), batches(1), ckpt_path=path, weights_only=False)
    trainer.test(Validated(), batches(1), weights_only=None, verbose=False)
    trainer.validate(Validated(), batches(1), weights_only=True, verbose=False)
    trainer.predict(Validated(), batches(1), weights_only=True)


def test_another_strictness(tmp_path):
    path = tmp_path / "a.ckpt"
    checkpoint_of(Ignoring(0.1), path)
    payload = torch.load(path, weights_only=True)
    payload["state_dict"]["other"] = payload["state_dict"].pop("layer.bias")
    torch.save(payload, path)
    with pytest.raises(CheckpointError) as caught:
        Ignoring.load_from_checkpoint(path)
    assert str(caught.value) == (
        f"{path} does not fit Ignoring: missing keys: layer.bias; unexpected keys: other; wrong shapes: (none). Build the "
        "module with the arguments it was saved with, or set strict_loading = False to load what fits by name"
    )
    assert Ignoring.load_from_checkpoint(path, strict=False).hparams.lr == 0.1


@pytest.mark.parametrize("text", ['{"lr": 0.7}', "lr: 0.7\n"])
def test_a_file_of_hyper_parameters_replaces_those_saved(tmp_path, text):
    path = tmp_path / "a.ckpt"
    checkpoint_of(Ignoring(0.1), path)
    (tmp_path / "hparams.yaml").write_text(text)
    assert Ignoring.load_from_checkpoint(path, hparams_file=tmp_path / "hparams.yaml").hparams.lr == 0.7
    assert read_hparams_file(tmp_path / "hparams.yaml") == {"lr": 0.7}


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "hparams.yaml"
    path.write_text(json.dumps([1, 2]))
    with pytest.raises(ConfigurationError) as caught:
        read_hparams_file(path)
    assert str(caught.value) == f"{path} does not hold a mapping of hyper-parameters"


def test_a_file_without_weights(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"epoch": 1}, path)
    with pytest.raises(CheckpointError) as caught:
        Ignoring.load_from_checkpoint(path)
    assert str(caught.value) == f"{path} has no 'state_dict'; it holds: epoch"


def test_what_a_checkpoint_cannot_hold_is_refused_before_training(tmp_path):
    class Holding(Module):
        def __init__(self, activation):
            super().__init__()
            self.save_hyperparameters()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            raise AssertionError("it trained")

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = quiet(enable_checkpointing=True, default_root_dir=tmp_path)
    with pytest.raises(CheckpointError) as caught:
        trainer.fit(Holding(nn.ReLU()), [1])
    assert str(caught.value).startswith("hyper_parameters.activation is a torch.nn.modules.activation.ReLU, which")
    assert str(caught.value).endswith("leave it out (save_hyperparameters(ignore=['activation']))")


# ---- Data modules


class Data(DataModule):
    def __init__(self, size: int = 3, config: Config | None = None):
        super().__init__()
        self.save_hyperparameters()
        self.cursor = 0

    def train_dataloader(self):
        return [torch.ones(1, 1)]

    def state_dict(self):
        return {"cursor": self.cursor}

    def load_state_dict(self, state_dict):
        self.cursor = state_dict["cursor"]


class Trained(Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_data_module_comes_back_from_a_checkpoint(tmp_path):
    data = Data(size=5)
    data.cursor = 7
    trainer = quiet(max_epochs=1)
    trainer.fit(Trained(), datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    found = Data.load_from_checkpoint(tmp_path / "a.ckpt")
    assert (found.hparams, found.cursor) == ({"size": 5, "config": None}, 7)
    assert Data.load_from_checkpoint(tmp_path / "a.ckpt", size=6).hparams.size == 6


def test_plain_data():
    assert plain({"a": [Config(), (Namespace(b=1),)], "c": nn.Identity}) == {
        "a": [{"lr": 0.1, "inner": {"depth": 1}}, ({"b": 1},)],
        "c": nn.Identity,
    }


def test_nothing_named_in_a_file_is_built():
    found = init_arguments_from(Untyped, {"_class_path": "os.system", "command": "true"}, "conf", {})
    assert found == {"conf": {"_class_path": "os.system", "command": "true"}}
    assert type(found["conf"]) is Hyperparameters
    with pytest.warns(FulmenWarning, match="log-without-trainer"):
        Module().log("a", 1)
