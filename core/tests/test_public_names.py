"""What ``import fulmen`` gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fulmen


@pytest.mark.parametrize("name", ["callbacks", "loggers", "profilers"])
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
