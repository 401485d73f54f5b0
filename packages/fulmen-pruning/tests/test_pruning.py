"""Pruning against torch.nn.utils.prune by hand; masks, optimizers, checkpoints and options."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from fulmen_pruning import ModelPruning
from torch import nn
from torch.nn.utils import prune

from fulmen import Callback, CheckpointError, ConfigurationError
from fulmen.callbacks import ModelPruning as ByName
from fulmen.testing import RecordingLogger, Regression, Validated, batches, mse, quiet, same_weights


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


class Net(Validated):
    def __init__(self, optimizer="sgd"):
        super().__init__()
        self.net, self.optimizer = network(), optimizer

    def configure_optimizers(self):
        if self.optimizer == "adam":
            return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


WEIGHTS = ["net.0.weight", "net.2.weight", "net.4.weight"]


def fitted(callback, module=None, epochs=3, val=None, **options):
    module = module or Net()
    options = {"max_epochs": epochs, "limit_val_batches": 0 if val is None else 1.0, **options}
    trainer = quiet(**{**options, "callbacks": [callback, *options.get("callbacks", [])]})
    trainer.fit(module, batches(), val)
    return module, trainer


def zeros(module, names=WEIGHTS):
    state = module.state_dict()
    return {name: int((state[name] == 0).sum()) for name in names}


def by_hand(pruner, epochs=3, lottery=None):
    """A loop with torch.nn.utils.prune; ``pruner(net)`` prunes once."""
    net = network()
    torch.manual_seed(9)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    initial = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(epochs):
        for batch in batches():
            optimizer.zero_grad()
            mse(net, batch).backward()
            optimizer.step()
        refresh(net)
        pruner(net)
        if lottery:
            for name, parameter in net.named_parameters():
                if name.endswith("_orig"):
                    parameter.data.copy_(initial[name[:-5]])
    for layer in net:
        for name in ("weight", "bias"):
            if hasattr(layer, f"{name}_mask"):
                prune.remove(layer, name)
    return net


def refresh(net):
    """What ``prune`` looks at is ``weight``, which is otherwise as of before the last step."""
    for layer in net:
        for name in ("weight", "bias"):
            if hasattr(layer, f"{name}_mask"):
                setattr(layer, name, getattr(layer, f"{name}_orig") * getattr(layer, f"{name}_mask"))


def pairs(net, names=("weight", "bias")):
    return [(layer, name) for layer in net if isinstance(layer, nn.Linear) for name in names]


def each(method, names=("weight",), **options):
    def pruner(net):
        for layer, name in pairs(net, names):
            method(layer, name, **options)

    return pruner


class KeepHalf(prune.BasePruningMethod):
    """Prunes every second entry of what is left."""

    PRUNING_TYPE = "unstructured"

    def __init__(self, amount):
        self.amount = amount

    def compute_mask(self, t, default_mask):
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


# ---- Equal to PyTorch

CASES = {
    "global l1": (
        {"pruning_fn": "l1_unstructured", "amount": 0.3},
        lambda net: prune.global_unstructured(pairs(net), prune.L1Unstructured, amount=0.3),
    ),
    "global count": (
        {"pruning_fn": "l1_unstructured", "amount": 10},
        lambda net: prune.global_unstructured(pairs(net), prune.L1Unstructured, amount=10),
    ),
    "global random": (
        {"pruning_fn": "random_unstructured", "amount": 0.3, "parameter_names": ["weight"]},
        lambda net: prune.global_unstructured(pairs(net, ["weight"]), prune.RandomUnstructured, amount=0.3),
    ),
    "local l1": (
        {"pruning_fn": "l1_unstructured", "use_global_unstructured": False, "amount": 0.25},
        each(prune.l1_unstructured, ("weight", "bias"), amount=0.25),
    ),
    "ln": (
        {"pruning_fn": "ln_structured", "use_global_unstructured": False, "amount": 0.25, "pruning_dim": 1, "pruning_norm": 2},
        each(prune.ln_structured, amount=0.25, dim=1, n=2),
    ),
    "other norm": (
        {"pruning_fn": "ln_structured", "use_global_unstructured": False, "amount": 1, "pruning_dim": 0, "pruning_norm": 1}
        | {"parameters_to_prune": ["net.0.weight", "net.2.weight"]},
        lambda net: [prune.ln_structured(net[index], "weight", amount=1, dim=0, n=1) for index in (0, 2)],
    ),
    "random structured": (
        {"pruning_fn": "random_structured", "use_global_unstructured": False, "amount": 0.25, "pruning_dim": 1},
        each(prune.random_structured, amount=0.25, dim=1),
    ),
    "class": (
        {"pruning_fn": KeepHalf, "use_global_unstructured": False, "parameter_names": ["bias"]},
        each(KeepHalf.apply, ["bias"], amount=0.5),
    ),
    "global class": (
        {"pruning_fn": KeepHalf},
        lambda net: prune.global_unstructured(pairs(net), KeepHalf, amount=0.5),
    ),
}


@pytest.mark.parametrize("lottery", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_a_training_is_that_of_pytorch_by_hand(case, lottery):
    arguments, pruner = CASES[case]
    expected = by_hand(pruner, lottery=lottery)
    callback = ModelPruning(**{"use_lottery_ticket_hypothesis": lottery, **arguments})
    module = Net()
    torch.manual_seed(9)
    fitted(callback, module)
    assert {name: value.tolist() for name, value in module.net.state_dict().items()} == {
        name: value.tolist() for name, value in expected.state_dict().items()
    }
    assert sum(zeros(module, list(module.state_dict())).values()) > 2


def test_amounts_are_of_what_is_left():
    found = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer, module):
            found.append(trainer.callbacks[0].sparsity())

    callback = ModelPruning("l1_unstructured", parameters_to_prune=["net.2.weight"], amount=0.5)
    fitted(callback, callbacks=[Look()])
    assert found == [0.0, 0.5, 0.75]


# ---- What is pruned


def test_parameters_as_pairs_and_by_name():
    module = Net()
    fitted(ModelPruning("l1_unstructured", [(module.net[0], "weight"), (module.net[2], "bias")]), module, 1)
    assert sum(zeros(module, ["net.0.weight", "net.2.bias"]).values()) == 16  # half of 24 and 8 together
    assert sum(zeros(module, ["net.0.bias", "net.2.weight", "net.4.weight"]).values()) == 0
    other, _ = fitted(ModelPruning("l1_unstructured", ["net.0.weight", "net.2.bias"]), Net(), 1)
    assert same_weights(module, other)


def test_amount_and_application_by_epoch():
    amounts, asked = [], []

    def amount(epoch):
        amounts.append(epoch)
        return {0: 0.5, 1: 0, 2: 4}[epoch]

    def apply(epoch):
        asked.append(epoch)
        return epoch != 3

    callback = ModelPruning("l1_unstructured", parameter_names=["weight"], amount=amount, apply_pruning=apply)
    module, _ = fitted(callback, epochs=3)
    assert sum(zeros(module).values()) == 48 + 4  # 96 weights
    assert amounts == asked == [0, 1, 2]
    module, _ = fitted(ModelPruning("l1_unstructured", apply_pruning=False))
    assert sum(zeros(module).values()) == 0
    module, _ = fitted(ModelPruning("l1_unstructured", parameter_names=["weight"], apply_pruning=lambda epoch: epoch == 1))
    assert sum(zeros(module).values()) == 48


def test_lottery_tickets_start_again_from_their_values_at_the_start():
    class Look(Callback):
        runs_last = True

        def on_train_epoch_end(self, trainer, module):
            layer = module.net[2]
            self.mask, self.weight, self.bias = layer.weight_mask.clone(), layer.weight.clone(), layer.bias.clone()

    look, initial = Look(), network()[2]
    fitted(ModelPruning("l1_unstructured", ["net.2.weight"]), epochs=2, callbacks=[look])
    assert torch.equal(look.weight, initial.weight * look.mask) and not torch.equal(look.bias, initial.bias)
    callback = ModelPruning("l1_unstructured", ["net.2.weight"], use_lottery_ticket_hypothesis=lambda epoch: epoch != 1)
    fitted(callback, epochs=2, callbacks=[look])
    assert not torch.equal(look.weight, initial.weight * look.mask)
    resampled = []
    for _ in range(2):
        torch.manual_seed(3)
        fitted(ModelPruning("l1_unstructured", ["net.2.weight"], resample_parameters=True), epochs=2, callbacks=[look])
        resampled.append(look.weight)
    assert torch.equal(*resampled) and not torch.equal(look.weight, initial.weight * look.mask)
    assert look.weight.abs().max() <= 8**-0.5  # as Linear draws them


@pytest.mark.parametrize("at_train_end", [True, False])
def test_when_it_prunes(at_train_end):
    seen = []

    class Look(Callback):
        runs_last = True

        def on_validation_end(self, trainer, module):
            seen.append(("validation", round(trainer.callbacks[0].sparsity(), 2)))

        def on_train_epoch_end(self, trainer, module):
            seen.append(("epoch", round(trainer.callbacks[0].sparsity(), 2)))

    callback = ModelPruning("l1_unstructured", ["net.2.weight"], prune_on_train_epoch_end=at_train_end)
    fitted(callback, epochs=2, val=batches(2), callbacks=[Look()])
    numbers = [0.0, 0.0, 0.5, 0.5, 0.75] if at_train_end else [0.0, 0.5, 0.5, 0.75, 0.75]
    assert seen == list(zip(["validation", "validation", "epoch", "validation", "epoch"], numbers, strict=True))


def test_an_epoch_that_is_cut_short_does_not_prune():
    callback = ModelPruning("l1_unstructured", ["net.2.weight"], make_pruning_permanent=False)
    fitted(callback, max_steps=12)
    assert callback.sparsity() == 0.5


# ---- What layers show


class Attentive(Validated):
    """``nn.MultiheadAttention`` uses the weights of its ``out_proj`` without calling it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.net = nn.MultiheadAttention(3, 1, bias=False, batch_first=True), nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        found = self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]
        return nn.functional.mse_loss(self.net(found), y)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))


OUT = "attention.out_proj.weight"


def test_layers_that_are_not_called_are_trained():
    class Look(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            found.append(module.attention.out_proj.weight_orig.detach().clone() if trainer.current_epoch else None)

    found = []
    callback = ModelPruning("l1_unstructured", [OUT], amount=0.3, use_lottery_ticket_hypothesis=False)
    module, _ = fitted(callback, Attentive(), epochs=2, callbacks=[Look()])
    weight, kept = module.attention.out_proj.weight, module.attention.out_proj.weight != 0
    assert int(kept.sum()) == 9 - 3 - 2
    assert all((one != other)[kept].all() for one, other in pairwise(found[8:]))
    assert torch.equal(weight[kept], found[-1][kept])


@pytest.mark.parametrize("permanent", [True, False])
def test_an_evaluation_sees_layers_that_are_not_called_as_they_are(tmp_path, permanent):
    make = lambda: ModelPruning("l1_unstructured", [OUT], amount=0.3, make_pruning_permanent=permanent)  # noqa: E731
    module, _ = fitted(make(), Attentive(), epochs=2, callbacks=[SaveAt(tmp_path, (12,))])
    by_hand = Attentive()
    kept = torch.load(tmp_path / "batch12.ckpt", weights_only=True)
    weights = {name: value for name, value in kept["state_dict"].items() if not name.startswith(OUT)}
    state = kept["callbacks"]["ModelPruning"]
    weights[OUT] = state["parameters"][OUT] * state["masks"][OUT]
    by_hand.load_state_dict(weights)
    expected = quiet().validate(by_hand, batches(2))
    assert quiet(callbacks=make()).validate(Attentive(), batches(2), ckpt_path=tmp_path / "batch12.ckpt") == expected
    resumed = Attentive()
    quiet(callbacks=make(), max_epochs=2, limit_val_batches=0).fit(resumed, batches(), ckpt_path=tmp_path / "batch12.ckpt")
    assert same_weights(resumed, module)


# ---- Rules of one's own


def test_a_subclass_filters_what_is_pruned(tmp_path):
    class Late(ModelPruning):
        def filter_parameters_to_prune(self, parameters_to_prune):
            asked.append([name for _, name in parameters_to_prune])
            return [(layer, name) for layer, name in parameters_to_prune if layer.out_features == 8 and name == "weight"]

    asked = []
    module, _ = fitted(Late("l1_unstructured"), epochs=1, callbacks=[SaveAt(tmp_path)])
    other, _ = fitted(ModelPruning("l1_unstructured", ["net.0.weight", "net.2.weight"]), epochs=1)
    assert same_weights(module, other) and asked == [["weight", "bias"] * 3]
    resumed = Net()
    callback = Late("l1_unstructured")
    quiet(callbacks=callback, max_epochs=2, limit_val_batches=0).fit(resumed, batches(), ckpt_path=tmp_path / "epoch0.ckpt")
    expected, _ = fitted(Late("l1_unstructured"), epochs=2)
    assert same_weights(resumed, expected) and sum(zeros(resumed).values()) == 66  # 44 of 88, and 22


def test_a_subclass_prunes_and_starts_again_by_its_own_rules():
    class Own(ModelPruning):
        def apply_pruning(self, amount):
            amounts.append(amount)
            super().apply_pruning(3)

        def apply_lottery_ticket_hypothesis(self):
            amounts.append("again")

        def make_pruning_permanent(self, module):
            amounts.append("permanent")
            super().make_pruning_permanent(module)

    amounts = []
    module, _ = fitted(Own("l1_unstructured", amount=lambda epoch: epoch, apply_pruning=lambda epoch: epoch != 2), epochs=4)
    assert amounts == [1, "again", 3, "again", "permanent"]
    options = {"amount": 3, "apply_pruning": lambda epoch: epoch in (1, 3), "use_lottery_ticket_hypothesis": False}
    assert same_weights(module, fitted(ModelPruning("l1_unstructured", **options), epochs=4)[0])


def test_a_filter_that_leaves_nothing():
    class Nothing(ModelPruning):
        def filter_parameters_to_prune(self, parameters_to_prune):
            return []

    with pytest.raises(ConfigurationError) as caught:
        fitted(Nothing("l1_unstructured"))
    assert str(caught.value) == (
        "ModelPruning finds nothing to prune in Net: parameters_to_prune=[], parameter_names=None; its parameters are: " + NAMES
    )


# ---- Optimizers


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_optimizer_updates_what_is_left_and_nothing_else(optimizer):
    class Look(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            layer = module.net[2]
            mine = [id(p) for p in module.parameters()]
            theirs = [id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]]
            assert set(mine) == set(theirs) and len(mine) == len(theirs)
            if trainer.current_epoch == 1:
                assert torch.equal(layer.weight == 0, layer.weight_mask == 0)
                changes.append(layer.weight_orig.detach().clone())

    changes = []
    callback = ModelPruning("l1_unstructured", ["net.2.weight"], use_lottery_ticket_hypothesis=False)
    module, trainer = fitted(callback, Net(optimizer), epochs=2, callbacks=[Look()])
    kept = module.net[2].weight != 0
    assert not torch.equal(changes[0][kept], changes[-1][kept])
    assert isinstance(module.net[2].weight, nn.Parameter)
    assert id(module.net[2].weight) in {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}


# ---- Checkpoints


class SaveAt(Callback):
    runs_last = True

    def __init__(self, folder, at=()):
        self.folder, self.at = folder, at

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches in self.at:
            trainer.save_checkpoint(self.folder / f"batch{trainer.progress.batches}.ckpt")

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}.ckpt")


RESUMED = [
    {},
    {"pruning_fn": "random_unstructured"},
    {"use_lottery_ticket_hypothesis": False},
    {"resample_parameters": True, "parameter_names": ["weight"]},
    {"use_global_unstructured": False, "amount": 0.2},
    {"pruning_fn": "ln_structured", "use_global_unstructured": False, "amount": 1, "pruning_dim": 1, "pruning_norm": 2},
    {"prune_on_train_epoch_end": False},
]


@pytest.mark.parametrize("permanent", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("options", RESUMED)
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, options, optimizer, permanent):
    def make():
        return ModelPruning(**{"pruning_fn": "l1_unstructured", "make_pruning_permanent": permanent, "amount": 0.3, **options})

    whole, points = make(), (3, 8, 9, 20, 24)
    torch.manual_seed(7)
    module, _ = fitted(whole, Net(optimizer), val=batches(2), callbacks=[SaveAt(tmp_path, points)])
    for point in [f"batch{n}" for n in points] + [f"epoch{n}" for n in range(3)]:
        again, resumed = make(), Net(optimizer)
        trainer = quiet(max_epochs=3, callbacks=again)
        trainer.fit(resumed, batches(), batches(2), ckpt_path=tmp_path / f"{point}.ckpt")
        mine, theirs = resumed.state_dict(), module.state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine), point
        assert same_nested(again.state_dict(), whole.state_dict()), point
        assert resumed.losses == module.losses[len(module.losses) - len(resumed.losses) :]


def same_nested(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_nested(one[key], other[key]) for key in one)
    return torch.equal(one, other)


@pytest.mark.parametrize("permanent", [True, False])
def test_the_weights_in_a_file(tmp_path, permanent):
    callback = ModelPruning("l1_unstructured", ["net.2.weight"], make_pruning_permanent=permanent)
    module, trainer = fitted(callback, callbacks=[SaveAt(tmp_path)])
    file = torch.load(tmp_path / "epoch1.ckpt", weights_only=True)
    pruned = {"net.2.weight_orig", "net.2.weight_mask"}
    assert ("net.2.weight" in file["state_dict"]) is permanent
    assert (pruned <= file["state_dict"].keys()) is not permanent
    assert file["callbacks"]["ModelPruning"]["masks"].keys() == {"net.2.weight"}
    assert (pruned <= module.state_dict().keys()) is not permanent
    assert prune.is_pruned(module) is not permanent
    other = ModelPruning("l1_unstructured", ["net.2.weight"], make_pruning_permanent=permanent)
    fresh = Net()
    loss = quiet(callbacks=other).validate(fresh, batches(2), ckpt_path=tmp_path / "epoch1.ckpt")
    assert int((fresh.net[2].weight == 0).sum()) == 48
    if permanent:
        plain = Net.load_from_checkpoint(tmp_path / "epoch1.ckpt")
        assert int((plain.net[2].weight == 0).sum()) == 48
        assert quiet().validate(plain, batches(2)) == loss
    trainer.save_checkpoint(tmp_path / "light.ckpt", weights_only=True)
    light = torch.load(tmp_path / "light.ckpt", weights_only=True)
    assert light["state_dict"].keys() == module.state_dict().keys()


def test_the_same_module_goes_on(tmp_path):
    callback = ModelPruning("l1_unstructured", ["net.2.weight"], make_pruning_permanent=False)
    module, _ = fitted(callback, epochs=2, callbacks=[SaveAt(tmp_path)])
    fitted(callback, module, epochs=1)  # it is pruned already
    assert callback.sparsity() == 1 - 0.5**3
    quiet(callbacks=callback).validate(module, batches(1), ckpt_path=tmp_path / "epoch0.ckpt")
    assert int((module.net[2].weight_mask == 0).sum()) == 32


def test_a_checkpoint_of_another_model(tmp_path):
    fitted(ModelPruning("l1_unstructured", ["net.2.weight"]), callbacks=[SaveAt(tmp_path)])

    class Short(Net):
        def __init__(self):
            super().__init__()
            self.net = self.net[:2]

    with pytest.raises(CheckpointError) as caught:
        quiet(max_epochs=3, callbacks=ModelPruning("l1_unstructured"), limit_val_batches=0).fit(
            Short(), batches(), ckpt_path=tmp_path / "epoch1.ckpt"
        )
    assert str(caught.value) == (
        "the checkpoint has a mask for 'net.2.weight', and Short has no such parameter; build the module as it was"
    )


# ---- What people see


def test_the_sparsity_is_logged_and_printed(capsys):
    logger = RecordingLogger()
    fitted(ModelPruning("l1_unstructured", ["net.2.weight"]), epochs=2, logger=logger, log_every_n_steps=8)
    assert [row["sparsity"] for row in logger.rows if "sparsity" in row] == [0.5, 0.75]
    assert capsys.readouterr().out == ""
    callback = ModelPruning("l1_unstructured", ["net.2.weight", "net.0.weight"], verbose=1)
    _, trainer = fitted(callback, epochs=1)
    assert capsys.readouterr().out == "pruned in epoch 0: 50.00% of 2 parameters are zero\n"
    assert trainer.callback_metrics["sparsity"].item() == 0.5
    fitted(ModelPruning("l1_unstructured", ["net.2.weight"], amount=8, verbose=2), epochs=1)
    assert capsys.readouterr().out == ("pruned in epoch 0: 12.50% of 1 parameters are zero\n  net.2.weight   12.50%  8 of 64\n")


def test_sparsities_by_name():
    given = {"use_global_unstructured": False, "amount": 2, "make_pruning_permanent": False}
    callback = ModelPruning("l1_unstructured", ["net.2.weight", "net.2.bias"], **given)
    assert callback.sparsity() == 0.0
    fitted(callback, epochs=1)
    assert callback.sparsities() == {"net.2.weight": pytest.approx(2 / 64), "net.2.bias": pytest.approx(2 / 8)}


def test_names():
    assert ByName is ModelPruning
    trainer = quiet(callbacks={"name": "pruning?pruning_fn=l1_unstructured", "amount": 0.1})
    assert trainer.callbacks[0].amount == 0.1


# ---- Wrong options


NAMES = "net.0.weight, net.0.bias, net.2.weight, net.2.bias, net.4.weight, net.4.bias"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"parameters_to_prune": ["net.0.wieght"]},
            "parameters_to_prune names 'net.0.wieght', which Net does not have; did you mean 'net.0.weight'?; it has: " + NAMES,
        ),
        (
            {"parameters_to_prune": [3]},
            "parameters_to_prune holds 3; allowed are pairs (layer, 'weight'), and names such as 'net.0.weight'",
        ),
        (
            {"parameters_to_prune": [(nn.Linear(1, 1), "weight")]},
            "parameters_to_prune holds a Linear that is no part of Net; give names such as 'net.0.weight', or make the "
            "callback in configure_callbacks",
        ),
        (
            {"parameter_names": ["kernel"]},
            "ModelPruning finds nothing to prune in Net: parameters_to_prune=None, parameter_names=['kernel']; its "
            "parameters are: " + NAMES,
        ),
        (
            {"prune_on_train_epoch_end": False},
            "prune_on_train_epoch_end=False prunes after validations, and this training has none: leave it True, or give "
            "validation_step and data",
        ),
        (
            {"amount": lambda epoch: "much"},
            "amount='much' is not allowed; allowed: a fraction from 0.0 to 1.0, a whole number from 0, or a function of the "
            "epoch that gives one",
        ),
    ],
)
def test_what_does_not_fit_the_module(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        fitted(ModelPruning("l1_unstructured", **arguments))
    assert str(caught.value) == message


def test_pairs_and_layers_that_cannot_be_used():
    module = Net()
    with pytest.raises(ConfigurationError) as caught:
        fitted(ModelPruning("l1_unstructured", [(module.net[0], "kernel")]), module)
    assert str(caught.value) == "parameters_to_prune asks for 'kernel' of a Linear, which has: weight, bias"

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x * self.weight

    module = Regression()
    module.net.append(Scale())
    with pytest.raises(ConfigurationError) as caught:
        fitted(ModelPruning("l1_unstructured", resample_parameters=True), module)
    assert str(caught.value) == (
        "resample_parameters=True calls reset_parameters of each layer, and Scale, which has 'net.4.weight', has no such "
        "method; define it, or leave the layer out of parameters_to_prune"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("resample", [True, False])
def test_on_cuda(resample):
    callback = ModelPruning("l1_unstructured", ["net.2.weight"], resample_parameters=resample)
    module, _ = fitted(callback, accelerator="cuda", devices=1)
    assert int((module.net[2].weight == 0).sum()) == 56
