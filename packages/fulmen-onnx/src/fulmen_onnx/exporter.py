"""Write a module as an ONNX file, and make sure that the file computes what the module computes."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fulmen import ConfigurationError, Exporter
from fulmen.contracts.exporter import check_dynamic_shapes, example_arguments, local_path, replacing
from fulmen_onnx.checks import compare, flat_tensors, require_dynamic, run_file
from fulmen_onnx.quantization import quantize_weights
from fulmen_onnx.report import write_report

if TYPE_CHECKING:
    from fulmen import Module

_ALWAYS = {
    "export_params": "weights are part of the file",
    "dynamo": "there is no exporter but the one built on torch.export",
    "do_constant_folding": "what does not depend on the inputs is computed before",
}
"""Arguments of ``torch.onnx.export`` that are always ``True``, and why."""


class ONNXExporter(Exporter):
    """Exports with ``torch.onnx.export(dynamo=True)``, the exporter built on ``torch.export``.

    The file is written beside its target, checked, and renamed: a file that exists has passed. Weights are in the file;
    where they exceed what one file can hold (2 GB), or with ``external_data=True``, they lie in ``NAME.data`` beside it, and
    then the two files are replaced one after the other.

    Options:
        dynamic_shapes: Which dimensions may have any size, as ``torch.export.export`` takes it, or with names for
            dimensions: ``{"x": {0: "batch"}}``, ``({0: torch.export.Dim("batch", max=64)},)``. Others have the size
            that they have in the sample. ``Dim.AUTO`` leaves the choice to torch and is not checked.
        opset_version: Of ONNX; ``None``: torch's default.
        input_names: For the inputs, in their order; ``None``: the arguments of ``forward``.
        output_names: For the outputs, in their order; ``None``: torch's choice.
        check: Run the file with onnxruntime on the sample and compare.
        rtol: Relative tolerance of the comparison.
        atol: Absolute tolerance of the comparison.
        quantize: ``"int8"``: weights of linear and recurrent layers as 8-bit integers, inputs of these layers quantised as
            they come (dynamic quantisation). The difference it makes is in :func:`fulmen_onnx.read_report`.
        int8_atol: The largest difference that ``quantize`` may make; ``None``: any.
        external_data: Whether weights go to a file of their own; ``None``: where one file cannot hold them.
        **unknown: Of what code for ``torch.onnx.export`` passes, ``export_params=True``, ``dynamo=True`` and
            ``do_constant_folding=True`` say what happens anyway.

    >>> from fulmen.testing import Regression
    >>> import torch
    >>> Regression().export("onnx", "model.onnx", torch.zeros(1, 3), dynamic_shapes={"x": {0: "batch"}})  # doctest: +SKIP
    PosixPath('model.onnx')
    """

    def export(
        self,
        module: Module,
        path: str | os.PathLike[str] | None,
        input_sample: Any = None,
        *,
        dynamic_shapes: Any = None,
        opset_version: int | None = None,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        check: bool = True,
        rtol: float = 1e-4,
        atol: float = 1e-5,
        quantize: Literal["int8"] | None = None,
        int8_atol: float | None = None,
        external_data: bool | None = None,
        **unknown: Any,
    ) -> Any:
        """Write ``module`` to ``path``.

        Args:
            module: What to export; its ``forward`` is.
            path: The file; ``None``: return the ``torch.onnx.ONNXProgram``.
            input_sample: Arguments of ``forward``; ``None`` takes ``module.example_input_array``.
            **unknown: An error, but for what happens anyway. The class explains the others.

        Returns:
            The file; without ``path``, the program.

        Raises:
            ConfigurationError: An option has a wrong value.
            ModuleError: A dimension that was asked for is not dynamic, or the file computes something else.
        """
        _check_options(path, quantize, int8_atol, check, external_data, unknown)
        self.refuse({name: value for name, value in unknown.items() if name not in _ALWAYS})
        args, kwargs = example_arguments(module, input_sample)
        check_dynamic_shapes(module, dynamic_shapes, args, kwargs)
        expected = flat_tensors(module(*args, **kwargs)) if check else []
        with _less_noise(), _fresh_kernels():
            program = torch.onnx.export(
                module, args, kwargs=kwargs, dynamo=True, dynamic_shapes=dynamic_shapes, opset_version=opset_version,
                input_names=input_names, output_names=output_names, verbose=False,
            )  # fmt: skip
        assert program is not None  # only the older exporter returns nothing
        require_dynamic(module, program.model, dynamic_shapes, args, kwargs)
        sample, name = flat_tensors((args, kwargs)), type(module).__name__
        if path is None:
            with tempfile.TemporaryDirectory(prefix="fulmen-onnx-") as folder:
                file = Path(folder) / "model.onnx"
                program.save(file, external_data=external_data)
                if check:
                    compare(name, expected, run_file(file, sample), rtol, atol)
            return program
        with replacing(path) as file:
            program.save(file, external_data=external_data)
            report = {"max_difference": compare(name, expected, run_file(file, sample), rtol, atol)} if check else {}
            if quantize is not None:
                report["int8_max_difference"] = _quantized(file, name, sample, int8_atol)
            write_report(file, report)
        return Path(path)


def _quantized(file: Path, name: str, sample: Sequence[Tensor], int8_atol: float | None) -> float:
    """Quantise the file in place; the difference that it makes."""
    exact = list(run_file(file, sample).values())
    quantize_weights(file)
    return compare(f"{name} in int8", exact, run_file(file, sample), 0.0, int8_atol)


@contextmanager
def _fresh_kernels() -> Iterator[None]:
    """Let torch export recurrent layers afresh.

    For dynamic shapes torch 2.13 replaces their kernels during an export, and overlooks those that it has cached: an LSTM
    that was exported with a fixed length once could not be exported with a dynamic one in the same process.
    """
    recurrent = [getattr(overload, "_dispatch_cache", {}) for overload in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)]
    try:
        for cache in recurrent:
            cache.clear()
        yield
    finally:
        for cache in recurrent:
            cache.clear()


@contextmanager
def _less_noise() -> Iterator[None]:
    """Without what torch says of itself: its own deprecated calls, caches in its layers, and that torchvision is missing."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", r".*_flat_weights.* were assigned during export", UserWarning)
            warnings.filterwarnings("ignore", r"# The axis name: (\w+) will not be used.*another axis: \1\.", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def _check_options(
    path: Any, quantize: Any, int8_atol: Any, check: Any, external_data: Any, unknown: Mapping[str, Any]
) -> None:
    if "dynamic_axes" in unknown:
        raise ConfigurationError(
            f"ONNXExporter takes dynamic_shapes={unknown['dynamic_axes']!r} instead of dynamic_axes, by the names of forward's "
            "arguments"
        )
    for name, reason in _ALWAYS.items():
        if unknown.get(name, True) is not True:
            raise ConfigurationError(f"ONNXExporter {name}={unknown[name]!r} is not possible: {reason}; leave it out")
    if path is not None:
        local_path(path)
    if quantize not in (None, "int8"):
        raise ConfigurationError(f"ONNXExporter quantize={quantize!r} is not allowed; allowed: 'int8', None")
    if int8_atol is not None and quantize is None:
        raise ConfigurationError('ONNXExporter int8_atol has no effect without quantize="int8"; add that, or leave it out')
    if quantize is not None and path is None:
        raise ConfigurationError("ONNXExporter quantize needs a path: what is quantised is the file")
    if quantize is not None and external_data:
        raise ConfigurationError('ONNXExporter quantize="int8" needs the weights in the file; leave external_data out')
    if not isinstance(check, bool):
        raise ConfigurationError(f"ONNXExporter check={check!r} is not allowed; allowed: True, False")
