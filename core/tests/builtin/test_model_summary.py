from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from fulmen.builtin.model_summary import ModelSummary, human, shape_of, summarize
from fulmen.contracts.module import Module
from fulmen.errors import ConfigurationError, FulmenWarning
from fulmen.trainer import Trainer


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.norm(x))  # type: ignore[no-any-return]


class Model(Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.block = Block()
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.ones(3))
        self.head.requires_grad_(False)
        self.block.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.block(self.first(x))))  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


TOTALS = """\
131       trainable parameters
18        frozen parameters
149       parameters in all
0.001 MB  size of the parameters
5         layers in training mode
1         layers in evaluation mode"""


def test_the_table_of_direct_layers() -> None:
    assert str(summarize(Model())) == (
        """\
name              type     parameters  mode
----------------  -------  ----------  -----
first             Linear   40          train
block             Block    88          train
dropout           Dropout  0           train
head              Linear   18          train
(own parameters)  Model    3           train

"""
        + TOTALS
    )


def test_the_table_with_shapes_and_all_levels() -> None:
    model = Model()
    model.example_input_array = torch.zeros(5, 4)
    assert str(summarize(model, max_depth=-1)) == (
        """\
name              type         parameters  mode   input   output
----------------  -----------  ----------  -----  ------  ------
first             Linear       40          train  [5, 4]  [5, 8]
block             Block        88          train  [5, 8]  [5, 8]
block.norm        BatchNorm1d  16          eval   [5, 8]  [5, 8]
block.layer       Linear       72          train  [5, 8]  [5, 8]
dropout           Dropout      0           train  [5, 8]  [5, 8]
head              Linear       18          train  [5, 8]  [5, 2]
(own parameters)  Model        3           train  ?       ?

"""
        + TOTALS
    )


@pytest.mark.parametrize(("depth", "layers"), [(0, 0), (1, 5), (2, 7), (-1, 7)])
def test_depth_limits_the_rows_and_not_the_totals(depth: int, layers: int) -> None:
    found = summarize(Model(), depth)
    assert len(found.layers) == layers
    assert str(found).endswith(TOTALS)
    assert (str(found) == TOTALS) is (depth == 0)


def test_a_shared_parameter_counts_once() -> None:
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    found = summarize(tied)
    assert [layer.num_parameters for layer in found.layers] == [16, 16]
    assert (found.num_parameters, found.num_bytes) == (16, 64)


def test_sizes_are_those_of_the_real_formats() -> None:
    half, double = nn.Linear(2, 2, bias=False).half(), nn.Linear(2, 2, bias=False).double()
    mixed = nn.Sequential(half, double, nn.Linear(2, 2, device="meta"))
    assert summarize(mixed).num_bytes == 4 * 2 + 4 * 8 + 6 * 4


def test_lazy_parameters_are_unknown_and_stay_lazy() -> None:
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    lazy.example_input_array = torch.zeros(1, 3)
    found = summarize(lazy)
    assert [row[2] for row in found._rows()] == ["parameters", "?", "10"]
    assert (found.num_parameters, found.num_uninitialized, found.has_shapes) == (10, 2, False)
    assert "10        parameters in all, and 2 without a shape yet" in str(found)
    assert all(is_lazy(parameter) for parameter in lazy[0].parameters())


class Recorder(nn.Module):
    """Takes anything, and notes how it was called."""

    def __init__(self, example: Any) -> None:
        super().__init__()
        self.inner = nn.Dropout(0.5)
        self.example_input_array = example
        self.seen: list[Any] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append((len(args), sorted(kwargs), self.training, self.inner.training, torch.is_grad_enabled()))
        torch.rand(3)
        return self.inner(next(iter([*args, *kwargs.values()])))


@pytest.mark.parametrize(
    ("example", "seen"),
    [
        (torch.zeros(1), (1, [])),
        ((torch.zeros(1), 2), (2, [])),
        ({"a": torch.zeros(1), "b": 2}, (0, ["a", "b"])),
        ([torch.zeros(1)], None),
    ],
)
def test_the_forward_pass_takes_the_example_and_leaves_no_trace(example: Any, seen: Any) -> None:
    module = Recorder(example)
    module.inner.eval()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    if seen is None:  # one argument, which the dropout inside does not take
        with pytest.warns(FulmenWarning, match="summary-forward"):
            summarize(module)
        assert module.seen[0][:2] == (1, [])
    else:
        assert summarize(module).layers[0].in_shape == "[1]"
        assert module.seen == [(*seen, False, False, False)]
    assert torch.rand(1) == expected
    assert module.training and not module.inner.training
    assert not module.inner._forward_hooks


def test_a_forward_that_fails_costs_the_shapes_only() -> None:
    model = Model()
    model.example_input_array = torch.zeros(5, 7)
    with pytest.warns(FulmenWarning) as caught:
        found = summarize(model)
    assert str(caught[0].message) == (
        "[summary-forward] the summary has no shapes, because Model.forward failed with example_input_array: "
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied (5x7 and 4x8)"
    )
    assert "input" not in str(found)
    assert all(part.training for part in model.modules() if part is not model.block.norm)


def test_a_compiled_layer_is_not_compiled_for_the_summary() -> None:
    import torch._dynamo

    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    model = nn.Sequential(Block())
    model[0].compile(backend=backend)
    model.example_input_array = torch.zeros(2, 8)
    assert summarize(model).layers[0].out_shape == "[2, 8]"
    assert compiled == []
    model(torch.zeros(2, 8))
    assert compiled == [1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(2, 3), "[2, 3]"),
        (torch.zeros(()), "[]"),
        ((torch.zeros(2), [torch.zeros(1)]), "([2], ([1]))"),
        ({"a": torch.zeros(2), "b": None}, "a: [2], b: ?"),
        ({}, "?"),
        (3, "?"),
    ],
)
def test_shapes_of_what_layers_give(value: Any, text: str) -> None:
    assert shape_of(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0 K"),
        (999_949, "999.9 K"),
        (999_951, "1.0 M"),
        (7_000_000_000, "7.0 B"),
        (10**16, "10,000.0 T"),
    ],
)
def test_counts_are_for_people(count: int, text: str) -> None:
    assert human(count) == text


@pytest.mark.parametrize("depth", [-2, 1.0, True, None])
def test_a_wrong_depth(depth: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ModelSummary(depth)
    assert str(caught.value) == f"max_depth={depth!r} is not allowed; allowed: -1 for all levels, or a number from 0"


def fit(model: Module, *callbacks: Any, **options: Any) -> None:
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=list(callbacks), **options
    )
    trainer.fit(model, DataLoader(torch.ones(4, 4), batch_size=2))  # type: ignore[arg-type]


def test_the_trainer_prints_it_when_fitting_starts(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Model())
    assert capsys.readouterr().out == f"{summarize(Model())}\n"
    fit(Model(), ModelSummary(max_depth=0))
    assert capsys.readouterr().out == f"{TOTALS}\n"
    fit(Model(), enable_model_summary=False)
    assert capsys.readouterr().out == ""


def test_shapes_in_another_precision(capsys: pytest.CaptureFixture[str]) -> None:
    model = Model()
    model.example_input_array = torch.zeros(5, 4)
    fit(model, precision="64-true")
    out = capsys.readouterr().out
    assert "[5, 4]  [5, 8]" in out and "0.001 MB" in out


def test_the_training_is_the_same_with_and_without_shapes() -> None:
    weights = []
    for example in (None, torch.zeros(5, 4)):
        torch.manual_seed(1)
        model = Model()
        model.example_input_array = example
        fit(model)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*weights)


def test_a_script_module_is_no_obstacle() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch deprecates it, in some versions
        scripted = torch.jit.script(nn.Linear(4, 2))
    model = nn.Sequential(scripted, nn.ReLU())
    model.example_input_array = torch.zeros(1, 4)
    found = summarize(model)
    assert [layer.out_shape for layer in found.layers] == ["?", "[1, 2]"]
