"""Training in several processes.

>>> from fulmen import Trainer
>>> trainer = Trainer(strategy="ddp", accelerator="cpu", devices=2)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_ddp.environments import LaunchedEnvironment, SlurmEnvironment, TorchrunEnvironment
    from fulmen_ddp.strategy import DDPStrategy

__all__ = ["DDPStrategy", "LaunchedEnvironment", "SlurmEnvironment", "TorchrunEnvironment"]

_ENVIRONMENTS = {name: "environments" for name in __all__ if name.endswith("Environment")}
__getattr__, __dir__ = attributes("fulmen_ddp", {"DDPStrategy": "strategy", **_ENVIRONMENTS})
