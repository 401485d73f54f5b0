"""The trainer as people use it: counting, limits, validation, results, errors, exits, and what stays in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen import CombinedLoader, ConfigurationError, DataModule, Module, ModuleError, Options, Trainer
from fulmen.testing import Regression, Validated, batches, quiet
from fulmen.trainer import check_names

# ---- Results


def test_results_of_validate_test_and_predict(capsys):
    module, trainer = Validated(), quiet()
    (found,) = trainer.test(module, batches(2))
    with torch.no_grad():
        module.eval()
        expected = sum(nn.functional.mse_loss(module(x), y).item() for x, y in batches(2)) / 2
    assert found["test_loss"] == pytest.approx(expected, rel=1e-6)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [rows[0], rows[2]] == [["test", "loader", "0"], ["test_loss", f"{expected:.6g}"]]


def test_each_loader_has_its_own_metrics():
    class Indexed(Validated):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            super().validation_step(batch, batch_idx)

    module, trainer = Indexed(), quiet()
    assert list(trainer.validate(module, [DataLoader(batches(1), None), DataLoader(batches(1), None)], verbose=False)) == [
        {"val_loss/dataloader_idx_0": pytest.approx(trainer.callback_metrics["val_loss/dataloader_idx_0"].item())},
        {"val_loss/dataloader_idx_1": pytest.approx(trainer.callback_metrics["val_loss/dataloader_idx_1"].item())},
    ]


def test_predictions_are_per_batch_and_per_loader():
    class Indexed(Validated):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return super().predict_step(batch, batch_idx)

    module, trainer = Indexed(), quiet()
    assert [p.shape for p in trainer.predict(module, batches(3))] == [(4, 1)] * 3
    several = trainer.predict(module, [DataLoader(batches(1), None), DataLoader(batches(2), None)])
    assert [len(one) for one in several] == [1, 2]
    assert trainer.predict(module, batches(1), return_predictions=False) is None


def test_several_loaders_need_a_step_that_takes_the_index():
    class Short(Regression):
        def validation_step(self, batch, batch_idx):
            pass

    with pytest.raises(ModuleError) as caught:
        quiet().validate(Short(), [DataLoader(batches(1), None), DataLoader(batches(1), None)])
    assert str(caught.value) == (
        "there are several loaders, and Short.validation_step does not take the index of the loader: "
        "def validation_step(self, batch, batch_idx, dataloader_idx)"
    )


def test_without_a_model_the_latest_is_used():
    module, trainer = Validated(), quiet(max_epochs=1)
    trainer.fit(module, batches(), batches(1))
    assert trainer.test(dataloaders=batches(1), verbose=False) == trainer.test(module, batches(1), verbose=False)


def test_any_iterable_and_any_collection_is_a_loader():
    arrays = [np.ones((4, 3), dtype=np.float32) for _ in range(3)]

    class Arrays(Regression):
        def training_step(self, batch, batch_idx):
            return self.net(torch.as_tensor(batch)).mean()

    trainer = quiet(max_epochs=1)
    trainer.fit(Arrays(), arrays)
    assert trainer.global_step == 3

    class Both(Regression):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx) + super().training_step(batch["b"][0], batch_idx)

    loaders = {"a": DataLoader(batches(3), None), "b": [DataLoader(batches(2), None)]}
    for mode, steps in ((None, 3), ("min_size", 2), ("max_size_cycle", 3)):
        trainer = quiet(max_epochs=1)
        trainer.fit(Both(), loaders if mode is None else CombinedLoader(loaders, mode))
        assert trainer.global_step == steps


def test_a_data_module_is_found_in_either_place():
    data = DataModule.from_datasets(batches(4), batches(2), batch_size=None)
    for arguments in ({"train_dataloaders": data}, {"datamodule": data}):
        trainer = quiet(max_epochs=1)
        trainer.fit(Validated(), **arguments)
        assert (trainer.global_step, trainer.num_val_batches) == (4, [2])


# ---- Errors

NO_DATA = "fit has no data: pass train_dataloaders= or datamodule=, or define train_dataloader in Regression or its data module"
FAULTS = [
    (lambda: quiet().fit(Regression()), ModuleError, NO_DATA),
    (
        lambda: quiet().fit(nn.Linear(1, 1), batches()),
        ModuleError,
        "Linear is no fulmen.Module; let its class derive from fulmen.Module and add training_step",
    ),
    (
        lambda: quiet().fit(Module(), batches()),
        ModuleError,
        "Module has no training_step, which fit needs: def training_step(self, batch, batch_idx)",
    ),
    (
        lambda: quiet().test(Regression(), batches()),
        ModuleError,
        "Regression has no test_step, which test needs: def test_step(self, batch, batch_idx)",
    ),
    (
        lambda: quiet().fit(Regression(), []),
        ModuleError,
        "train_dataloader is empty: it gives no batch. Check the dataset, its filter and drop_last; 0 as limit_train_batches "
        "skips it",
    ),
    (
        lambda: quiet(max_epochs=2).fit(Regression(), iter(batches())),
        ModuleError,
        "train_dataloader gave no batch in epoch 1: it is empty, or an iterator that can be used only once",
    ),
    (
        lambda: quiet(limit_train_batches=0.01).fit(Regression(), batches()),
        ModuleError,
        "limit_train_batches=0.01 of the 8 batches of train_dataloader is none; give at least 0.125, or a number of batches",
    ),
    (lambda: quiet().test(), ModuleError, "this trainer has no module yet: pass one, or call fit before"),
    (lambda: quiet(max_epoch=3), ConfigurationError, "Trainer has no argument max_epoch=3; did you mean 'max_epochs'?"),
    (
        lambda: quiet(gpus=2),
        ConfigurationError,
        "Trainer has no argument gpus=2; use accelerator='gpu', devices=...",
    ),
    (
        lambda: quiet(max_epochs="3"),
        ConfigurationError,
        "max_epochs='3' is not allowed; allowed: a whole number from 0, or -1 for no limit, or None",
    ),
    (
        lambda: quiet().fit(Regression(), DataModule(), datamodule=DataModule()),
        ConfigurationError,
        "fit was given two data modules; pass one as datamodule=",
    ),
    (
        lambda: Regression().trainer,
        ModuleError,
        "Regression is not attached to a trainer yet: pass it to trainer.fit, validate, test or predict",
    ),
]


@pytest.mark.parametrize(("action", "kind", "message"), FAULTS, ids=range(len(FAULTS)))
def test_a_fault_says_what_to_do(action, kind, message):
    with pytest.raises(kind) as caught:
        action()
    assert str(caught.value) == message


def test_arguments_are_the_options_with_their_defaults():
    import inspect
    from dataclasses import fields

    parameters = inspect.signature(Trainer).parameters
    for field in fields(Options):
        assert getattr(Options(), field.name) == getattr(Options(**{field.name: parameters[field.name].default}), field.name)
    check_names({})
