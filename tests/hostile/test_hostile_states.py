"""What a checkpoint says of files and folders is what somebody wrote there: nothing of others is removed, moved or changed."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from fulmen_checkpoint import ModelCheckpoint
from fulmen_tensorboard import TensorBoardLogger
from hostile_child import batches, fit

from fulmen import CheckpointError, FulmenError, FulmenWarning, read_checkpoint, write_checkpoint
from fulmen.callbacks import RecoveryCheckpoint
from fulmen.loggers import CSVLogger

OWN = "RecoveryCheckpoint"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def victim(tmp_path) -> Path:
    """A folder of somebody else, with all kinds of files, a checkpoint of another run among them."""
    folder = tmp_path / "victim"
    fit(folder / "run", logger=CSVLogger(folder, name="logs"))
    fit(folder / "plain")
    for name in ("notes.txt", "key.ckpt", "last.ckpt"):
        (folder / name).write_text(name)
    return folder


def changed(folder: Path, key: str, change: Any, **options: Any) -> tuple[Path, Any]:
    """A checkpoint in which somebody changed one part."""
    trainer = fit(folder, **options)
    path = folder / "changed.ckpt"
    trainer.save_checkpoint(path)
    checkpoint = read_checkpoint(path)
    part: Any = checkpoint
    *way, last = key.split("/")
    for step in way:
        part = part[int(step) if isinstance(part, list) else step]
    part[int(last) if isinstance(part, list) else last] = change(part[int(last) if isinstance(part, list) else last])
    write_checkpoint(checkpoint, path)
    return path, checkpoint


def targets(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("inside", [False, True], ids=["elsewhere", "in the same folder"])
def test_the_recovery_checkpoint_removes_nothing_that_is_not_of_its_run(tmp_path, victim, inside):
    for target in targets(victim):
        folder = tmp_path / f"own-{len(os.listdir(tmp_path))}"
        saved = folder / "saved"
        saved.mkdir(parents=True)
        file = saved / f"theirs-{Path(target).name}" if inside else Path(target)
        if inside:
            shutil.copy(target, file)
        before = contents(victim), file.read_bytes()
        state = {"last_model_path": str(file), "replaced": str(file)}
        path, _ = changed(folder, f"callbacks/{OWN}", lambda _, state=state: state)
        fit(folder, path, max_epochs=3, callbacks=RecoveryCheckpoint(saved, every_n_steps=1))
        assert (contents(victim), file.read_bytes()) == before


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("where", ["elsewhere", "in the same folder", "up and down"])
def test_model_checkpoint_removes_and_replaces_nothing_that_is_not_of_its_run(tmp_path, victim, where, asynchronous):
    def saver(folder: Path) -> ModelCheckpoint:
        return ModelCheckpoint(folder / "kept", filename="{step}", save_top_k=1, save_last=True, asynchronous=asynchronous)

    folder = tmp_path / "own"
    kept = folder / "kept"
    kept.mkdir(parents=True)
    files = targets(victim)
    if where == "in the same folder":
        copies = [kept / f"theirs-{number}.ckpt" for number in range(len(files))]
        copies.append(kept / "step=6.ckpt")  # the name of the next file
        files = [str(shutil.copy(file, copy)) for file, copy in zip([*files, files[0]], copies, strict=True)]
    elif where == "up and down":
        files = [f"{kept}/../../victim/{Path(file).relative_to(victim)}" for file in files]
    before = contents(victim), {file: Path(file).read_bytes() for file in files}
    key = saver(folder).state_key

    def claim(state: dict[str, Any]) -> dict[str, Any]:
        return {
            **state, "files": dict.fromkeys(files), "best_model_path": files[0], "last_model_path": files[-1],
            "dirpath": str(kept), "dropped": files, "newest": [files[1], files[2]],
        }  # fmt: skip

    path, _ = changed(folder, f"callbacks/{key}", claim, callbacks=saver(folder))
    for dirpath in (str(kept), ""):
        checkpoint = read_checkpoint(path)
        checkpoint["callbacks"][key]["dirpath"] = dirpath
        write_checkpoint(checkpoint, path)
        with pytest.warns(FulmenWarning, match=r"\[checkpoint-(foreign|dirpath)\]"):
            fit(folder, path, max_epochs=3, callbacks=saver(folder))
        assert (contents(victim), {file: Path(file).read_bytes() for file in files}) == before


def test_model_checkpoint_goes_on_with_its_own_files(tmp_path):
    saver = ModelCheckpoint(tmp_path / "kept", filename="{step}", save_top_k=1)
    fit(tmp_path, callbacks=saver)
    fit(
        tmp_path,
        saver.best_model_path,
        max_epochs=2,
        callbacks=(again := ModelCheckpoint(tmp_path / "kept", filename="{step}")),
    )
    assert os.listdir(tmp_path / "kept") == ["step=6.ckpt"]
    assert again.best_model_path == str(tmp_path / "kept" / "step=6.ckpt")


LOGGERS = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}


@pytest.mark.parametrize("name", LOGGERS)
@pytest.mark.parametrize("version", ["../victim", "..", "", "a/b", "{victim}", "{victim}/logs/version_0", "a\0b", -1, [1], 0.5])
def test_a_logger_does_not_leave_its_folder(tmp_path, victim, name, version):
    version = version.format(victim=victim) if isinstance(version, str) else version

    def logger() -> Any:
        return LOGGERS[name](tmp_path, name="logs")

    def claim(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "version": version, "run": None, "rows": 0, "columns": 0, "files": {}}

    path, _ = changed(tmp_path / "own", "loggers/0/state", claim, logger=logger())
    before = contents(victim)
    with pytest.raises(CheckpointError) as caught:
        fit(tmp_path / "own", path, max_epochs=2, logger=logger())
    assert str(caught.value).startswith(
        f"{path} cannot be restored: what it holds as loggers[0] does not do (ValueError: version="
    )
    assert contents(victim) == before


@pytest.mark.parametrize("run", [None, "other"])
def test_a_logger_does_not_take_the_record_of_another_run_back(tmp_path, run):
    fit(tmp_path / "victim", logger=CSVLogger(tmp_path, name="logs"))
    before = contents(tmp_path / "logs" / "version_0")
    assert before["metrics.csv"].count(b"\n") > 1

    def claim(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "version": 0, "run": run, "rows": 0, "columns": 0}

    path, _ = changed(tmp_path / "own", "loggers/0/state", claim, logger=CSVLogger(tmp_path, name="logs"))
    with pytest.warns(FulmenWarning, match="csv-moved"):
        fit(tmp_path / "own", path, max_epochs=2, logger=CSVLogger(tmp_path, name="logs"))
    assert contents(tmp_path / "logs" / "version_0") == before


def test_trackers_refuse_ids_that_are_paths():
    from fulmen_comet import CometLogger
    from fulmen_mlflow import MLFlowLogger
    from fulmen_wandb import WandbLogger

    wandb, comet, mlflow = WandbLogger(project="p", offline=True), CometLogger(project="p"), MLFlowLogger("e")
    with pytest.raises(ValueError, match="cannot be the id of a run"):
        wandb.load_state_dict({"id": "../../a", "project": "p", "step": 1})
    with pytest.raises(ValueError, match="32 to 50 letters and digits"):
        comet.load_state_dict({"experiment_key": "../../a", "project": "p"})
    with pytest.raises(ValueError, match="is not the name of a folder"):
        mlflow.load_state_dict({"run_id": "a", "experiment": "e", "run_name": "n", "folder": ".."})
    mlflow.load_state_dict({"run_id": "a", "experiment": "e", "run_name": "n", "folder": "../../a"})
    assert Path(mlflow.log_dir).parent == Path(mlflow.save_dir) / "e"


# ---- Parts of a wrong kind

WRONG: dict[str, Any] = {
    "list": [1], "text": "a", "number": 7, "tensor": torch.zeros(2), "dictionary": {"a": 1}, "negative": -1, "large": 2**70,
    "keys": {1: {2: 3}}, "not_a_number": float("nan"),
}  # fmt: skip
KEYS = (
    "state_dict", "callbacks", "loops", "loops/fit_loop", "loops/fit_loop/progress", "loops/fit_loop/progress/epoch",
    "loops/fit_loop/progress/batch", "loops/fit_loop/metrics", "loops/fit_loop/metrics/epoch", "loops/fit_loop/gradients",
    "loops/fit_loop/window", "optimizer_states", "optimizer_states/0", "optimizer_states/0/state",
    "optimizer_states/0/param_groups", "optimizer_states/0/param_groups/0/lr", "lr_schedulers", "lr_schedulers/0",
    "lr_schedulers/0/last_epoch", "precision", "rng", "rng/python", "rng/torch", "rng/device", "data", "data/train",
    "data/train/0",
    "data/train/0/batches", "data/train/0/start", "loggers", "loggers/0", "loggers/0/state", "loggers/0/state/rows", "run",
    "run/id",
    "run/module", "format", "epoch", "global_step", "hyper_parameters", "hparams_name", f"callbacks/{OWN}",
    f"callbacks/{OWN}/last_model_path",
)  # fmt: skip

UNUSED = ("rng/device", "data/train/0/start")  # on a CPU, and between two epochs


MANY = tuple(WRONG)


def failure_of(path: Path, folder: Path) -> FulmenError | None:
    """Whatever else comes out fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fit(folder, path, max_epochs=2, logger=CSVLogger(folder))
        except FulmenError as error:
            return error
    return None


@pytest.mark.parametrize(
    "kinds", [("list", "tensor", "negative"), pytest.param(MANY, marks=pytest.mark.nightly)], ids=["few", "all"]
)
@pytest.mark.parametrize("key", KEYS)
def test_a_part_of_a_wrong_kind_is_named_or_does_no_harm(tmp_path, key, kinds):
    """Every kind of value in every place: what cannot be used is an error that names the file and the key."""
    refused = 0
    path, good = changed(tmp_path, "epoch", lambda value: value, logger=CSVLogger(tmp_path))
    for kind, value in ((kind, WRONG[kind]) for kind in kinds):
        checkpoint = read_checkpoint(path)
        part: Any = checkpoint
        *way, last = [int(step) if step.isdecimal() else step for step in key.split("/")]
        for step in way:
            part = part[step]
        part[last] = value
        wrong = tmp_path / f"{kind}.ckpt"
        write_checkpoint(checkpoint, wrong)
        error = failure_of(wrong, tmp_path)
        if isinstance(error, CheckpointError):
            assert str(wrong) in str(error)
            assert any(str(step) in str(error) for step in (*way, last, "does not fit Tiny")), str(error)
            refused += 1
        elif error is not None:
            assert key.startswith("data/train") and str(error).startswith("train_dataloader g"), str(error)
    assert refused or key in UNUSED or len(kinds) < len(WRONG), "nothing of all this was refused"
    assert good["epoch"] == 1 and len(batches()) == 3


@pytest.mark.parametrize("key", ["", "progress", "progress/batch", "metrics", "metrics/epoch", "window", "gradients"])
def test_what_a_rank_had_of_its_own_is_looked_at_too(tmp_path, key):
    path, _ = changed(tmp_path, "epoch", lambda value: value, logger=CSVLogger(tmp_path))
    checkpoint, wrong = read_checkpoint(path), tmp_path / "wrong.ckpt"
    position = checkpoint["loops"]["fit_loop"]
    own = {"unfinished": {name: position[name] for name in ("progress", "metrics", "window", "gradients")}}
    checkpoint["ranks"] = [{"rng": checkpoint["rng"], "data": checkpoint["data"], **own}]
    write_checkpoint(checkpoint, wrong)
    assert failure_of(wrong, tmp_path) is None
    part: Any = own
    *way, last = [*filter(None, ["unfinished", *key.split("/")])]
    for step in way:
        part = part[step]
    for value in ([1], "a", torch.zeros(2)):
        part[last] = value
        write_checkpoint({**checkpoint, "ranks": [{**checkpoint["ranks"][0], **own}]}, wrong)
        error = failure_of(wrong, tmp_path)
        if last != "epoch" or not isinstance(value, list):
            assert isinstance(error, CheckpointError) and str(wrong) in str(error), (value, error)
