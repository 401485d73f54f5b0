from __future__ import annotations

import re

import pytest

from fulmen.known import CLASSES, KNOWN, extra_for, install_line
from fulmen.registry import CONTRACTS


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
