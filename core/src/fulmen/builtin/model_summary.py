"""What a module consists of: its layers, their sizes, and what passes through them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fulmen.batches import move_to_device
from fulmen.contracts.callback import Callback
from fulmen.errors import ConfigurationError, warn
from fulmen.rng import isolated

if TYPE_CHECKING:
    from fulmen.contracts.module import Module
    from fulmen.trainer import Trainer

UNKNOWN = "?"


class ModelSummary(Callback):
    """Prints the layers of the module when fitting starts.

    Where the module has an ``example_input_array``, one forward pass with it finds the shapes. It leaves no trace: modes and
    random numbers are put back. Every rank computes the summary, because layers may exchange data, and rank 0 prints it.

    Args:
        max_depth: How many levels of layers within layers to show; -1: all, 0: only the totals.

    Raises:
        ConfigurationError: ``max_depth`` is something else.
    """

    def __init__(self, max_depth: int = 1) -> None:
        self.max_depth = check_depth(max_depth)

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Print the table."""
        precision = trainer.runtime.precision
        forward = precision.wrap_step(module)

        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = precision.convert_input((args, kwargs))
            return forward(*args, **kwargs)

        trainer.print(summarize(module, self.max_depth, call=call))


@dataclass
class Layer:
    """One row."""

    name: str
    kind: str
    num_parameters: int
    """Those of the layers inside included, each once."""
    uninitialized: int
    """How many more have no shape yet, because a lazy layer has seen no data."""
    training: bool
    in_shape: str = UNKNOWN
    out_shape: str = UNKNOWN


@dataclass
class Summary:
    """What :func:`summarize` found. ``str(summary)`` is the table. A parameter that is shared counts once."""

    layers: list[Layer] = field(default_factory=list)
    num_trainable: int = 0
    num_frozen: int = 0
    num_uninitialized: int = 0
    """Parameters without a shape, which no other figure includes."""
    num_bytes: int = 0
    """The size of the parameters as they are now."""
    num_training: int = 0
    """Layers in training mode, at any depth."""
    num_evaluating: int = 0
    """Layers in evaluation mode, at any depth."""
    has_shapes: bool = False

    @property
    def num_parameters(self) -> int:
        """Trainable and frozen ones."""
        return self.num_trainable + self.num_frozen

    def __str__(self) -> str:
        lines = aligned(self._rows()) if self.layers else []
        unknown = f", and {self.num_uninitialized} without a shape yet" if self.num_uninitialized else ""
        totals = [
            (human(self.num_trainable), "trainable parameters"),
            (human(self.num_frozen), "frozen parameters"),
            (human(self.num_parameters), f"parameters in all{unknown}"),
            (f"{self.num_bytes / 1e6:,.3f} MB", "size of the parameters"),
            (str(self.num_training), "layers in training mode"),
            (str(self.num_evaluating), "layers in evaluation mode"),
        ]
        width = max(len(figure) for figure, _ in totals)
        return "\n".join([*lines, *([""] if lines else []), *(f"{figure.ljust(width)}  {text}" for figure, text in totals)])

    def _rows(self) -> list[list[str]]:
        rows = [["name", "type", "parameters", "mode", "input", "output"]]
        for layer in self.layers:
            count = human(layer.num_parameters) if not layer.uninitialized else UNKNOWN
            mode = "train" if layer.training else "eval"
            rows.append([layer.name, layer.kind, count, mode, layer.in_shape, layer.out_shape])
        return rows if self.has_shapes else [row[:4] for row in rows]


def summarize(module: nn.Module, max_depth: int = 1, *, call: Callable[..., Any] | None = None) -> Summary:
    """The layers of any module, without a trainer.

    Args:
        module: The module. Shapes are found where it has an ``example_input_array``: a tensor, a tuple of arguments, or a
            mapping of keyword arguments.
        max_depth: How many levels of layers within layers to show; -1: all, 0: only the totals.
        call: How to call ``module`` for the shapes; ``None``: directly.

    Returns:
        The figures. Print them for a table.

    >>> print(summarize(nn.Sequential(nn.Linear(16, 8), nn.ReLU())))
    name  type    parameters  mode
    ----  ------  ----------  -----
    0     Linear  136         train
    1     ReLU    0           train
    <BLANKLINE>
    136       trainable parameters
    0         frozen parameters
    136       parameters in all
    0.001 MB  size of the parameters
    2         layers in training mode
    0         layers in evaluation mode
    """
    check_depth(max_depth)
    parameters = list(module.parameters())  # each once
    known = [parameter for parameter in parameters if not is_lazy(parameter)]
    inner = [part for part in module.modules() if part is not module]
    shown = {name: part for name, part in module.named_modules() if name and (max_depth == -1 or name.count(".") < max_depth)}
    found = Summary(
        layers=[_layer(name, part, part.parameters()) for name, part in shown.items()],
        num_trainable=sum(p.numel() for p in known if p.requires_grad),
        num_frozen=sum(p.numel() for p in known if not p.requires_grad),
        num_uninitialized=len(parameters) - len(known),
        num_bytes=sum(p.numel() * p.element_size() for p in known),
        num_training=sum(part.training for part in inner),
        num_evaluating=sum(not part.training for part in inner),
    )
    own = list(module.parameters(recurse=False))
    if own and max_depth != 0:
        found.layers.append(_layer("(own parameters)", module, own))
    example = getattr(module, "example_input_array", None)
    if example is not None and found.layers and len(known) == len(parameters):
        _find_shapes(found, module, shown, example, call or module)
    return found


def _layer(name: str, part: nn.Module, parameters: Any) -> Layer:
    mine = list(parameters)
    known = [parameter for parameter in mine if not is_lazy(parameter)]
    return Layer(name, type(part).__name__, sum(p.numel() for p in known), len(mine) - len(known), part.training)


# ---- Shapes


def _find_shapes(
    found: Summary, module: nn.Module, shown: Mapping[str, nn.Module], example: Any, call: Callable[..., Any]
) -> None:
    """Fill in the shapes with one forward pass. One that fails costs the shapes, and not the training."""
    layers = {layer.name: layer for layer in found.layers}
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    example = move_to_device(example, device)
    with ExitStack() as stack:
        stack.enter_context(without_trace(module, device))
        for name, part in shown.items():
            if not isinstance(part, torch.jit.ScriptModule):
                stack.callback(part.register_forward_hook(_recorder(layers[name]), with_kwargs=True).remove)
        try:
            if isinstance(example, Mapping):
                call(**example)
            else:
                call(*example) if isinstance(example, tuple) else call(example)
        except Exception as error:  # noqa: BLE001 - whatever the user's forward raises
            warn(
                "summary-forward",
                f"the summary has no shapes, because {type(module).__name__}.forward failed with example_input_array: "
                f"{type(error).__name__}: {error}",
            )
        else:
            found.has_shapes = True


def _recorder(layer: Layer) -> Callable[..., None]:
    def record(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if layer.out_shape == UNKNOWN:  # of a layer that is used several times, the first
            given = [*args, *kwargs.values()]
            layer.in_shape, layer.out_shape = shape_of(given[0] if len(given) == 1 else given), shape_of(output)

    return record


@contextmanager
def without_trace(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; modes and random numbers are as before afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    with ExitStack() as stack:
        stack.enter_context(isolated())
        if device.type not in ("cpu", "meta"):
            stack.enter_context(torch.random.fork_rng([device], device_type=device.type))
        if "torch._dynamo" in sys.modules:  # compiling with hooks in place would be for this one pass
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        try:
            module.eval()
            yield
        finally:
            for part, training in modes:
                part.training = training


def shape_of(value: Any) -> str:
    """The shape of a tensor, or the shapes in a collection of them.

    >>> shape_of((torch.zeros(2, 3), {"hidden": torch.zeros(4)}))
    '([2, 3], hidden: [4])'
    """
    if isinstance(value, Tensor):
        return str(list(value.shape))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {shape_of(item)}" for key, item in value.items()) or UNKNOWN
    if isinstance(value, (list, tuple)):
        return f"({', '.join(shape_of(item) for item in value)})"
    return UNKNOWN


# ---- Text


def aligned(rows: list[list[str]]) -> list[str]:
    """The lines of a table whose first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def human(count: int) -> str:
    """A count as people say it.

    >>> human(999), human(61_700), human(1_000_000_000)
    ('999', '61.7 K', '1.0 B')
    """
    if count < 1000:
        return str(count)
    value, units = float(count), iter("KMBT")
    unit = ""
    while round(value, 1) >= 1000 and (larger := next(units, None)):
        value, unit = value / 1000, larger
    return f"{value:,.1f} {unit}"


def check_depth(max_depth: Any) -> int:
    """``max_depth``, which must be a whole number from -1."""
    if not isinstance(max_depth, int) or isinstance(max_depth, bool) or max_depth < -1:
        raise ConfigurationError(f"max_depth={max_depth!r} is not allowed; allowed: -1 for all levels, or a number from 0")
    return max_depth
