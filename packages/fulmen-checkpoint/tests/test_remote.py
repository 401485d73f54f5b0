"""Behind a URL: S3 through a real server, and memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from contextlib import contextmanager

import fsspec
import pytest
from fulmen_checkpoint import ModelCheckpoint, complete_checkpoints
from fulmen_checkpoint.places import RemotePlace

from fulmen import Callback, CheckpointError, FulmenWarning, read_checkpoint
from fulmen.callbacks import RecoveryCheckpoint

CHILD = [sys.executable, "-W", "error", os.path.join(os.path.dirname(__file__), "child.py")]
VALUES = [5.0, 3.0, 4.0, 3.5, 2.0, 6.0]


@contextmanager
def moto():
    """A moto server, as its own process: its address, and the process."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        address = next(line.split()[-1] for line in process.stdout if "Running on http" in line)
        listener = threading.Thread(target=process.stdout.read, daemon=True)  # it stops when nobody takes what it logs
        listener.start()
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address, process
    finally:
        process.kill()
        process.wait()
        listener.join()
        process.stdout.close()


@pytest.fixture(scope="session")
def server():
    """The address of a moto server."""
    with moto() as (address, _):
        yield address


def bucket_of(address, monkeypatch):
    """A URL in a new bucket; the environment says how to get there."""
    secrets = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {"AWS_ENDPOINT_URL": address, "AWS_MAX_ATTEMPTS": "2", **secrets}.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/run"


@pytest.fixture
def s3(server, monkeypatch):
    """A URL in a new bucket."""
    yield bucket_of(server, monkeypatch)
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture(params=["s3", "memory"])
def url(request):
    """A URL of each kind."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex[:8]}/run"
    return request.getfixturevalue("s3")


def objects(url):
    """The names behind a URL."""
    files, inner = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return sorted(path.rpartition("/")[2] for path in files.ls(inner, detail=False))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_best_and_the_last_with_their_markers(url, fit, asynchronous):
    callback = ModelCheckpoint(url, "{epoch}", "score", save_top_k=2, save_last=True, asynchronous=asynchronous)
    fit(callback, VALUES)
    names = ["epoch=1.ckpt", "epoch=4.ckpt", "last.ckpt"]
    assert objects(url) == [each for name in names for each in (name, f"{name}.complete")]
    assert sorted(complete_checkpoints(url)) == [f"{url}/{name}" for name in names]
    assert (callback.best_model_path, callback.last_model_path) == (f"{url}/epoch=4.ckpt", f"{url}/last.ckpt")
    assert [read_checkpoint(f"{url}/{name}")["global_step"] for name in names] == [4, 10, 12]
    callback.to_yaml()
    assert "best_k_models.yaml" in objects(url)


def test_a_training_is_resumed_from_there(url, fit):
    whole = ModelCheckpoint(url, "{epoch}", "score", save_last=True)
    fit(whole, VALUES[:3])
    callback = ModelCheckpoint(url, "{epoch}", "score", save_last=True)
    trainer = fit(callback, VALUES, "last")
    assert (trainer.current_epoch, trainer.global_step) == (6, 12)
    assert objects(url) == ["epoch=4.ckpt", "epoch=4.ckpt.complete", "last.ckpt", "last.ckpt.complete"]


def test_half_an_upload_is_neither_listed_nor_taken(url, fit):
    fit(ModelCheckpoint(url, "{epoch}", "score", save_top_k=-1), VALUES[:3])
    files, inner = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{inner}/epoch=9.ckpt", b"half")  # without a marker
    files.pipe_file(f"{inner}/epoch=2.ckpt", files.cat_file(f"{inner}/epoch=2.ckpt")[:-100])  # not what its marker says
    files.pipe_file(f"{inner}/epoch=8.ckpt", b"x")
    files.pipe_file(f"{inner}/epoch=8.ckpt.complete", b'{"written": ')  # half a marker
    assert complete_checkpoints(url) == [f"{url}/epoch={epoch}.ckpt" for epoch in (0, 1)]
    callback = ModelCheckpoint(url, "{epoch}", "score", save_top_k=-1)
    trainer = fit(callback, VALUES[:3], "last")
    assert trainer.global_step == 6 and callback.best_model_path == f"{url}/epoch=1.ckpt"


def test_kill_9_in_the_middle_of_an_upload(s3):
    """Of 32 MB. Whatever the server keeps of it: what counts as complete can be read, and the next process goes on there."""
    steps = [0]
    for number in range(4):
        process = subprocess.Popen([*CHILD, "killed", s3], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            until = time.monotonic() + 120
            while not newer_than(steps[-1], s3) and time.monotonic() < until and process.poll() is None:
                time.sleep(0.05)
            time.sleep(0.1 * number)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, process.stderr.read()
        finally:
            process.kill()
            process.stderr.close()
        saved = {path: read_checkpoint(path)["global_step"] for path in complete_checkpoints(s3)}
        assert max(saved.values()) > steps[-1], (saved, steps)
        steps.append(max(saved.values()))


def newer_than(step, url):
    """Whether an upload is complete that holds more steps: of two batches in each epoch."""
    epochs = [path.rpartition("epoch=")[2].partition(".")[0] for path in complete_checkpoints(url)]
    return any(2 * (int(epoch) + 1) > step for epoch in epochs if epoch.isdigit())


def test_a_damaged_one_is_passed_over(url, fit):
    fit(ModelCheckpoint(url, "{epoch}", save_top_k=-1), VALUES[:2])
    files, inner = fsspec.core.url_to_fs(url)
    data = bytearray(files.cat_file(f"{inner}/epoch=1.ckpt"))
    data[len(data) // 2] ^= 255
    files.pipe_file(f"{inner}/epoch=1.ckpt", bytes(data))  # of the right size
    with pytest.warns(FulmenWarning, match=r"\[checkpoint-skipped\]") as caught:
        trainer = fit(ModelCheckpoint(url, "{epoch}", save_top_k=-1), VALUES[:2], "last")
    assert len(caught) == 1 and trainer.global_step == 4


def test_while_a_file_is_replaced_the_old_and_the_new_count_as_complete(tmp_path):
    url, seen = f"memory://{uuid.uuid4().hex[:8]}", []
    place = RemotePlace(url)
    place.write({"a": 1, "run": {"id": "one"}}, f"{url}/last.ckpt")
    put = place.files.put_file

    def interrupted(local, inner):
        seen.append(place.complete())  # the marker names both, the file is the old one
        put(local, inner)
        seen.append(place.complete())  # the file is the new one
        raise ConnectionError("gone")

    place.files.put_file = interrupted
    try:
        with pytest.raises(CheckpointError) as caught:
            place.write({"a": list(range(100)), "run": {"id": "one"}}, f"{url}/last.ckpt")
    finally:
        del place.files.put_file
    assert str(caught.value) == f"could not save {url}/last.ckpt: ConnectionError: gone"
    assert [[path for _, path in found] for found in seen] == [[f"{url}/last.ckpt"]] * 2
    assert len(read_checkpoint(f"{url}/last.ckpt")["a"]) == 100
    assert len(json.loads(place.files.cat_file(f"{url}/last.ckpt.complete"))["versions"]) == 2
    assert place.training_of(f"{url}/last.ckpt") == "one"


def test_a_server_that_goes_away_is_loud(fit, monkeypatch):
    class Kill(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                process.kill()

    with moto() as (address, process):
        url = bucket_of(address, monkeypatch)
        callback = ModelCheckpoint(url, "{epoch}", "score")
        with pytest.raises(CheckpointError, match=f"{url}/epoch=2.ckpt.*: (EndpointConnectionError|ClientConnector)"):
            fit([callback, Kill()], [5.0, 4.0, 3.0])
    assert callback.best_model_path == f"{url}/epoch=1.ckpt"
    fsspec.filesystem("s3").clear_instance_cache()


class Recovery(RecoveryCheckpoint):
    """By its own name, :func:`fit` leaves it out."""


def test_the_recovery_checkpoint_goes_there_too_and_makes_no_bucket(s3, fit):
    fit(Recovery(s3), VALUES[:3])
    ((_, newest),) = Recovery(s3).elsewhere(None)
    assert newest == f"{s3}/epoch=2-step=6.ckpt"
    assert fit(Recovery(s3), VALUES, "last").global_step == 12
    with pytest.raises(CheckpointError, match="could not save s3://no-such-bucket-of-fulmen/run/"):
        fit(Recovery("s3://no-such-bucket-of-fulmen/run"), VALUES)
    assert not fsspec.filesystem("s3").exists("no-such-bucket-of-fulmen")


def test_a_bucket_that_does_not_exist_says_so(s3, fit):
    url = s3.replace("bucket-", "no-bucket-")
    with pytest.raises(CheckpointError, match=f"could not save {url}/epoch=0.*: The specified bucket does not exist"):
        fit(ModelCheckpoint(url), VALUES)
    with pytest.raises(CheckpointError) as caught:
        fit(ModelCheckpoint("nothing://x/y"), VALUES)
    assert str(caught.value) == "cannot use nothing://x/y: Protocol not known: nothing"


def test_the_files_of_another_training_stay(url, fit):
    for _ in range(2):
        fit(ModelCheckpoint(url, "{epoch}", "score", save_last=True), [5.0])
    names = ["epoch=0-v1.ckpt", "epoch=0.ckpt", "last-v1.ckpt", "last.ckpt"]
    assert [name for name in objects(url) if name.endswith(".ckpt")] == names
    assert len(complete_checkpoints(url)) == 4
    assert complete_checkpoints(f"{url}/nothing/here") == []


def test_a_file_url_is_a_local_folder(tmp_path, fit):
    callback = ModelCheckpoint(f"file://{tmp_path}", "{epoch}", save_last="link")
    fit(callback, [5.0])
    assert callback.best_model_path == f"{tmp_path}/epoch=0.ckpt" and os.path.islink(callback.last_model_path)
    assert complete_checkpoints(tmp_path) == [f"{tmp_path}/epoch=0.ckpt", f"{tmp_path}/last.ckpt"]
