"""The accelerator of a third party in examples/: built, installed beside the core, and used by name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "examples" / "third-party-accelerator"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with what its wheel holds, as ``pip install --target`` unpacks it."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    folder = tmp_path_factory.mktemp("third-party")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=PACKAGE, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(site, cwd, *command, **environ):
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2", **environ}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


TRAIN = """
from fulmen.testing import Regression, batches, quiet
trainer = quiet(max_epochs=1, accelerator="sliced-cpu?threads=1", devices=1)
trainer.fit(Regression(), batches(4))
print(trainer.global_step, type(trainer.runtime.accelerator).__module__)
print(quiet().runtime.accelerator.name)
"""


def test_it_is_found_and_trains(site, tmp_path):
    status, output = run(site, tmp_path, "-W", "error", "-c", TRAIN)
    assert (status, output.split()) == (0, ["4", "sliced_cpu.accelerator", "cpu"]), output
    status, output = run(site, tmp_path, "-m", "fulmen.cli", "plugins", "--kind", "accelerator")
    assert re.search(r"sliced-cpu +the processor in slices of some threads each +sliced-cpu 0\.1\.0", output)


def test_without_a_device_it_says_so(site, tmp_path):
    status, output = run(site, tmp_path, "-c", TRAIN, SLICED_CPU_COUNT="0")
    assert status == 1
    assert "accelerator 'sliced-cpu' finds no device on this machine" in output


def test_it_passes_the_suite(site, tmp_path):
    status, output = run(
        site, PACKAGE, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "-W", "error", "tests"
    )
    assert status == 0, output
    assert int(re.search(r"(\d+) passed", output)[1]) >= 18


def test_the_core_does_not_know_it():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "core" / "src").rglob("*.py")]
    assert not [text for text in texts if "sliced" in text.lower()]
