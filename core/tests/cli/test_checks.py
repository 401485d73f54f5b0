from __future__ import annotations

import sys

import pytest

from fulmen.cli import checks
from fulmen.plugins import PluginSet


def test_a_folder_that_runs_can_be_written_to(tmp_path):
    assert checks.working_folder(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone(tmp_path):
    folder = tmp_path / "gone"
    assert checks.working_folder(folder) == [
        f"{folder} is not writable (No such file or directory), and runs are kept there; use Trainer(default_root_dir=...)"
    ]


def test_devices_that_nobody_uses(site):
    found = PluginSet.discover()
    assert checks.idle_device(None, found) == []
    assert checks.idle_device("cpu", found) == []
    assert checks.idle_device("abacus", found) == [
        "torch sees a device of type 'abacus', and no installed accelerator uses it; install a package that provides it"
    ]


def test_a_known_device_that_nobody_uses(site, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    assert checks.idle_device("mps", PluginSet.discover()) == [
        "torch sees a device of type 'mps', and no installed accelerator uses it; pip install fulmen-mps"
    ]


@pytest.mark.parametrize(
    ("source", "version", "problem"),
    [
        (
            "__version__ = '2.5.1+cu118'",
            "2.5.1+cu118",
            "torch 2.5.1+cu118 is too old, fulmen needs 2.6; pip install --upgrade 'torch>=2.6'",
        ),
        (
            "raise OSError('libtorch.so: cannot open shared object file')",
            "not importable",
            "torch cannot be imported: OSError: libtorch.so: cannot open shared object file; "
            "pip install --force-reinstall torch",
        ),
    ],
    ids=["old", "broken"],
)
def test_a_torch_that_cannot_be_used(site, source, version, problem):
    (site.packages / "torch.py").write_text(source)  # found before the real one, in a process of its own
    code = "from fulmen.cli import checks; problems = []; print(checks.torch_devices(problems), problems)"
    done = site.python("-c", code)
    assert done.stdout.strip() == f"{(version, None, 0)} {[problem]}"


def test_the_torch_of_this_machine():
    import torch

    problems: list[str] = []
    number, kind, count = checks.torch_devices(problems)
    assert (number, problems) == (str(torch.__version__), [])
    assert (kind is None) == (count == 0)
