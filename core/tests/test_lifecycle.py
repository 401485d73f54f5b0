"""What is set up is put back, whatever happens."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, DataModule, Trainer
from fulmen.testing import Regression, Validated, batches, quiet, same_weights


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


def test_a_teardown_that_fails_stops_no_other_and_hides_no_failure():
    told = []

    class Failing(Callback):
        def __init__(self, name):
            self.name = name

        def teardown(self, trainer, module, stage):
            told.append(self.name)
            raise ValueError(self.name)

    class Data(DataModule):
        def train_dataloader(self):
            return batches(1)

        def teardown(self, stage):
            told.append("data")

    class Broken(Regression):
        def on_train_end(self):
            raise RuntimeError("boom")

    with pytest.raises(ValueError, match="first") as caught:
        quiet(max_epochs=1, callbacks=[Failing("first"), Failing("second")]).fit(Regression(), datamodule=Data())
    assert told == ["data", "first", "second"]
    if hasattr(caught.value, "__notes__"):
        assert caught.value.__notes__ == ["teardown failed too: ValueError: second"]
    with pytest.raises(RuntimeError, match="boom"):
        quiet(max_epochs=1, callbacks=Failing("first")).fit(Broken(), batches(1))


def test_a_module_without_what_the_stage_needs_is_refused_before_anything_is_set_up():
    class Prepared(DataModule):
        prepared = False

        def prepare_data(self):
            self.prepared = True

        def test_dataloader(self):
            return batches(1)

    data = Prepared()
    with pytest.raises(Exception, match="Regression has no test_step, which test needs"):
        quiet().test(Regression(), datamodule=data)
    assert not data.prepared


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
