from __future__ import annotations

import warnings

import pytest

from fulmen import errors


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigurationError, ValueError),
        (errors.PluginError, LookupError),
        (errors.ModuleError, RuntimeError),
        (errors.CheckpointError, RuntimeError),
    ],
)
def test_errors_can_be_caught_as_fulmens_and_as_pythons(error, builtin):
    assert issubclass(error, errors.FulmenError)
    assert issubclass(error, builtin)


def test_a_warning_starts_with_its_code_and_points_at_the_caller():
    def callee():
        errors.warn("batch-size", "it was guessed")

    with pytest.warns(errors.FulmenWarning) as caught:
        callee()
    assert str(caught[0].message) == "[batch-size] it was guessed"
    assert caught[0].filename == __file__


def test_one_code_can_be_silenced_alone():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message=r"\[batch-size\]")
        errors.warn("batch-size", "one")
        errors.warn("sampler", "other")
    assert [str(warning.message) for warning in caught] == ["[sampler] other"]


def test_listing():
    assert errors.listing(["b", 1, "a"]) == "b, 1, a"
    assert errors.listing(iter(())) == "(none)"


def test_nearest_spelling():
    assert errors.nearest("dpd", ["ddp", "single_device"]) == "ddp"
    assert errors.nearest("deepspeed", ["ddp", "single_device"]) is None
    assert errors.nearest("LightningModule", ["DataModule", "Module"]) == "Module"  # as Lightning calls it
    assert errors.nearest("LightningModule", ["LightningModules"]) == "LightningModules"
    assert errors.did_you_mean("dpd", iter(["ddp"])) == "; did you mean 'ddp'?"
    assert errors.did_you_mean("deepspeed", []) == ""
