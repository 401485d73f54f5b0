"""A save that fails is loud and leaves what was there: a full disk, no permission, kill -9 in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fulmen_checkpoint import ModelCheckpoint, complete_checkpoints

from fulmen import Callback, CheckpointError, read_checkpoint

CHILD = [sys.executable, "-W", "error", str(Path(__file__).with_name("child.py"))]


@pytest.mark.parametrize("how", ["", "asynchronous-"])
@pytest.mark.parametrize(("kind", "reason"), [("full", "File too large"), ("denied", "Permission denied")])
def test_a_disk_that_cannot_be_written_to(tmp_path, how, kind, reason):
    folder = tmp_path / "files"
    tmp_path.chmod(0o755)
    done = subprocess.run([*CHILD, how + kind, str(folder)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder.chmod(0o755)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["error"].startswith(f"could not save {folder}/epoch=2.ckpt: ") and (reason in told["error"] or kind == "full")
    assert told["error"].endswith("check the free space and the permissions of the folder") and told["status"] == "failed"
    paths = [f"{folder}/epoch={epoch}.ckpt" for epoch in (0, 1)]
    assert told["known"] == [*paths, paths[1], f"{folder}/last.ckpt"]  # as before the failure
    assert sorted(path.name for path in folder.iterdir()) == ["epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt"]  # and nothing half
    assert [read_checkpoint(path)["global_step"] for path in (*paths, folder / "last.ckpt")] == [2, 4, 4]


@pytest.mark.parametrize("how", ["", "asynchronous-"])
def test_kill_9_in_the_middle_of_a_save(tmp_path, how):
    for round_number in range(3):
        process = subprocess.Popen([*CHILD, f"{how}killed", str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            seen, deadline = set(), time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                half = {name for name in os.listdir(tmp_path) if name.endswith(".tmp")} - seen
                seen |= half
                if half and len(seen) > 2 + 3 * round_number:
                    break  # a file is being written now
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, process.stderr.read()
        finally:
            process.kill()
            process.stderr.close()
        found = complete_checkpoints(tmp_path)
        assert found and all(read_checkpoint(path, "meta") for path in found)
        assert seen
    best = max((read_checkpoint(path) for path in found), key=lambda checkpoint: checkpoint["global_step"])
    assert best["global_step"] >= 6  # each round went on from what the one before had left


def test_a_folder_that_cannot_be_made(tmp_path, fit):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=f"could not save {tmp_path}/file/folder/epoch=0-step=2.ckpt: "):
        fit(ModelCheckpoint(tmp_path / "file" / "folder"), [5.0])


def test_state_that_is_no_plain_data_is_refused_and_nothing_changes(tmp_path, fit, names):
    class Breaking(Callback):
        def on_save_checkpoint(self, trainer, module, checkpoint):
            if trainer.current_epoch == 1:
                checkpoint["extra"] = object()

    for asynchronous in (False, True):
        folder = tmp_path / str(asynchronous)
        callback = ModelCheckpoint(folder, "{epoch}", "score", save_last=True, asynchronous=asynchronous)
        with pytest.raises(CheckpointError, match=r"extra is a builtins\.object, which a checkpoint cannot hold"):
            fit([callback, Breaking()], [5.0, 4.0])
        assert names(folder) == ["epoch=0.ckpt", "last.ckpt"]
        assert (callback.best_model_path, float(callback.best_model_score)) == (f"{folder}/epoch=0.ckpt", 5.0)
        assert read_checkpoint(callback.last_model_path)["global_step"] == 2


def test_a_failure_while_the_state_is_collected_changes_nothing(tmp_path, fit, names):
    class Breaking(Callback):
        def on_save_checkpoint(self, trainer, module, checkpoint):
            if trainer.current_epoch == 1:
                raise ValueError("not now")

    callback = ModelCheckpoint(tmp_path, "{epoch}", "score")
    with pytest.raises(ValueError, match="not now"):
        fit([callback, Breaking()], [5.0, 4.0])
    assert names(tmp_path) == ["epoch=0.ckpt"] and callback.best_model_path == f"{tmp_path}/epoch=0.ckpt"
    assert torch.equal(callback.best_k_models[callback.best_model_path], callback.best_model_score)
