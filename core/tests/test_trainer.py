"""The trainer as people use it: counting, limits, validation, results, errors, exits, and what stays in memory."""

from __future__ import annotations

import gc
import os
import signal
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, CombinedLoader, ConfigurationError, DataModule, Module, ModuleError, Options, Trainer
from fulmen.testing import QUIET, Regression, Validated, batches, quiet, same_weights
from fulmen.trainer import check_names


class Counting(Validated):
    """Notes which epochs and batches it sees."""

    def __init__(self):
        super().__init__()
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append((self.current_epoch, batch_idx))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.validated.append((self.global_step, batch_idx))
        super().validation_step(batch, batch_idx)


def counted(data=8, val=1, **options):
    module, trainer = Counting(), quiet(**options)
    trainer.fit(module, batches(data), batches(val))
    return module, trainer


# ---- Counting

LENGTHS = [
    ({"max_epochs": 3}, 24, 3, "max_epochs=3 reached"),
    ({"max_steps": 10}, 10, 1, "max_steps=10 reached"),
    ({"max_epochs": 5, "max_steps": 8}, 8, 1, "max_steps=8 reached"),
    ({"max_epochs": 2, "limit_train_batches": 3}, 6, 2, "max_epochs=2 reached"),
    ({"max_epochs": 2, "limit_train_batches": 0.5}, 8, 2, "max_epochs=2 reached"),
    ({"max_epochs": 2, "limit_train_batches": 0}, 0, 0, None),
    ({"max_epochs": 2, "overfit_batches": 2}, 4, 2, "max_epochs=2 reached"),
    ({"max_epochs": 2, "accumulate_grad_batches": 3}, 6, 2, "max_epochs=2 reached"),
    ({"max_epochs": 3, "accumulate_grad_batches": {0: 1, 1: 4}}, 8 + 2 + 2, 3, "max_epochs=3 reached"),
    ({"fast_dev_run": True}, 1, 1, "max_steps=1 reached"),
    ({"fast_dev_run": 3}, 3, 1, "max_steps=3 reached"),
    ({"max_epochs": 0}, 0, 0, "max_epochs=0 reached"),
]


@pytest.mark.parametrize(("options", "steps", "epochs", "reason"), LENGTHS)
def test_how_long_a_training_is(options, steps, epochs, reason):
    _, trainer = counted(**options)
    assert (trainer.global_step, trainer.current_epoch, trainer.stop_reason) == (steps, epochs, reason)
    assert trainer.status == "finished"


VALIDATIONS = [
    ({}, [8, 16]),
    ({"val_check_interval": 0.25}, [2, 4, 6, 8, 10, 12, 14, 16]),
    ({"val_check_interval": 3}, [3, 6, 11, 14]),
    ({"val_check_interval": 5, "check_val_every_n_epoch": None}, [5, 10, 15]),
    ({"check_val_every_n_epoch": 2}, [16]),
    ({"limit_val_batches": 0}, []),
    ({"max_steps": 11}, [8]),
]


@pytest.mark.parametrize(("options", "steps"), VALIDATIONS)
def test_when_it_validates(options, steps):
    module, _ = counted(**{"max_epochs": 2, **options})
    assert [step for step, _ in module.validated] == steps


def test_a_request_to_stop_waits_for_the_minimum():
    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.should_stop = True

    _, trainer = counted(max_epochs=5, callbacks=Stop())
    assert (trainer.global_step, trainer.stop_reason) == (1, "trainer.should_stop was set")
    _, trainer = counted(max_epochs=5, min_steps=11, callbacks=Stop())
    assert trainer.global_step == 11
    _, trainer = counted(max_epochs=5, min_epochs=2, callbacks=Stop())
    assert trainer.global_step == 16


def test_the_sanity_check_leaves_no_trace():
    first, trainer = counted(max_epochs=1, num_sanity_val_steps=0)
    second, other = counted(max_epochs=1, num_sanity_val_steps=-1)
    assert first.losses == second.losses
    assert trainer.callback_metrics == other.callback_metrics
    assert trainer.num_sanity_val_batches == [0]
    assert other.num_sanity_val_batches == [1]


def test_estimated_stepping_batches_is_what_happens():
    class Planned(Regression):
        def configure_optimizers(self):
            self.planned = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    for options in ({"accumulate_grad_batches": 3}, {"max_steps": 5}, {"limit_train_batches": 0.5}):
        module, trainer = Planned(), quiet(**{"max_epochs": 3, **options})
        trainer.fit(module, batches())
        assert module.planned == trainer.global_step


def test_loaders_are_reloaded_when_asked_for():
    class Reloaded(Regression):
        calls = 0

        def train_dataloader(self):
            self.calls += 1
            return batches(2)

    module = Reloaded()
    quiet(max_epochs=4, reload_dataloaders_every_n_epochs=2).fit(module)
    assert module.calls == 2


def test_overfitting_is_unshuffled():
    seen = []

    class Seen(Regression):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0][0, 0].item())
            return super().training_step(batch, batch_idx)

    x = torch.arange(20.0).unsqueeze(1).expand(20, 3)
    loader = DataLoader(TensorDataset(x, x[:, :1]), batch_size=2, shuffle=True)
    quiet(max_epochs=2, overfit_batches=3).fit(Seen(lr=1e-6), loader)
    assert seen == [0.0, 2.0, 4.0] * 2


def test_modes_of_submodules_and_switches_are_put_back():
    class Frozen(Validated):
        def on_train_start(self):
            self.net[0].eval()

    module = Frozen()
    trainer = quiet(max_epochs=1, deterministic=True, detect_anomaly=False, callbacks=None)
    trainer.fit(module, batches(), batches(1))
    assert [part.training for part in (module, module.net, module.net[0], module.net[2])] == [True, True, False, True]
    assert not torch.are_deterministic_algorithms_enabled()
    trainer.test(module, batches(1), verbose=False)
    assert not module.net[0].training
    assert module.net[2].training


def test_evaluation_is_under_inference_mode_unless_told_otherwise():
    class Mode(Validated):
        def predict_step(self, batch, batch_idx):
            return torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    assert quiet().predict(Mode(), batches(1)) == [(True, False)]
    assert quiet(inference_mode=False).predict(Mode(), batches(1)) == [(False, False)]


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


# ---- Exits


def test_ctrl_c_finishes_the_step_and_returns_with_the_reason(tmp_path):
    class Press(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    trainer = Trainer(**{**QUIET, "enable_checkpointing": True}, max_epochs=2, callbacks=Press(), default_root_dir=tmp_path)
    trainer.fit(Regression(), batches())
    assert (trainer.global_step, trainer.interrupted, trainer.stop_reason) == (4, True, "stopped by Ctrl-C")
    assert [path.name for path in tmp_path.rglob("*.ckpt")] == ["epoch=0-step=4.ckpt"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_interrupts():
    class Press(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        quiet(max_epochs=1, callbacks=Press()).fit(Regression(), batches())


def test_everyone_learns_of_a_failure_and_the_first_is_raised():
    told = []

    class Told(Callback):
        def on_exception(self, trainer, module, exception):
            told.append(str(exception))
            raise ValueError("a second failure")

        def teardown(self, trainer, module, stage):
            told.append(f"teardown {stage}")

    class Failing(Regression):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("boom")

    trainer = quiet(max_epochs=1, callbacks=Told())
    with pytest.raises(RuntimeError, match="boom") as caught:
        trainer.fit(Failing(), batches())
    assert told == ["boom", "teardown fit"]
    assert trainer.status == "failed"
    if hasattr(caught.value, "__notes__"):
        assert caught.value.__notes__ == ["on_exception failed too: ValueError: a second failure"]


# ---- Memory


def test_trainer_and_module_are_freed(tmp_path):
    module = Validated()
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, log_every_n_steps=2)
    data = DataLoader(TensorDataset(*(torch.cat(part) for part in zip(*batches(), strict=True))), 4, num_workers=1)
    trainer.fit(module, data, batches(1))
    trainer.test(module, batches(1), verbose=False)
    trainer.predict(module, batches(1))
    alive = weakref.ref(module), weakref.ref(trainer), weakref.ref(trainer.optimizers[0] if trainer.optimizers else module)
    del module, trainer
    gc.collect()
    assert [reference() for reference in alive] == [None, None, None]


def test_a_second_fit_starts_anew():
    module, trainer = Regression(), quiet(max_epochs=1)
    trainer.fit(module, batches())
    trainer.fit(module, batches())
    assert (trainer.global_step, trainer.current_epoch) == (8, 1)
    assert not same_weights(module, Regression())
