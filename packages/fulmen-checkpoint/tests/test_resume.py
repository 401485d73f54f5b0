"""A training that was killed and resumed keeps the same files as one that ran through."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from fulmen_checkpoint import ModelCheckpoint

from fulmen import Callback, FulmenWarning, read_checkpoint

VALUES = [5.0, 3.0, 4.0, 3.5, 2.0, 6.0]


class Keeping(Callback):
    """Saves at every moment, behind the others, with a copy of the folder as it is then."""

    runs_last = True

    def __init__(self, folder, watched):
        self.folder, self.watched, self.paths = folder, watched, []
        folder.mkdir(exist_ok=True)

    def save(self, trainer):
        path = self.folder / f"{len(self.paths)}.ckpt"
        trainer.save_checkpoint(path)
        shutil.copytree(self.watched, path.with_suffix(""), symlinks=True)
        self.paths.append(path)

    def on_validation_end(self, trainer, module):
        if trainer.validating:
            self.save(trainer)

    def on_train_epoch_end(self, trainer, module):
        self.save(trainer)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.save(trainer)


class Behind(Keeping, ModelCheckpoint):
    """Behind all savers too."""

    def __init__(self, folder, watched):
        ModelCheckpoint.__init__(self, every_n_epochs=0)
        Keeping.__init__(self, folder, watched)

    on_validation_end, on_train_epoch_end, on_train_batch_end = (
        Keeping.on_validation_end,
        Keeping.on_train_epoch_end,
        Keeping.on_train_batch_end,
    )

    def on_train_stop(self, trainer, module):
        pass

    def on_train_end(self, trainer, module):
        pass


def contents(folder):
    """Name -> what says which training state it is."""
    found = {}
    for path in sorted(folder.glob("*.ckpt")):
        checkpoint = read_checkpoint(path)
        states = [each for key, each in checkpoint["callbacks"].items() if key.startswith("ModelCheckpoint")]
        weights = [value.tolist() for value in checkpoint["state_dict"].values()]
        found[path.name] = (checkpoint["global_step"], weights, [sorted(state["files"].items()) for state in states])
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"monitor": "score", "save_top_k": 2},
        {"monitor": "score", "save_top_k": 2, "save_last": True},
        {"monitor": "score", "every_n_train_steps": 3, "save_last": "link"},
        {"save_top_k": 2, "every_n_train_steps": 3},
        {"save_top_k": 2},
    ],
)
@pytest.mark.parametrize("lost", [True, False], ids=["as it was then", "with files of the lost future"])
def test_a_resumed_training_keeps_the_same_files(tmp_path, fit, options, lost):
    folder = tmp_path / "files"
    folder.mkdir()
    behind = Behind(tmp_path / "kept", folder)
    torch.manual_seed(3)
    whole = ModelCheckpoint(folder, **options)
    fit([whole, behind], VALUES)
    expected, best = contents(folder), (whole.best_model_path, whole.last_model_path, whole.state_dict())
    shutil.copytree(folder, tmp_path / "future", symlinks=True)
    assert len(behind.paths) >= 20
    for path in behind.paths[:: 3 if lost else 4]:
        shutil.rmtree(folder)
        shutil.copytree(path.with_suffix(""), folder, symlinks=True)
        if not lost:
            for each in (tmp_path / "future").iterdir():
                (folder / each.name).unlink(missing_ok=True)  # not through a link
                shutil.copy2(each, folder / each.name, follow_symlinks=False)
        resumed, again = ModelCheckpoint(folder, **options), Behind(tmp_path / "again", folder)
        fit([resumed, again], VALUES, path)
        found = contents(folder)
        assert {name: found.get(name) for name in expected} == expected, path.name
        assert lost is False or found.keys() == expected.keys()
        assert (resumed.best_model_path, resumed.last_model_path, resumed.state_dict()) == best
        shutil.rmtree(tmp_path / "again")


def test_files_that_are_gone_are_noticed(tmp_path, fit, names):
    callback = ModelCheckpoint(tmp_path, "{epoch}", "score", save_top_k=3, save_last=True)
    fit(callback, [5.0, 3.0, 4.0])
    os.remove(tmp_path / "epoch=1.ckpt")
    again = ModelCheckpoint(tmp_path, "{epoch}", "score", save_top_k=3, save_last=True)
    with pytest.warns(FulmenWarning) as caught:
        fit(again, [5.0, 3.0, 4.0, 4.5], tmp_path / "last.ckpt")
    assert [str(warning.message) for warning in caught] == [
        "[checkpoint-missing] files that were kept when the checkpoint that is resumed was written are gone, and not counted "
        f"any more: {tmp_path}/epoch=1.ckpt"
    ]
    assert (os.path.basename(again.best_model_path), float(again.best_model_score)) == ("epoch=2.ckpt", 4.0)
    assert names(tmp_path) == ["epoch=0.ckpt", "epoch=2.ckpt", "epoch=3.ckpt", "last.ckpt"]


def test_another_folder_is_a_warning_and_its_best_is_remembered(tmp_path, fit, names):
    fit(ModelCheckpoint(tmp_path / "one", "{epoch}", "score", save_last=True), [5.0, 3.0])
    other = ModelCheckpoint(tmp_path / "two", "{epoch}", "score", save_last=True)
    with pytest.warns(FulmenWarning) as caught:
        fit(other, [5.0, 3.0, 4.0], tmp_path / "one" / "last.ckpt")
    assert [str(warning.message) for warning in caught] == [
        f"[checkpoint-dirpath] the training that is resumed kept its checkpoints in {tmp_path}/one, and this one uses "
        f"{tmp_path}/two: those files stay and are not counted in save_top_k, but the best of them is still compared with"
    ]
    assert other.best_model_path == f"{tmp_path}/one/epoch=1.ckpt" and float(other.best_model_score) == 3.0
    assert names(tmp_path / "one") == ["epoch=1.ckpt", "last.ckpt"] and names(tmp_path / "two") == ["epoch=2.ckpt", "last.ckpt"]
    third = ModelCheckpoint(tmp_path / "two", "{epoch}", "score", save_last=True)
    fit(third, [5.0, 3.0, 4.0, 2.0], tmp_path / "two" / "last.ckpt")
    assert third.best_model_path == f"{tmp_path}/two/epoch=3.ckpt" and names(tmp_path / "two") == ["epoch=3.ckpt", "last.ckpt"]


def test_a_second_fit_starts_anew_and_a_test_changes_nothing(tmp_path, fit, names):
    callback = ModelCheckpoint(tmp_path, "{epoch}", "score")
    trainer = fit(callback, [5.0, 3.0, 4.0])
    state = callback.state_dict()
    callback.setup(trainer, trainer.module, "test")
    callback.load_state_dict({**state, "files": {}})
    assert callback.state_dict() == state
    fit(callback, [9.0])
    assert names(tmp_path) == ["epoch=0.ckpt", "epoch=1.ckpt"]
    assert (callback.best_model_path, float(callback.best_model_score)) == (f"{tmp_path}/epoch=0.ckpt", 9.0)


def test_fewer_are_kept_from_a_resume_on(tmp_path, fit, names):
    fit(ModelCheckpoint(tmp_path, "{epoch}", "score", save_top_k=3, save_last=True), [5.0, 3.0, 4.0])
    fit(ModelCheckpoint(tmp_path, "{epoch}", "score", save_last=True), [5.0, 3.0, 4.0, 2.0], tmp_path / "last.ckpt")
    assert names(tmp_path) == ["epoch=3.ckpt", "last.ckpt"]


def test_a_kill_between_the_writing_of_a_file_and_what_follows(tmp_path, fit, names):
    """Its copy as last.ckpt and the removal of the worst are made up for where the training goes on from that file."""
    options = {"filename": "{epoch}", "monitor": "score", "save_top_k": 2, "save_last": True}
    files, values = tmp_path / "files", [5.0, 4.0, 3.0, 2.0]
    fit(ModelCheckpoint(files, **options), values[:3])
    early = {path.name: path.read_bytes() for path in files.iterdir()}
    fit(ModelCheckpoint(files, **options), values, files / "last.ckpt")
    expected = {path.name: path.read_bytes() for path in files.iterdir()}
    assert sorted(expected) == ["epoch=2.ckpt", "epoch=3.ckpt", "last.ckpt"]
    os.unlink(files / "last.ckpt")
    for name in ("epoch=1.ckpt", "last.ckpt"):
        (files / name).write_bytes(early[name])
    fit(ModelCheckpoint(files, **options), values, files / "epoch=3.ckpt")
    assert {path.name: path.read_bytes() for path in files.iterdir()} == expected
    fit(ModelCheckpoint(tmp_path / "other", **options), values[:2])
    stranger = (tmp_path / "other" / "epoch=1.ckpt").rename(files / "epoch=1.ckpt")  # of another training: it stays
    fit(ModelCheckpoint(files, **options), values, files / "epoch=3.ckpt")
    assert names(files) == [stranger.name, "epoch=2.ckpt", "epoch=3.ckpt", "last.ckpt"]
