from __future__ import annotations

import inspect
import re

import pytest

import fulmen
from fulmen import FulmenError, Trainer
from fulmen.known import CLASSES, COUNTERPARTS, ELSEWHERE, KNOWN, advice, extra_for, install_line
from fulmen.plugins import PluginSet
from fulmen.registry import CONTRACTS
from fulmen.testing import quiet


def test_kinds_are_those_of_the_registry():
    assert set(KNOWN) <= set(CONTRACTS)


def test_extras_are_names_of_distributions():
    extras = {extra for names in (*KNOWN.values(), CLASSES) for extra in names.values()}
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", extra) for extra in extras)


def test_the_line_that_installs():
    assert install_line("early-stopping") == "pip install fulmen-early-stopping"


@pytest.mark.parametrize(
    ("name", "kind", "extra"),
    [
        ("early_stopping", None, "early-stopping"),
        ("early-stopping", None, "early-stopping"),
        ("EarlyStopping", None, "early-stopping"),
        ("tpu", None, "xla"),
        ("tpu", "accelerator", "xla"),
        ("tpu", "strategy", None),
        ("csv", None, None),
        ("csv", "logger", None),
        ("mine", "launcher", None),
    ],
)
def test_who_is_known_to_provide_a_name(name, kind, extra):
    assert extra_for(name, kind) == extra


def test_advice_is_for_names_that_do_not_exist_here():
    parts = PluginSet.discover()
    there: dict[str, set[str]] = {kind: {*parts.names(kind), *KNOWN.get(kind, {})} for kind in CONTRACTS}
    there["class"] = {*parts.classes(CONTRACTS), *CLASSES, *COUNTERPARTS}
    there["argument"] = {*inspect.signature(Trainer).parameters}
    there["attribute"] = {name for name in dir(Trainer) if hasattr(Trainer, name)}
    there["fulmen"] = {*dir(fulmen)}
    assert [(kind, name) for kind, names in ELSEWHERE.items() for name in names if name in there[kind]] == []


def test_advice_names_what_exists():
    arguments = {*inspect.signature(Trainer).parameters}
    named = {name for text in ELSEWHERE["argument"].values() for name in re.findall(r"(?<![\w(?])(\w+)=", text)}
    elsewhere = {"ckpt_path", "mode"}  # of fit and of CombinedLoader
    assert named - elsewhere <= arguments
    precisions = {name for text in ELSEWHERE["precision"].values() for name in re.findall(r"'(.+?)'", text)}
    assert precisions <= {*KNOWN["precision"], *PluginSet.discover().names("precision")}
    members = {name for text in ELSEWHERE["attribute"].values() for name in re.findall(r"trainer\.(\w+)", text)}
    assert members
    assert {name for name in members if not hasattr(Trainer, name)} == set()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_processes": 2}, "Trainer has no argument num_processes=2; use accelerator='cpu', devices=..."),
        ({"sync_batchnorm": True}, "argument sync_batchnorm=True; use strategy='ddp?sync_batchnorm=true'"),
        ({"strategy": "fsdp"}, "strategy 'fsdp' is not registered; it does not exist here: a model that is divided among"),
        ({"strategy": "deepspeed_stage_2"}, "strategy 'deepspeed_stage_2' is not registered; it does not exist here: a model"),
        ({"accelerator": "hpu"}, "accelerator 'hpu' is not registered; no package provides it; your own can"),
        ({"accelerator": "csv"}, "accelerator 'csv' is not registered; use logger='csv'"),
        ({"accelerator": "ddp"}, "accelerator 'ddp' is not registered; use strategy='ddp'"),
        ({"accelerator": "CPU"}, "accelerator 'CPU' is not registered; did you mean 'cpu'?"),
        ({"precision": "fp16"}, "precision 'fp16' is not registered; half precision is '16-mixed', or '16-true'"),
        ({"precision": "double"}, "precision 'double' is not registered; double precision is '64-true'"),
        ({"accelerator": 3.0}, "3.0 is no Accelerator; give the accelerator as a name (installed: "),
    ],
)
def test_the_trainer_gives_the_advice(options, text):
    with pytest.raises(FulmenError) as caught:
        quiet(**options)
    assert text in str(caught.value)
    assert "did you mean 'num_nodes'" not in str(caught.value)


def test_what_stood_for_a_choice_in_lightning_1_still_does():
    trainer = quiet(accelerator=None, strategy=None, devices=None)
    assert (trainer.runtime.strategy.name, trainer.world_size) == ("single_device", 1)
    assert advice("strategy", "ddp") is None
