"""What ``import fulmen`` gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fulmen


@pytest.mark.parametrize("name", ["callbacks", "loggers", "profilers", "strategies"])
def test_modules_of_parts_need_no_import_of_their_own(name):
    code = f"import sys, fulmen; assert 'torch' not in sys.modules; print(fulmen.{name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"fulmen.{name}\n", done.stderr


def test_every_public_name_is_there():
    assert all(hasattr(fulmen, name) for name in fulmen.__all__)
    assert set(fulmen.__all__) <= set(dir(fulmen))


def test_names_of_lightning_lead_to_ours():
    with pytest.raises(AttributeError, match="no attribute 'LightningModule'; did you mean 'Module'\\?; it has: "):
        fulmen.LightningModule  # noqa: B018
    with pytest.raises(fulmen.PluginError, match="a class 'TQDMProgressBar'; did you mean 'ConsoleProgress'\\?"):
        fulmen.callbacks.TQDMProgressBar  # noqa: B018


MISSING = [
    ("from fulmen.callbacks import TQDMProgressBar", "class 'TQDMProgressBar'; did you mean 'ConsoleProgress'?"),
    ("from fulmen.callbacks import BasePredictionWriter", "does not exist here: write in on_predict_batch_end"),
    ("from fulmen.callbacks import LearningRateFinder", "there is no learning-rate finder"),
    ("from fulmen.profilers import AdvancedProfiler", "it does not exist here: run torch.profiler around fit"),
    ("from fulmen.strategies import FSDPStrategy", "a model that is divided among devices is not supported"),
    ("from fulmen.callbacks.lr_monitor import LearningRateMonitor", "'lr_monitor'; did you mean 'LearningRateMonitor'?"),
    ("import fulmen.callbacks.timer", "class 'timer'; did you mean 'Timer'?"),
    ("from fulmen.utilities.rank_zero import rank_zero_only", "rank_zero_only is in fulmen.loggers"),
    ("from fulmen import LightningModule", "no attribute 'LightningModule'; did you mean 'Module'?"),
    ("import fulmen.pytorch as pl", "its names are in fulmen itself"),
]


@pytest.mark.parametrize(("statement", "text"), MISSING)
def test_an_import_says_what_an_attribute_would(statement, text):
    with pytest.raises(ImportError) as caught:
        exec(statement)
    assert isinstance(caught.value, ModuleNotFoundError | fulmen.PluginError)
    assert text in str(caught.value)


def test_scripts_can_ask_whether_a_class_exists():
    assert not hasattr(fulmen.callbacks, "TQDMProgressBar")
    assert not hasattr(fulmen.callbacks, "__wrapped__")
    assert hasattr(fulmen.callbacks, "Timer")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'fulmen\.Trainer'"):
        __import__("fulmen.Trainer")  # the attribute exists, the module does not


def test_a_star_imports_what_is_installed():
    found: dict[str, object] = {}
    exec("from fulmen.callbacks import *", found)
    assert {"Callback", "Checkpoint", "ProgressBar", "Timer", "ConsoleProgress"} <= set(found)
    assert set(found) - {"__builtins__"} == set(dir(fulmen.callbacks))
