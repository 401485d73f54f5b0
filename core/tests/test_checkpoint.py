"""What is saved, what is refused, and that a resumed training equals one that never stopped."""

from __future__ import annotations

import csv
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fulmen
from fulmen import Callback, Checkpoint, CheckpointError, ConfigurationError, DataModule, FulmenWarning, Trainer
from fulmen.storage import write_checkpoint
from fulmen.testing import QUIET, Regression, Validated, batches, quiet, same_weights

KEYS = {
    *("format", "fulmen_version", "state_dict", "epoch", "global_step", "loops", "optimizer_states", "lr_schedulers"),
    *("callbacks", "precision", "hyper_parameters", "hparams_name", "loggers", "rng", "data", "run"),
}


class Noisy(Dataset):
    """Samples with random augmentation from every generator that people use."""

    def __len__(self):
        return 30

    def __getitem__(self, index):
        noise = torch.rand(1).item() + random.random() + np.random.rand()
        x = torch.full((3,), index / 30.0) + 0.1 * noise
        return x, x[:1]


class Scheduled(Validated):
    """Momentum, dropout, a scheduler by step and one by epoch."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        by_step = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        by_epoch = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": by_step, "interval": "step", "frequency": 2}, by_epoch]


class SaveAt(Callback):
    """Saves after some batch of the whole training."""

    def __init__(self, batch, path):
        self.batch, self.path, self.seen = batch, path, 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen += 1
        if trainer.progress.batches == self.batch:
            trainer.save_checkpoint(self.path)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state_dict):
        self.seen = state_dict["seen"]


LOADERS = {
    "shuffled": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "workers": lambda: DataLoader(Noisy(), 4, shuffle=True, num_workers=2),
    "persistent workers": lambda: DataLoader(Noisy(), 4, shuffle=True, num_workers=2, persistent_workers=True),
    "own generator": lambda: DataLoader(Noisy(), 4, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "list": lambda: batches(8),
}


def seed():
    for set_seed in (torch.manual_seed, random.seed, np.random.seed):
        set_seed(5)


def run(folder, loader, path=None, save_at=11, **options):
    """A training of two epochs of eight batches, which saves on the way, or starts from there."""
    seed()
    module, callback = Scheduled(), SaveAt(save_at, folder / "middle.ckpt")
    options = {"max_epochs": 2, "log_every_n_steps": 1, "val_check_interval": 4, **options}
    quiet_options = {**QUIET, "logger": None, "default_root_dir": folder}
    trainer = Trainer(**{**quiet_options, **options}, callbacks=callback)
    if path is not None:
        torch.rand(7), random.random(), np.random.rand()  # a resumed process is somewhere else
    trainer.fit(module, loader, batches(2), ckpt_path=path)
    return module, trainer, callback


def rows(folder):
    (path,) = folder.rglob("metrics.csv")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("save_at", [4, 8, 11, 16])
def test_a_resumed_training_equals_one_that_never_stopped(tmp_path, loader, save_at):
    whole, trainer, counted = run(tmp_path, LOADERS[loader](), save_at=save_at)
    resumed, again, recounted = run(tmp_path, LOADERS[loader](), tmp_path / "middle.ckpt", save_at=-1)
    assert same_weights(whole, resumed)
    assert whole.losses[save_at:] == resumed.losses
    assert {k: v.item() for k, v in trainer.callback_metrics.items()} == {
        k: v.item() for k, v in again.callback_metrics.items()
    }
    assert (again.global_step, again.current_epoch, recounted.seen) == (16, 2, counted.seen)


@pytest.mark.parametrize("save_at", [5, 6, 8, 14])
def test_an_open_accumulation_window_is_continued(tmp_path, save_at):
    options = {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5}
    whole, trainer, _ = run(tmp_path, batches(8), save_at=save_at, **options)
    resumed, again, _ = run(tmp_path, batches(8), tmp_path / "middle.ckpt", save_at=-1, **options)
    assert same_weights(whole, resumed)
    assert trainer.global_step == again.global_step == 6


def test_an_open_window_survives_a_fit_that_had_nothing_to_do(tmp_path):
    options = {"accumulate_grad_batches": 3}
    run(tmp_path, batches(8), save_at=5, **options)
    _, trainer, _ = run(tmp_path, batches(8), tmp_path / "middle.ckpt", save_at=-1, max_steps=1, **options)
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    before, after = (fulmen.read_checkpoint(tmp_path / name)["loops"]["fit_loop"] for name in ("middle.ckpt", "again.ckpt"))
    assert before["window"] == after["window"] and before["gradients"]
    assert all(torch.equal(value, after["gradients"][name]) for name, value in before["gradients"].items())


def test_the_record_of_metrics_is_that_of_one_run(tmp_path):
    run(tmp_path / "whole", batches(8))
    (tmp_path / "cut").mkdir()
    run(tmp_path / "cut", batches(8))
    run(tmp_path / "cut", batches(8), tmp_path / "cut" / "middle.ckpt", save_at=-1)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_checkpoint_holds_what_is_documented_and_plain_data_only(tmp_path):
    class Data(DataModule):
        def __init__(self, size=3):
            super().__init__()
            self.save_hyperparameters()

        def state_dict(self):
            return {"cursor": 1}

    data = Data()
    data.train_dataloader = lambda: batches(2)
    trainer = quiet(max_epochs=1)
    trainer.fit(Regression(), datamodule=data)
    trainer.save_checkpoint(tmp_path / "all.ckpt")
    found = torch.load(tmp_path / "all.ckpt", weights_only=True)
    key = Data.__qualname__
    assert set(found) == KEYS | {"datamodule_hyper_parameters", "datamodule_hparams_name", key}
    assert (found["epoch"], found["global_step"], found[key]) == (1, 2, {"cursor": 1})
    assert (found["hyper_parameters"], found["hparams_name"]) == ({"lr": 0.1}, "kwargs")
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    weights = torch.load(tmp_path / "weights.ckpt", weights_only=True)
    assert not {"optimizer_states", "lr_schedulers", "callbacks", "loops", "rng"} & set(weights)


def test_a_module_comes_back_from_its_checkpoint(tmp_path):
    module, trainer = Regression(lr=0.05), quiet(max_epochs=1)
    trainer.fit(module, batches())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    found = Regression.load_from_checkpoint(tmp_path / "a.ckpt")
    assert same_weights(found, module)
    assert found.hparams.lr == 0.05
    assert Regression.load_from_checkpoint(tmp_path / "a.ckpt", lr=0.5).hparams.lr == 0.5


def test_what_cannot_be_read_back_is_refused_by_name_and_nothing_is_lost(tmp_path):
    class Adding(Callback):
        value: object = 1

        def on_save_checkpoint(self, trainer, module, checkpoint):
            checkpoint["extra"] = {"inner": self.value}

    adding, path = Adding(), tmp_path / "a.ckpt"
    trainer = quiet(max_epochs=1, callbacks=adding)
    trainer.fit(Regression(), batches(1))
    trainer.save_checkpoint(path)
    before = path.read_bytes()
    adding.value = nn.ReLU()
    with pytest.raises(CheckpointError) as caught:
        trainer.save_checkpoint(path)
    assert str(caught.value).startswith(
        "extra.inner is a torch.nn.modules.activation.ReLU, which a checkpoint cannot hold; allowed are None, bool, int, "
    )
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def saved(tmp_path):
    path = tmp_path / "good.ckpt"
    trainer = quiet(max_epochs=1)
    trainer.fit(Regression(), batches(1))
    trainer.save_checkpoint(path)
    return path


def changed(path, **changes):
    checkpoint = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in {**checkpoint, **changes}.items() if v is not None}, path)
    return path


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])
    return path


BROKEN = {
    "missing": (
        lambda p: p.with_name("no.ckpt"),
        "there is no checkpoint at {path}; checkpoints in that folder: {folder}/good.ckpt",
    ),
    "flipped": (flipped, "{path} is damaged or no checkpoint: the checksum of the record"),
    "truncated": (truncated, "{path} is damaged or no checkpoint: "),
    "weights only": (
        lambda p: changed(p, loops=None, optimizer_states=None, lr_schedulers=None),
        "{path} cannot be continued: it has no optimizer_states, lr_schedulers, loops, so it holds weights only; take them "
        "with Module.load_from_checkpoint(path) and start a new fit",
    ),
    "newer": (
        lambda p: changed(p, format=99, fulmen_version="9.0"),
        "{path} has format 99, and this fulmen reads formats up to 1: update fulmen (it was written by version 9.0)",
    ),
    "lightning": (
        lambda p: changed(p, format=None, **{"pytorch-lightning_version": "2.6.6"}),
        "{path} was written by PyTorch Lightning 2.6.6, and a fit continues only what fulmen wrote; take its weights: "
        "Module.load_from_checkpoint(path)",
    ),
    "no module": (lambda p: changed(p, state_dict=None), "{path} is no checkpoint of a module: it has no 'state_dict', but "),
    "other module": (
        lambda p: changed(p, state_dict={"net.0.weight": torch.zeros(2, 2)}),
        "{path} does not fit Regression: missing keys: net.0.bias, net.3.weight, net.3.bias; unexpected keys: (none); wrong "
        "shapes: net.0.weight (2, 2) for (5, 3). Build the module with the arguments it was saved with, or set strict_loading "
        "= False to load what fits by name",
    ),
    "other optimizers": (
        lambda p: changed(p, optimizer_states=[]),
        "{path} holds the state of 0 optimizers, and configure_optimizers gives 1: they must be the same",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_checkpoint_that_does_not_do_says_why(tmp_path, case):
    change, message = BROKEN[case]
    path = change(saved(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        quiet(max_epochs=2).fit(Regression(), batches(1), ckpt_path=path)
    assert str(caught.value).startswith(message.format(path=path, folder=tmp_path))


def test_last_is_the_newest_that_verifies(tmp_path, capsys):
    options = {**QUIET, "enable_checkpointing": True, "default_root_dir": tmp_path}
    Trainer(**options, max_epochs=1).fit(Regression(), batches(2))
    folder = tmp_path / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["epoch=0-step=2.ckpt"]
    (folder / "epoch=5-step=12.ckpt").write_bytes((folder / "epoch=0-step=2.ckpt").read_bytes()[:-50])
    trainer = Trainer(**options, max_epochs=2)
    with pytest.warns(FulmenWarning, match="damaged"):
        trainer.fit(Regression(), batches(2), ckpt_path="last")
    assert trainer.global_step == 4
    assert f"continuing from {folder}/epoch=0-step=2.ckpt, epoch 1, step 2" in capsys.readouterr().out


@pytest.mark.filterwarnings(r"ignore:\[callback-state\]")
def test_last_also_looks_elsewhere(tmp_path):
    class Remote(Checkpoint):
        def elsewhere(self, trainer):
            return [(2e9, "memory://fulmen/newer.ckpt"), (1.0, "memory://fulmen/oldest.ckpt")]

    options = {**QUIET, "enable_checkpointing": True, "default_root_dir": tmp_path}
    first = Trainer(**options, max_epochs=1)
    first.fit(Regression(), batches(2))
    for max_epochs, name in ((2, "newer"), (3, "oldest")):
        trainer = quiet(max_epochs=max_epochs)
        trainer.fit(Regression(), batches(2), ckpt_path=first.checkpoint_callback.last_model_path)
        fulmen.write_checkpoint(trainer.collect_checkpoint(), f"memory://fulmen/{name}.ckpt")
    found = fulmen.read_checkpoint("memory://fulmen/newer.ckpt")
    assert (found["global_step"], found.keys() >= KEYS - {"hparams_name"}) == (4, True)
    assert "loops" not in trainer.collect_checkpoint(weights_only=True)
    again = Trainer(**options, max_epochs=4, callbacks=Remote())
    again.fit(Regression(), batches(2), ckpt_path="last")
    assert (again.global_step, again.run_id) == (8, first.run_id)


def test_last_without_any_is_a_warning_and_best_an_error(tmp_path):
    with pytest.warns(FulmenWarning, match=r"\[no-checkpoint\] ckpt_path='last': there is none of a Regression in"):
        Trainer(**{**QUIET, "enable_checkpointing": True}, max_epochs=1, default_root_dir=tmp_path).fit(
            Regression(), batches(1), ckpt_path="last"
        )
    with pytest.raises(CheckpointError) as caught:
        quiet(max_epochs=1).fit(Regression(), batches(1), ckpt_path="best")
    assert str(caught.value) == (
        "ckpt_path='best': no callback of this trainer has a best checkpoint; add a ModelCheckpoint with a "
        "monitor, and fit before"
    )


def test_a_url_is_a_place_like_any_other(tmp_path):
    trainer = quiet(max_epochs=1)
    trainer.fit(Regression(), batches())
    trainer.save_checkpoint("memory://fulmen/a.ckpt")
    assert same_weights(Regression.load_from_checkpoint("memory://fulmen/a.ckpt"), trainer.module)
    more = quiet(max_epochs=2)
    more.fit(Regression(), batches(), ckpt_path="memory://fulmen/a.ckpt")
    assert more.global_step == 16


def test_a_training_that_is_complete_returns_at_once(tmp_path):
    path = saved(tmp_path)
    module, trainer = Regression(), quiet(max_epochs=1)
    trainer.fit(module, batches(1), ckpt_path=path)
    assert (module.losses, trainer.global_step, trainer.stop_reason) == ([], 1, "max_epochs=1 reached")


def test_a_fit_is_saved_after_a_test_too(tmp_path):
    module, trainer = Validated(), quiet(max_epochs=1)
    trainer.fit(module, batches(2), batches(1))
    trainer.test(module, batches(1), verbose=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert len(torch.load(tmp_path / "a.ckpt", weights_only=True)["optimizer_states"]) == 1


def test_a_pickle_that_runs_code_is_not_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="holds more than plain data and was not opened"):
        Regression.load_from_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
    path = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError):
        write_checkpoint({"state_dict": {"a": object()}}, path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError):
        write_checkpoint({"state_dict": {}}, tmp_path / "file" / "a.ckpt")
    assert path.read_bytes() == before


def test_datasets_of_tensors_resume_too(tmp_path):
    x, y = (torch.cat(part) for part in zip(*batches(8), strict=True))
    loader = DataLoader(TensorDataset(x, y), 4, shuffle=True)
    whole, _, _ = run(tmp_path, loader)
    resumed, _, _ = run(tmp_path, DataLoader(TensorDataset(x, y), 4, shuffle=True), tmp_path / "middle.ckpt", save_at=-1)
    assert same_weights(whole, resumed)


# ---- Other places and moments of a resume


@pytest.mark.parametrize("loader", ["shuffled", "persistent workers", "own generator"])
def test_a_training_that_stopped_between_two_epochs_goes_on_exactly(tmp_path, loader):
    def fitted(folder, epochs, path=None):
        seed()
        options = {**QUIET, "enable_checkpointing": True, "default_root_dir": folder, "max_epochs": epochs}
        module, trainer = Scheduled(), Trainer(**options)
        validation = DataLoader(Noisy(), 4, shuffle=True, generator=torch.Generator().manual_seed(4))
        trainer.fit(module, LOADERS[loader](), validation, ckpt_path=path)
        return module, {name: value.item() for name, value in trainer.callback_metrics.items()}

    whole, metrics = fitted(tmp_path / "whole", 3)
    fitted(tmp_path / "cut", 1)
    fitted(tmp_path / "cut", 2, "last")
    resumed, again = fitted(tmp_path / "cut", 3, "last")
    assert same_weights(whole, resumed)
    assert metrics == again
    assert whole.losses[16:] == resumed.losses


def test_a_training_can_be_cut_after_every_batch(tmp_path):
    class SaveAlways(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / f"{trainer.progress.batches}.ckpt")

    def fitted(callbacks=None, path=None):
        seed()
        module = Scheduled()
        trainer = quiet(max_epochs=2, accumulate_grad_batches=3, val_check_interval=0.5, callbacks=callbacks)
        trainer.fit(module, DataLoader(Noisy(), 4, shuffle=True), batches(2), ckpt_path=path)
        return module, {name: value.item() for name, value in trainer.callback_metrics.items()}

    whole, metrics = fitted(SaveAlways())
    for batch in range(1, 17):
        resumed, again = fitted(path=tmp_path / f"{batch}.ckpt")
        assert same_weights(whole, resumed), batch
        assert metrics == again, batch


def test_a_scheduler_that_watches_a_metric_goes_on(tmp_path):
    class Plateau(Validated):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    def fitted(epochs, path=None):
        seed()
        module, trainer = Plateau(), quiet(max_epochs=epochs)
        trainer.fit(module, batches(4), batches(2), ckpt_path=path)
        return module, trainer

    whole, trainer = fitted(4)
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.1
    _, half = fitted(2)
    half.save_checkpoint(tmp_path / "a.ckpt")
    resumed, again = fitted(4, tmp_path / "a.ckpt")
    assert same_weights(whole, resumed)
    assert trainer.lr_scheduler_configs[0].scheduler.state_dict() == again.lr_scheduler_configs[0].scheduler.state_dict()


def test_two_optimizers_go_on(tmp_path):
    class Pair(Validated):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                loss = self.net(batch[0]).square().mean()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.Adam(part.parameters(), lr=0.01) for part in (self.net[0], self.net[3])]

    def fitted(path=None, callback=None):
        seed()
        module, trainer = Pair(), quiet(max_epochs=2, callbacks=callback)
        trainer.fit(module, batches(4), batches(2), ckpt_path=path)
        return module, trainer

    whole, trainer = fitted(callback=SaveAt(6, tmp_path / "a.ckpt"))
    with pytest.warns(FulmenWarning, match=r"\[callback-state\] .* holds the state of callbacks that .*: SaveAt$"):
        resumed, again = fitted(tmp_path / "a.ckpt")
    assert same_weights(whole, resumed)
    assert trainer.global_step == again.global_step == 16


def test_the_id_of_a_training_stays(tmp_path):
    trainer = quiet(max_epochs=1)
    trainer.fit(Regression(), batches(1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = quiet(max_epochs=2)
    again.fit(Regression(), batches(1), ckpt_path=tmp_path / "a.ckpt")
    assert again.run_id == trainer.run_id != ""
    found = torch.load(tmp_path / "a.ckpt", weights_only=True)["run"]
    assert (found["id"], found["module"], found["options"]["max_epochs"]) == (trainer.run_id, "Regression", 1)


def test_weights_are_loaded_for_an_evaluation(tmp_path, capsys):
    module, trainer = Validated(), quiet(max_epochs=1)
    trainer.fit(module, batches(4), batches(1))
    trainer.save_checkpoint(tmp_path / "all.ckpt")
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    expected = trainer.test(module, batches(2), verbose=False)
    for name in ("all", "weights"):
        path = tmp_path / f"{name}.ckpt"
        assert quiet().test(Validated(), batches(2), ckpt_path=path, verbose=False) == expected
        assert quiet().validate(Validated(), batches(2), ckpt_path=path, verbose=False)
        assert torch.equal(quiet().predict(Validated(), batches(1), ckpt_path=path)[0], trainer.predict(module, batches(1))[0])
        assert f"weights of {path}" in capsys.readouterr().out


def test_two_callbacks_under_one_key_are_refused():
    class Counting(Callback):
        def state_dict(self):
            return {"count": 1}

    with pytest.raises(ConfigurationError) as caught:
        quiet(max_epochs=1, callbacks=[Counting(), Counting()]).fit(Regression(), batches(1))
    assert str(caught.value) == (
        f"two callbacks keep their state under {Counting.__qualname__!r}, so one would overwrite the other: override state_key "
        "to tell them apart"
    )


def test_another_optimizer_is_refused(tmp_path):
    class Grouped(Regression):
        def configure_optimizers(self):
            return torch.optim.SGD([{"params": [parameter]} for parameter in self.parameters()], lr=0.1)

    path = saved(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        quiet(max_epochs=2).fit(Grouped(), batches(1), ckpt_path=path)
    assert str(caught.value).startswith(f"{path} does not fit the optimizer SGD: loaded state dict has a different number of")
    with pytest.raises(CheckpointError) as caught:
        quiet(max_epochs=2).fit(Scheduled(), batches(1), batches(1), ckpt_path=path)
    assert str(caught.value) == (
        f"{path} holds the state of 0 learning-rate schedulers, and configure_optimizers gives 2: they must be the same"
    )
