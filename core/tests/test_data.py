"""What the trainer accepts as a loader, how much of it is used, and how a batch reaches the device."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fulmen import CombinedLoader, ConfigurationError, DataModule, ModuleError, Precision
from fulmen.contracts.strategy import Strategy
from fulmen.data import Loaders, limited, make_move
from fulmen.testing import FakeAccelerator, Regression, Validated, batches, quiet, same_weights


class Seen(Regression):
    """Keeps the batches it is given; learns nothing from them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return next(self.parameters()).sum()


class SeenInValidation(Seen):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen.append((dataloader_idx, batch_idx, batch))


class Custom:
    """An iterable without a length."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))


class Indexed:
    """The sequence protocol of old: no __iter__."""

    def __getitem__(self, index):
        if index >= 3:
            raise IndexError
        return index

    def __len__(self):
        return 3


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(6))


ARRAYS = [np.ones((2, 3)), np.zeros((2, 3))]
ITERABLES = [
    (ARRAYS, 2, 2),
    ((value for value in range(4)), float("inf"), 4),
    (Custom(3), float("inf"), 3),
    (Indexed(), 3, 3),
    (range(5), 5, 5),
    ({1, 2}, 2, 2),
    (["a", "b"], 2, 2),
    ([{"x": 1}, {"x": 2}], 2, 2),
    (DataLoader(range(10), batch_size=4), 3, 3),
    (DataLoader(range(10), batch_size=4, drop_last=True), 2, 2),
    (DataLoader(Stream(), batch_size=2), float("inf"), 3),
]


@pytest.mark.parametrize(("loader", "known", "count"), ITERABLES, ids=range(len(ITERABLES)))
def test_any_iterable_is_a_loader(loader, known, count):
    module, trainer = Seen(), quiet(max_epochs=1)
    trainer.fit(module, loader)
    assert (trainer.num_training_batches, len(module.seen), trainer.global_step) == (known, count, count)


def test_a_loader_of_unknown_length_can_be_limited_by_a_count():
    module, trainer = Seen(), quiet(max_epochs=2, limit_train_batches=2)
    trainer.fit(module, Custom(9))
    assert module.seen == [0, 1, 0, 1]
    assert trainer.num_training_batches == 2


def test_what_is_no_iterable_is_refused():
    with pytest.raises(ModuleError) as caught:
        quiet(max_epochs=1).fit(Seen(), 3)
    assert str(caught.value) == (
        "train_dataloader gave a int, which is no loader; allowed is any iterable of batches, or a dictionary, list or "
        "tuple of them"
    )


NESTED = [
    ({"a": range(3), "b": [range(2), range(4)]}, [{"a": 0, "b": [0, 0]}, {"a": 1, "b": [1, 1]}]),
    ((range(3), range(5, 9)), [(0, 5), (1, 6)]),
    ([range(3), DataLoader(range(2), None)], [[0, 0], [1, 1]]),
]


@pytest.mark.parametrize(("loaders", "first"), NESTED, ids=range(len(NESTED)))
def test_collections_of_loaders_train_together(loaders, first):
    module = Seen()
    quiet(max_epochs=1).fit(module, loaders)
    assert module.seen[:2] == first


MODES = [
    ("min_size", [[0, 0], [1, 1]]),
    ("max_size_cycle", [[0, 0], [1, 1], [2, 0]]),
    ("max_size", [[0, 0], [1, 1], [2, None]]),
]


@pytest.mark.parametrize(("mode", "seen"), MODES)
def test_modes_of_combination(mode, seen):
    module, trainer = Seen(), quiet(max_epochs=1)
    trainer.fit(module, CombinedLoader([range(3), range(2)], mode))
    assert module.seen == seen
    assert trainer.num_training_batches == len(seen)


def test_a_combination_with_an_unknown_length_ends_with_the_shortest_known():
    module, trainer = Seen(), quiet(max_epochs=1)
    trainer.fit(module, CombinedLoader([Custom(9), range(2)], "min_size"))
    assert module.seen == [[0, 0], [1, 1]]
    trainer.fit(module, CombinedLoader([Custom(1), range(2)], "min_size"))
    assert module.seen[2:] == [[0, 0]]


def test_training_one_loader_after_the_other_is_refused():
    with pytest.raises(ConfigurationError) as caught:
        quiet().fit(Seen(), CombinedLoader([range(3)], "sequential"))
    assert str(caught.value) == ("train_dataloader cannot be combined in mode 'sequential'; use 'max_size_cycle' or 'min_size'")


def test_several_loaders_are_evaluated_one_after_the_other():
    module, trainer = SeenInValidation(), quiet(limit_val_batches=2)
    trainer.validate(module, {"a": range(3), "b": range(1)}, verbose=False)
    assert module.seen == [(0, 0, 0), (0, 1, 1), (1, 0, 0)]
    assert trainer.num_val_batches == [2, 1]


def test_an_evaluation_may_combine_loaders_as_told():
    module, trainer = SeenInValidation(), quiet()
    trainer.validate(module, CombinedLoader([range(3), range(1)], "max_size"), verbose=False)
    assert module.seen == [(0, 0, [0, 0]), (0, 1, [1, None]), (0, 2, [2, None])]


# ---- Limits

LIMITS = [
    (8, 1.0, 8),
    (8, 1, 1),
    (8, 0.5, 4),
    (100, 0.29, 29),
    (7, 0.5, 3),
    (8, 20, 8),
    (8, 0, 0),
    (None, 0.0, 0),
    (None, 5, 5),
    (None, 1.0, float("inf")),
    (0, 0, 0),
]


@pytest.mark.parametrize(("length", "limit", "count"), LIMITS)
def test_a_limit_is_a_count_or_a_fraction(length, limit, count):
    assert limited(length, limit, "train_dataloader", "train") == count


FAULTS = [
    (
        (0, 1.0, "val_dataloader", "validate"),
        "val_dataloader is empty: it gives no batch. Check the dataset, its filter and drop_last; 0 as limit_val_batches "
        "skips it",
    ),
    (
        (None, 0.5, "test_dataloader", "test"),
        "limit_test_batches=0.5 is a fraction, and test_dataloader does not know its length; give a number of batches, or "
        "define __len__",
    ),
    (
        (4, 0.2, "predict_dataloader", "predict"),
        "limit_predict_batches=0.2 of the 4 batches of predict_dataloader is none; give at least 0.25, or a number of batches",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), FAULTS)
def test_a_limit_that_cannot_be_applied(arguments, message):
    with pytest.raises(ModuleError) as caught:
        limited(*arguments)
    assert str(caught.value) == message


def test_each_stage_has_its_limit():
    module = Validated()
    trainer = quiet(max_epochs=1, limit_train_batches=3, limit_val_batches=0.5, limit_test_batches=1, limit_predict_batches=2)
    trainer.fit(module, batches(8), batches(4))
    assert (trainer.num_training_batches, trainer.num_val_batches) == (3, [2])
    trainer.test(module, batches(4), verbose=False)
    assert trainer.num_test_batches == [1]
    assert len(trainer.predict(module, batches(4))) == 2
    assert trainer.num_predict_batches == [2]


def test_a_stage_limited_to_nothing_is_skipped():
    module = Validated()
    trainer = quiet(limit_test_batches=0, limit_predict_batches=0)
    assert trainer.test(module, batches(2), verbose=False) == []
    assert trainer.predict(module, batches(2)) == []


def test_a_loader_method_that_returns_nothing():
    class Forgot(Regression):
        def train_dataloader(self):
            batches(2)

    with pytest.raises(ModuleError) as caught:
        quiet().fit(Forgot())
    assert str(caught.value) == "Forgot.train_dataloader returned None; it must return a loader, or a collection of them"


# ---- Moving

Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Sample:
    x: torch.Tensor


class Movable:
    def __init__(self, device="cpu"):
        self.device = device

    def to(self, device):
        return Movable(str(device))


MOVED = [
    ({"a": torch.zeros(1)}, lambda b: b["a"].device),
    ([torch.zeros(1), 3], lambda b: b[0].device),
    ((torch.zeros(1),), lambda b: b[0].device),
    (Pair(torch.zeros(1), 2), lambda b: b.x.device),
    (Sample(torch.zeros(1)), lambda b: b.x.device),
    (Movable(), lambda b: b.device),
]


@pytest.mark.parametrize(("batch", "device"), MOVED, ids=range(len(MOVED)))
def test_batches_of_every_shape_reach_the_device(batch, device):
    move = make_move(Regression(), None, torch.device("meta"), Precision(), 0)
    moved = move(batch)
    assert type(moved) is type(batch)
    assert str(device(moved)) == "meta"


def test_on_the_host_there_is_nothing_to_move():
    assert make_move(Regression(), DataModule(), torch.device("cpu"), Precision(), 0) is None


class Transfers:
    """The three hooks around a transfer, for a module or a data module."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return [*batch, f"{type(self).__name__} before {dataloader_idx}"]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return [*super().transfer_batch_to_device(batch, device, dataloader_idx), f"{type(self).__name__} {device}"]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [*batch, f"{type(self).__name__} after"]


class TransferringModule(Transfers, Seen):
    pass


class TransferringValidation(Transfers, SeenInValidation):
    pass


class TransferringData(Transfers, DataModule):
    pass


class Before(DataModule):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return [*batch, "Before"]


def test_hooks_around_the_transfer_are_called_in_order():
    module = TransferringModule()
    quiet(max_epochs=1).fit(module, [[0]])
    name = "TransferringModule"
    assert module.seen == [[0, f"{name} before 0", f"{name} cpu", f"{name} after"]]


def test_the_data_module_wins_where_it_overrides_a_hook():
    module, data = TransferringModule(), TransferringData()
    data.train_dataloader = lambda: [[0]]
    quiet(max_epochs=1).fit(module, datamodule=data)
    name = "TransferringData"
    assert module.seen == [[0, f"{name} before 0", f"{name} cpu", f"{name} after"]]
    module = TransferringModule()
    quiet(max_epochs=1).fit(module, [[0]], datamodule=Before())
    assert module.seen == [[0, "Before", "TransferringModule cpu", "TransferringModule after"]]


def test_hooks_learn_the_index_of_the_loader():
    module = TransferringValidation()
    quiet().validate(module, [DataLoader([[0]], None), DataLoader([[1]], None)], verbose=False)
    assert [batch[1] for _, _, batch in module.seen] == ["TransferringValidation before 0", "TransferringValidation before 1"]


@pytest.mark.parametrize("name", ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"])
def test_a_hook_must_return_the_batch(name):
    class Forgetful(Seen):
        pass

    setattr(Forgetful, name, lambda self, *arguments: None)
    with pytest.raises(ModuleError) as caught:
        quiet(max_epochs=1).fit(Forgetful(), [[0]])
    assert str(caught.value) == f"{name} returned None; it must return the batch"


def test_the_precision_converts_what_was_moved():
    class Precise(Seen):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            assert batch.dtype == torch.float32
            return batch

        def on_after_batch_transfer(self, batch, dataloader_idx):
            assert batch.dtype == torch.float64
            return batch

    module = Precise()
    quiet(max_epochs=1, precision="64-true").fit(module, [torch.zeros(2)])
    assert module.seen[0].dtype == torch.float64


# ---- Shares of ranks


class TwoRanks(Strategy):
    """Rank 1 of two, without processes: only what loaders ask of a strategy."""

    name = "two"
    root_device = torch.device("cpu")

    def connect(self, accelerator, devices, num_nodes, environment):
        pass

    def sampler_arguments(self):
        return {"num_replicas": 2, "rank": 1}


def shares(loader, phase="validate", **options):
    loaders = Loaders(loader, phase, 1.0, strategy=TwoRanks(), **options)
    return [batch for _, each in loaders.each(0) for batch in each]


def test_each_rank_has_its_share():
    assert shares(DataLoader(range(8), None)) == [1, 3, 5, 7]
    assert [batch.tolist() for batch in shares(DataLoader(range(8), 2))] == [[1, 3], [5, 7]]
    assert shares(range(4)) == [1, 3]  # batches that lie ready are dealt out whole
    assert shares(range(1)) == [0]  # every rank has one
    assert shares(iter(range(4))) == [0, 1, 2, 3]  # nobody knows what they are
    with pytest.raises(ConfigurationError) as caught:
        shares(DataLoader(range(4), batch_sampler=Odd()))
    assert str(caught.value) == (
        "the loader's batch_sampler is a Odd, in which fulmen cannot replace the sampler; set "
        "use_distributed_sampler=False and let it give each rank its share"
    )


class Odd:
    def __iter__(self):
        return iter([[1], [3]])

    def __len__(self):
        return 2


def test_shuffled_training_data_are_shared_and_shuffled_anew_in_each_epoch():
    loaders = Loaders(DataLoader(range(20), None, shuffle=True), "train", 1.0, strategy=TwoRanks())
    first, second = list(loaders.iterate(0, 0)), list(loaders.iterate(1, 0))
    assert len(first) == len(second) == 10
    assert first != second
    assert first != sorted(first)


def test_the_number_of_loaders_must_not_change_over_a_resume():
    state = Loaders([range(2), range(2)], "train", 1.0).state_dict(1)
    with pytest.raises(ModuleError) as caught:
        Loaders(range(2), "train", 1.0).load_state_dict(state)
    assert str(caught.value) == (
        "train_dataloader gives 1 loaders, and the checkpoint was made with 2: the position in the data cannot be restored"
    )


def test_a_model_may_be_any_that_takes_the_batch():
    class Wide(Regression):
        def __init__(self):
            super().__init__()
            self.net = nn.LazyLinear(1)

        def training_step(self, batch, batch_idx):
            return self.net(torch.as_tensor(batch, dtype=torch.float32)).mean()

        def configure_model(self):
            self.net(torch.zeros(1, 3))

    trainer = quiet(max_epochs=1)
    trainer.fit(Wide(), ARRAYS)
    assert trainer.global_step == 2


# ---- Several loaders continue together


STOPS = [("min_size", 1), *((m, s) for m in ("max_size_cycle", "max_size") for s in (1, 2, 3, 4))]


@pytest.mark.parametrize(("mode", "stop"), STOPS)
def test_loaders_that_train_together_go_on_where_they_stopped(mode, stop):
    def make():
        loaders = {"long": DataLoader(range(10), 2, shuffle=True), "short": DataLoader(range(4), 2, shuffle=True)}
        return Loaders(CombinedLoader(loaders, mode), "train", 1.0)

    def taken(iterator):
        return [str(batch) for batch in iterator]

    torch.manual_seed(3)
    whole = make()
    first, second = taken(whole.iterate(0, 0)), taken(whole.iterate(1, 0))
    torch.manual_seed(3)
    cut = make()
    iterator = cut.iterate(0, 0)
    assert [str(next(iterator)) for _ in range(stop)] == first[:stop]
    state, random_numbers = cut.state_dict(stop), torch.get_rng_state()
    resumed = make()
    resumed.load_state_dict(state)
    torch.set_rng_state(random_numbers)
    assert taken(resumed.iterate(0, stop)) == first[stop:]
    assert taken(resumed.iterate(1, 0)) == second


# ---- Accelerators that bring batches to the device in a way of their own


class Delivering(FakeAccelerator):
    """Takes all batches of a loader before the first is used, where it may; keeps what it was told."""

    def __init__(self):
        super().__init__(1)
        self.told = []

    def batches(self, batches, move, ahead):
        self.told.append(ahead)
        return map(move, list(batches) if ahead else batches)


class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((3,), index / 8) + torch.rand(3), torch.rand(1)


class Prepares(Regression):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.prepared = True
        return batch


class Moves(Regression):
    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


class Endless(IterableDataset):
    def __iter__(self):
        return iter([torch.ones(3), torch.ones(1)] for _ in range(8))


class Finishes(Regression):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] * 0, batch[1]]


TAKEN_AHEAD = [
    (Regression, lambda: batches(4), [True]),
    (Regression, lambda: DataLoader(Rows(), 2, num_workers=1), [True]),
    (Regression, lambda: DataLoader(Endless(), 2, num_workers=1), [True]),
    (Regression, lambda: DataLoader(Rows(), 2), [False]),
    (Regression, lambda: (batch for batch in batches(4)), [False]),
    (Regression, lambda: CombinedLoader([DataLoader(Rows(), 2, num_workers=1)], "min_size"), [False]),
    (Prepares, lambda: batches(4), [False]),
    (Finishes, lambda: batches(4), [True]),
    (Moves, lambda: batches(4), []),
]


@pytest.mark.parametrize(("cls", "loader", "told"), TAKEN_AHEAD, ids=range(len(TAKEN_AHEAD)))
def test_an_accelerator_may_take_batches_ahead_where_that_leaves_no_trace(cls, loader, told):
    class Unpacks(cls):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[0] if isinstance(batch[0], (list, tuple)) else batch, batch_idx)

    module, accelerator = Unpacks(), Delivering()
    trainer = quiet(accelerator=accelerator, devices=1, max_epochs=1)
    trainer.fit(module, loader())
    assert (accelerator.told, trainer.global_step) == (told, 4)
    assert getattr(module, "prepared", cls is not Prepares)


def test_batches_of_each_evaluation_loader_are_delivered_too():
    accelerator = Delivering()
    trainer = quiet(accelerator=accelerator, devices=1)
    trainer.predict(Validated(), [DataLoader(Rows(), 2, num_workers=1), DataLoader(Rows(), 2)])
    assert accelerator.told == [True, False]


def test_what_was_taken_ahead_and_not_used_is_not_counted(tmp_path):
    def trained(**options):
        torch.manual_seed(1)
        module = Regression()
        trainer = quiet(accelerator=Delivering(), devices=1, **options)
        trainer.fit(module, DataLoader(Rows(), 2, shuffle=True, num_workers=1), **resume)
        return module, trainer

    resume = {}
    whole, _ = trained(max_steps=7)
    _, cut = trained(max_steps=5)
    cut.save_checkpoint(tmp_path / "cut.ckpt")
    resume = {"ckpt_path": tmp_path / "cut.ckpt"}
    resumed, _ = trained(max_steps=7)
    assert same_weights(whole, resumed)
