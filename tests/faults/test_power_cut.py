"""A power cut at any point of a training: the newest state that can be read is that of the last completed save, or newer."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from power_model import Disk

from fulmen import CheckpointError, read_checkpoint
from fulmen.storage import newest_checkpoint

JOB = Path(__file__).with_name("power_job.py")
CASES = {
    "copies": {"save_last": True, "dirpath": None},
    "links": {"save_last": "link", "dirpath": None},
    "a deep folder": {"save_last": True, "dirpath": "deep/er/files"},
}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the record is made with /proc")


@pytest.fixture(scope="module", params=CASES, ids=str)
def recorded(request, tmp_path_factory):
    """The folder of a training, and all that it did to it."""
    return record_of(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def record_of_one(tmp_path_factory):
    return record_of("links", tmp_path_factory)


def record_of(case, tmp_path_factory):
    base = tmp_path_factory.mktemp("power").resolve()
    root, record = base / "root", base / "record"
    root.mkdir()
    options = dict(CASES[case])
    if options["dirpath"]:
        options["dirpath"] = str(root / options["dirpath"])
    done = subprocess.run([sys.executable, JOB, root, record, json.dumps(options)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return str(root), pickle.loads(record.read_bytes())


class Findings:
    """Puts each different state on a real disk once, and reads it as ``ckpt_path="last"`` does."""

    def __init__(self, folder):
        self.folder, self.looked, self.problems, self.most = folder, 0, [], 0
        self.known, self.verified = {}, {}

    def check(self, state, floor, where):
        signature = hashlib.sha256(pickle.dumps(sorted(state.items()))).digest()
        batches, unreadable = self._newest(signature, state)
        self.problems.extend(f"{where}: {problem}" for problem in unreadable)
        if batches < floor:
            self.problems.append(f"{where}: {floor} batches were saved, and {batches} can be read of {sorted(state)}")
        self.most = max(self.most, batches)

    def _newest(self, signature, state):
        if signature not in self.known:
            self.looked += 1
            self.known[signature] = self._read(state)
        return self.known[signature]

    def _read(self, state):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for path, (content, time) in state.items():
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                target.symlink_to(content)
            else:
                target.write_bytes(content)
                os.utime(target, (1e9 + time, 1e9 + time))
        unreadable = []
        for path in self.folder.rglob("*.ckpt"):
            if not path.name.startswith(".") and path.exists():  # a link may have lost its file
                unreadable.extend(self._problem(path))
        folders = {path.parent for path in self.folder.rglob("*.ckpt")}
        newest = None if unreadable else newest_checkpoint(folders)
        return (-1 if newest is None else read_checkpoint(newest)["loops"]["fit_loop"]["progress"]["batches"]), unreadable

    def _problem(self, path):
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest not in self.verified:
            try:
                read_checkpoint(path)
                self.verified[digest] = []
            except CheckpointError as error:
                self.verified[digest] = [f"{path.name} has its name and cannot be read: {error}"]
        return self.verified[digest]


def after_cuts(root, record, folder, seed=1, enough=False, first=0):
    """What can be read after a cut behind each event from the ``first`` on; with ``enough``, up to the first problem."""
    disk, floor, found, rng = Disk(root, record), -1, Findings(folder), random.Random(seed)
    for index, event in enumerate(record):
        if event[0] == "saved":
            floor = max(floor, event[1])
        disk.do(event, index)
        for state in disk.states(rng) if index >= first else ():
            found.check(state, floor, f"cut behind event {index}, {event[:3] if event[0] != 'fsync' else event[:2]}")
            if enough and found.problems:
                return found
    return found


def test_the_last_completed_save_survives(recorded, tmp_path):
    root, record = recorded
    found = after_cuts(root, record, tmp_path / "after")
    assert found.problems[:3] == []
    saves = [event[1] for event in record if event[0] == "saved"]
    print(f"{len(record)} events, {len(saves)} saves, {found.looked} different states")
    assert found.most == max(saves) == 12 and len(saves) >= 8 and found.looked >= 100


LEFT_OUT = {
    "no file is flushed": lambda event: event[0] == "fsync" and event[2] is not None,
    "no folder is flushed": lambda event: event[0] == "fsync" and event[2] is None,
    "only the folders of the files are flushed": lambda event: event[0] == "fsync" and event[2] is None
    and Path(event[1]).name not in ("checkpoints", "files"),
}  # fmt: skip


@pytest.mark.parametrize("left_out", LEFT_OUT)
def test_each_flush_is_needed(record_of_one, tmp_path, left_out):
    """The same training without some of its flushes would lose a save: the model above can see that."""
    root, record = record_of_one
    without = [event for event in record if not LEFT_OUT[left_out](event)]
    assert len(without) < len(record)
    found = after_cuts(root, without, tmp_path / "after", enough=True)
    assert found.problems


def test_files_that_are_removed_too_early_are_missed(record_of_one, tmp_path):
    root, record = record_of_one
    removals = [index for index, event in enumerate(record) if event[0] == "remove" and event[1].endswith(".ckpt")]
    assert removals
    for index in reversed(removals):
        earlier = max(i for i in range(index) if record[i][0] == "open" and ".ckpt." in record[i][1])
        early = [*record[:earlier], record[index], *record[earlier:index], *record[index + 1 :]]
        if after_cuts(root, early[: index + 2], tmp_path / "after", enough=True, first=earlier).problems:
            return
    pytest.fail("no removal was early enough to be missed")
