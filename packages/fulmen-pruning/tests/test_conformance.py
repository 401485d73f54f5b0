"""The suite for callbacks."""

from __future__ import annotations

from fulmen_pruning import ModelPruning

from fulmen.testing.conformance.callback import CallbackSuite


class TestModelPruning(CallbackSuite):
    name, arguments = "pruning", {"pruning_fn": "l1_unstructured"}
    changes_training = True

    def make(self, folder):
        return ModelPruning("l1_unstructured", amount=0.2)
