"""Whether a file computes what the module computes, for the shapes that were asked for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fulmen import ConfigurationError, ModuleError
from fulmen.errors import listing

FIXED = (None, torch.export.Dim.STATIC, torch.export.Dim.AUTO)
"""What says of a dimension that its size may be fixed."""


# ---- Numbers


def flat_tensors(nested: Any) -> list[Tensor]:
    """The tensors in nested collections, in the order of the file's inputs and outputs, on the host. Synchronises."""
    return [leaf.detach().cpu() for leaf in pytree.tree_leaves(nested) if isinstance(leaf, Tensor)]


def run_file(file: Path, sample: Sequence[Tensor]) -> dict[str, Tensor]:
    """What onnxruntime computes on the host with ``file`` and its inputs in their order, by the name of the output.

    Raises:
        ConfigurationError: onnxruntime cannot run it.
    """
    import onnxruntime  # type: ignore[import-untyped]

    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        inputs = zip(session.get_inputs(), sample, strict=True)
        found = session.run(None, {each.name: tensor.numpy() for each, tensor in inputs})
    except Exception as error:  # onnxruntime and numpy have many types
        text = str(error).strip().splitlines()[0]
        raise ConfigurationError(
            f"onnxruntime cannot run the exported model on the host: {type(error).__name__}: {text}; "
            "pass check=False to write it without a comparison"
        ) from error
    return {each.name: torch.from_numpy(value) for each, value in zip(session.get_outputs(), found, strict=True)}


def compare(what: str, expected: Sequence[Tensor], found: Mapping[str, Tensor], rtol: float, atol: float | None) -> float:
    """The largest absolute difference.

    Args:
        what: The subject of the error.
        expected: What the module computed.
        found: What the file computes, in the same order, by name.
        rtol: Relative tolerance.
        atol: Absolute tolerance; ``None``: any finite difference is allowed.

    Raises:
        ModuleError: They differ by more than ``atol + rtol * abs(expected)``.
    """
    if [tuple(each.shape) for each in expected] != [tuple(each.shape) for each in found.values()]:
        raise ModuleError(
            f"{what} exported to ONNX has outputs of shapes {[tuple(each.shape) for each in found.values()]}, and in PyTorch "
            f"{[tuple(each.shape) for each in expected]}"
        )
    largest = 0.0
    for (name, value), wanted in zip(found.items(), expected, strict=True):
        value, wanted = value.double(), wanted.double()
        off = (value - wanted).abs().nan_to_num(nan=torch.inf)
        off[(value == wanted) | (value.isnan() & wanted.isnan())] = 0.0  # the same infinity, or not a number in both
        allowed = torch.inf if atol is None else atol + rtol * wanted.abs().nan_to_num(posinf=0.0)
        most = float(off.max()) if off.numel() else 0.0
        if bool((off > allowed).any()) or most == torch.inf:
            index = tuple(int(each) for each in torch.unravel_index(off.argmax(), off.shape))
            raise ModuleError(
                f"{what} exported to ONNX computes something else: the largest difference is {most:.3g}, in output {name!r} "
                f"at {index}: {float(value[index]):.6g} instead of {float(wanted[index]):.6g} (allowed: atol={atol}, "
                f"rtol={rtol}). "
                "Nothing was written; raise the tolerance if this is precise enough, or find the operator at fault with "
                "check=False"
            )
        largest = max(largest, most)
    return largest


# ---- Shapes


def require_dynamic(
    module: nn.Module, model: Any, dynamic_shapes: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Make sure that each dimension that was asked for is dynamic in the exported model: torch fixes some, silently.

    Args:
        module: Gives the names of arguments.
        model: The exported ``onnx_ir.Model``.
        dynamic_shapes: As it was asked for.
        args: The positional arguments of the sample.
        kwargs: The keyword arguments of the sample.

    Raises:
        ModuleError: It is fixed; the message says which.
    """
    wanted = list(_requests(module, dynamic_shapes, args, kwargs))
    fixed = [
        f"dimension {dim} ({_dim_name(spec)}) of {name} is {shape[dim]}"
        for (name, specs), shape in zip(wanted, [value.shape for value in model.graph.inputs], strict=True)
        for dim, spec in specs.items()
        if isinstance(shape[dim], int)
    ]
    if fixed:
        raise ModuleError(
            f"torch exported {type(module).__name__} with fixed sizes where dynamic_shapes asks for any: {listing(fixed)}. "
            "Nothing was written. Something in forward depends on that size. Give the dimension a name (a string) where it has "
            "a torch.export.Dim, so that torch finds its limits itself; or change forward; or leave the dimension out of "
            "dynamic_shapes and export once for each size"
        )


def _requests(
    module: nn.Module, dynamic_shapes: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, dict[int, Any]]]:
    """For each tensor of the sample its name, and the dimensions that shall be dynamic."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    if isinstance(dynamic_shapes, Mapping):
        specs = [dynamic_shapes.get(name) for name in bound]
    else:
        specs = list(dynamic_shapes or [])
        specs += [None] * (len(bound) - len(specs))
    for (name, value), spec in zip(bound.items(), specs, strict=True):
        yield from _requests_in(name, value, spec)


def _requests_in(name: str, value: Any, spec: Any) -> Iterator[tuple[str, dict[int, Any]]]:
    if isinstance(value, Tensor):
        pairs = spec.items() if isinstance(spec, Mapping) else enumerate(spec or ())
        yield name, {int(dim) % value.dim(): each for dim, each in pairs if not (each in FIXED or isinstance(each, int))}
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _requests_in(f"{name}[{key!r}]", item, None if spec is None else spec.get(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _requests_in(f"{name}[{index}]", item, None if spec is None else spec[index])


def _dim_name(spec: Any) -> str:
    return spec if isinstance(spec, str) else getattr(spec, "__name__", None) or "Dim.DYNAMIC"
