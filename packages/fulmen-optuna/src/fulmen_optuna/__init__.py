"""Studies of hyper-parameters with Optuna: a callback that prunes, and a driver.

>>> from fulmen_optuna import OptunaPruning, optimize
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_optuna.driver import optimize
    from fulmen_optuna.pruning import OptunaPruning

__all__ = ["OptunaPruning", "optimize"]

__getattr__, __dir__ = attributes(__name__, {"OptunaPruning": "pruning", "optimize": "driver"})
