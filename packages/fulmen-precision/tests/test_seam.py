"""A precision of somebody else, offered by a plugin under a name of its own."""

from __future__ import annotations

from types import ModuleType

import torch
from fulmen_precision import MixedPrecision
from torch import nn

from fulmen import Trainer, hookimpl
from fulmen.testing import QUIET, Regression, batches

ENTERED = []


class Engine:
    """What an engine's own context does."""

    def __enter__(self):
        ENTERED.append(True)

    def __exit__(self, *error):
        return None


class FastLinear(nn.Linear):
    """A layer of the engine."""


class EnginePrecision(MixedPrecision):
    """Exchanges layers for those of an engine, and computes in its context."""

    name = "transformer-engine"

    def convert_module(self, module):
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    fast = FastLinear(child.in_features, child.out_features)
                    fast.load_state_dict(child.state_dict())
                    setattr(parent, name, fast)
        return module

    def forward_context(self):
        return Engine()


def test_another_engine():
    plugin = ModuleType("my_engine")
    target = f"{EnginePrecision.__module__}:EnginePrecision"
    plugin.register = hookimpl(
        lambda registry: registry.precision("transformer-engine", target, summary="layers of the engine")
    )
    module = Regression()
    trainer = Trainer(precision="transformer-engine", plugins=[plugin], max_epochs=1, accelerator="cpu", **QUIET)
    trainer.fit(module, batches(3))
    assert len(ENTERED) == 3
    assert {type(layer) for layer in module.net if isinstance(layer, nn.Linear)} == {FastLinear}
    assert len(module.losses) == 3 and not torch.is_autocast_enabled("cpu")
