"""Hyper-parameters and configuration are values: nothing that they name is imported, and nothing that they ask for is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile_corpus
import pytest
import torch
from test_hostile_files import HERE, environment
from torch import nn

from fulmen import CheckpointError, ConfigurationError, FulmenError, Module, write_checkpoint
from fulmen.contracts.hyperparameters import read_hparams_file

HELPER = hostile_corpus.HELPER
PATHS = (f"{HELPER}.Class", f"{HELPER}:Class", HELPER, "os.system", "builtins.eval", "subprocess:Popen", "posix:system")
SHAPES: dict[str, Any] = {
    "hparams_type": lambda path: path,
    "_instantiator": lambda path: path,
    "_class_path": lambda path: path,
    "class_path": lambda path: path,
    "nested": lambda path: {"class_path": path, "init_args": {"args": ["touch", "x"]}},
    "hydra": lambda path: {"_target_": path, "_args_": ["touch x"]},
    "in_a_list": lambda path: [{"_target_": path}],
    "name": lambda path: {"name": path},
}
"""What other libraries import when they meet it in a checkpoint or a configuration."""


@dataclass
class Options:
    rate: float = 0.1
    inner: Any = None


class Plain(Module):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(1, 1)


class Typed(Module):
    def __init__(self, options: Options, space: Namespace, width: int = 1) -> None:
        super().__init__()
        self.options, self.space = options, space
        self.layer = nn.Linear(1, width)


WEIGHTS = nn.Linear(1, 1).state_dict(prefix="layer.")


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Code of the corpus makes this file."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists()
    assert HELPER not in sys.modules


def test_the_canary_sings(canary, tmp_path):
    """The module that nobody may import can be imported, and is noticed."""
    code = f"import {HELPER}"
    subprocess.run(
        [sys.executable, "-c", code], env={**environment(tmp_path), "PYTHONPATH": str(tmp_path / "modules")}, check=True
    )
    assert canary.exists()
    canary.unlink()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", PATHS)
def test_names_in_hyper_parameters_are_not_imported(canary, tmp_path, path, shape):
    value = SHAPES[shape](path)
    file = tmp_path / "a.ckpt"
    for name in ("kwargs", path, "hparams", None):
        hparams = {"options": {"rate": value, "inner": value}, shape: value, "space": {"a": value}}
        write_checkpoint({"state_dict": WEIGHTS, "hyper_parameters": hparams, "hparams_name": name}, file)
        module = Plain.load_from_checkpoint(file)
        assert module.hparams[shape] == value
        typed = Typed.load_from_checkpoint(file)
        assert type(typed.options) is Options and typed.options.rate == value
        assert type(typed.space) is Namespace


@pytest.mark.parametrize(
    "hparams",
    [
        [1], "a", torch.zeros(2), {1: 2}, {}, {"options": {}, "space": {"__class__": 1}}, {"options": {}, "space": {1: 2}},
        *({"options": {}, "space": {}, "width": width} for width in ("a", [1], -1, 2**70, {"b": 1})),
    ],
    ids=repr,
)  # fmt: skip
def test_hyper_parameters_of_a_wrong_kind_name_the_file(tmp_path, hparams):
    file = tmp_path / "a.ckpt"
    write_checkpoint({"state_dict": WEIGHTS, "hyper_parameters": hparams}, file)
    with pytest.raises(CheckpointError) as caught:
        Typed.load_from_checkpoint(file)
    assert str(file) in str(caught.value) and "hyper_parameters" in str(caught.value)


@pytest.mark.parametrize(
    "weights", [[1], {"layer.weight": 1}, {1: 2}, {"layer.weight": torch.zeros(9), "layer.bias": "a"}], ids=repr
)
def test_weights_of_a_wrong_kind_name_the_file(tmp_path, weights):
    file = tmp_path / "a.ckpt"
    write_checkpoint({"state_dict": weights}, file)
    with pytest.raises(CheckpointError, match=str(file)):
        Plain.load_from_checkpoint(file)


YAML = {
    "call": "a: !!python/object/apply:os.system ['touch $HOSTILE_CANARY']",
    "new": f"a: !!python/object/new:{HELPER}.Class []",
    "module": f"a: !!python/module:{HELPER}",
    "name": f"a: !!python/name:{HELPER}.Class",
    "tuple": "a: !!python/tuple [1, 2]",
    "laughs": "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    + "\n".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)),
    "itself": "a: &a [*a]",
    "nested": "a: " + "[" * 3_000,
    "unfinished": "a: [1",
    "no_mapping": "- a",
    "control": "a: \x00",
}
JSON = {"nested": '{"a": ' + "[" * 100_000, "number": '{"a": ' + "9" * 10_000 + "}", "list": "[1]", "text": '"a"'}


@pytest.mark.parametrize(
    "text", [*YAML.values(), *JSON.values(), "\ud800"], ids=[*YAML, *(f"json_{key}" for key in JSON), "letters"]
)
def test_a_file_of_hyper_parameters_is_plain_data_or_refused(canary, tmp_path, text):
    pytest.importorskip("yaml", reason="reads YAML")
    file = tmp_path / "hparams.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigurationError, match=str(file)):
        read_hparams_file(file)


def test_a_file_of_hyper_parameters_is_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**40)
    for name in ("pipe", "device", "large", "missing", "."):
        with pytest.raises(ConfigurationError, match="is no file of hyper-parameters"):
            read_hparams_file(tmp_path / name)


# ---- pyproject.toml

TABLES = [
    *(f'enable = ["{path}"]' for path in PATHS),
    *(f'prefer = {{"logger.csv" = "{path}"}}' for path in PATHS),
    *(f'options."{path}".save_dir = "a"' for path in PATHS),
    *(f'options.csv."{path}" = 1' for path in PATHS),
    f'enable = ["{HELPER}"]\ndisable = ["builtin"]',
    f'[tool.fulmen.plugins.options.csv]\ntarget = "{HELPER}:Class"',
    f'plugins = "{HELPER}"',
    "enable = " + "[" * 100_000,
    "enable = 1" + "0" * 10_000,
    'prefer = [1]\noptions = "a"\nenable = {}',
]


def test_names_in_pyproject_are_not_imported(canary, tmp_path):
    """Only what an installed package announces is imported; a name that is none of these is an error or a warning."""
    code = """
import json, sys
from pathlib import Path
from fulmen import Trainer
from fulmen.errors import FulmenError
out = []
for folder in sorted(Path(sys.argv[1]).iterdir(), key=lambda path: int(path.name)):
    import os, warnings
    os.chdir(folder)
    for logger in (False, "csv", sys.argv[2], sys.argv[2] + ":Class", "csv?save_dir=" + sys.argv[2]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                Trainer(logger=logger, accelerator="cpu", default_root_dir=sys.argv[1])
                error = ""
            except FulmenError as failure:
                error = type(failure).__name__
        out.append([folder.name, str(logger), error, len(caught)])
print(json.dumps(out))
"""
    folder = tmp_path / "projects"
    for number, table in enumerate(TABLES):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "pyproject.toml").write_text(f"[tool.fulmen.plugins]\n{table}\n")
    env = {**environment(tmp_path), "PYTHONPATH": os.pathsep.join([str(HERE), str(tmp_path / "modules")])}
    command = [sys.executable, "-c", code, str(folder), HELPER]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 5 * len(TABLES)
    silent = {folder for folder, logger, error, warned in found if logger == "csv" and not (error or warned)}
    assert silent <= {
        str(number) for number, table in enumerate(TABLES) if table.startswith("prefer = {") is False and "csv." in table
    }
    assert all(error for _, logger, error, _ in found if logger.startswith(HELPER))
    assert issubclass(ConfigurationError, FulmenError) and Path(folder / "0").exists()
