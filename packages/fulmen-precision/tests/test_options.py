"""Names of precisions, and options that make no sense."""

from __future__ import annotations

import pytest
import torch
from fulmen_precision import HalfPrecision, MixedPrecision, ScaledMixedPrecision

from fulmen import ConfigurationError, Trainer
from fulmen.testing import QUIET


@pytest.mark.parametrize(
    ("given", "kind", "name"),
    [
        (16, ScaledMixedPrecision, "16-mixed"),
        ("16", ScaledMixedPrecision, "16-mixed"),
        ({"name": "16"}, ScaledMixedPrecision, "16-mixed"),
        ("16-mixed", ScaledMixedPrecision, "16-mixed"),
        ("bf16", MixedPrecision, "bf16-mixed"),
        ("bf16?cache_enabled=false", MixedPrecision, "bf16-mixed"),
        ("bf16-mixed", MixedPrecision, "bf16-mixed"),
        ("16-true", HalfPrecision, "16-true"),
    ],
)
def test_names(given, kind, name):
    precision = Trainer(precision=given, accelerator="cpu", **QUIET).runtime.precision
    assert type(precision) is kind and precision.name == name


@pytest.mark.parametrize("given", [32, "32", 64, "64"])
def test_older_names_of_what_the_core_brings(given):
    assert Trainer(precision=given, accelerator="cpu", **QUIET).runtime.precision.name == f"{given}-true"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_scale": 0.0}, "init_scale=0.0 is not allowed; allowed: a number above 0"),
        ({"growth_factor": 1.0}, "growth_factor=1.0 is not allowed; allowed: a number above 1"),
        ({"backoff_factor": 1.0}, "backoff_factor=1.0 is not allowed; allowed: a number between 0 and 1"),
        ({"growth_interval": 0}, "growth_interval=0 is not allowed; allowed: a whole number from 1"),
        ({"growth_interval": 1.5}, "growth_interval=1.5 is not allowed; allowed: a whole number from 1"),
        (
            {"scaler": torch.amp.GradScaler("cpu"), "init_scale": 8.0},
            "init_scale given together with scaler=, which has its own; give one of the two",
        ),
        (
            {"scaler": torch.amp.GradScaler("cpu", enabled=False)},
            "scaler= is not enabled, so float16 gradients would underflow; pass one that is, or none",
        ),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigurationError) as caught:
        ScaledMixedPrecision(**options)
    assert str(caught.value) == message


def test_a_device_that_autocast_does_not_know():
    with pytest.raises(ConfigurationError) as caught:
        MixedPrecision().connect(torch.device("vulkan"))
    assert str(caught.value) == (
        "precision 'bf16-mixed' needs torch.autocast, which does not know devices of type 'vulkan'; use 'bf16-true' or "
        "'32-true'"
    )
