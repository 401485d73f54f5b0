"""Options that make no sense are errors that say what is allowed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fulmen_pruning import ModelPruning

from fulmen import ConfigurationError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"pruning_fn": "l1_unstructerd"},
            "pruning_fn='l1_unstructerd' is not known; did you mean 'l1_unstructured'?; allowed: l1_unstructured, "
            "random_unstructured, ln_structured, random_structured, or a subclass of torch.nn.utils.prune.BasePruningMethod",
        ),
        (
            {"pruning_fn": SimpleNamespace},
            "pruning_fn=<class 'types.SimpleNamespace'> is not allowed; allowed: l1_unstructured, random_unstructured, "
            "ln_structured, random_structured, or a subclass of torch.nn.utils.prune.BasePruningMethod",
        ),
        (
            {"pruning_fn": "ln_structured"},
            "'ln_structured' prunes whole slices, which cannot be compared over all parameters: use_global_unstructured=False",
        ),
        (
            {"pruning_fn": "ln_structured", "use_global_unstructured": False},
            "pruning_fn='ln_structured' needs pruning_dim, the dimension whose slices are pruned: 0 for outputs",
        ),
        (
            {"pruning_fn": "ln_structured", "use_global_unstructured": False, "pruning_dim": 0},
            "pruning_fn='ln_structured' needs pruning_norm, such as 1, 2 or float('inf')",
        ),
        ({"pruning_dim": 0}, "pruning_dim=0 is given, and 'l1_unstructured' has none; leave it out"),
        ({"pruning_norm": 2}, "pruning_norm=2 is given, and 'l1_unstructured' has none; leave it out"),
        (
            {"parameters_to_prune": ["a"], "parameter_names": ["b"]},
            "parameters_to_prune and parameter_names are both given; give one of them",
        ),
        (
            {"amount": 1.5},
            "amount=1.5 is not allowed; allowed: a fraction from 0.0 to 1.0, a whole number from 0, or a function of the epoch "
            "that gives one",
        ),
        (
            {"resample_parameters": True, "use_lottery_ticket_hypothesis": False},
            "resample_parameters=True does something with use_lottery_ticket_hypothesis only; set both",
        ),
        ({"verbose": 3}, "verbose=3 is not allowed; allowed: 0, 1, 2"),
    ],
)
def test_wrong_options(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        ModelPruning(**{"pruning_fn": "l1_unstructured", **arguments})
    assert str(caught.value) == message
