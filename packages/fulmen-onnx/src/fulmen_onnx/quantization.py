"""Weights as 8-bit integers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fulmen import ConfigurationError

OPERATORS = ("MatMul", "Gemm", "LSTM", "Attention", "Gather")
"""What is quantised. Not convolutions: onnxruntime has no ConvInteger with signed weights on the CPU."""


def quantize_weights(file: Path) -> None:
    """Quantise the weights of an ONNX file in place, the inputs of their operators when it runs.

    Raises:
        ConfigurationError: It has nothing to quantise.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    target = file.with_name(f"int8.{file.name}")
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it advises to prepare the model first, which makes no difference to these operators
    prepared = onnx.load(str(file))
    del prepared.graph.value_info[:]  # shapes of weights that quantisation transposes; they are inferred again
    _unshare_weights(prepared.graph)
    try:
        quantize_dynamic(prepared, str(target), op_types_to_quantize=list(OPERATORS), weight_type=QuantType.QInt8)
    finally:
        root.setLevel(level)
    model = onnx.load(str(target), load_external_data=False)
    if not any("Integer" in node.op_type or node.op_type.startswith(("Dynamic", "Dequantize")) for node in model.graph.node):
        raise ConfigurationError(
            f'ONNXExporter quantize="int8" found nothing to quantise: none of {", ".join(OPERATORS)} in the model has constant '
            "weights; leave it out"
        )
    target.replace(file)


def _unshare_weights(graph: Any) -> None:
    """Give each Gemm weights of its own: onnxruntime transposes them in place, and those of two nodes twice, which is wrong."""
    weights, seen = {each.name: each for each in graph.initializer}, set()
    for index, node in enumerate(graph.node):
        if node.op_type != "Gemm" or node.input[1] not in weights:
            continue
        name = node.input[1]
        if name in seen:
            copy = graph.initializer.add()
            copy.CopyFrom(weights[name])
            node.input[1] = copy.name = f"{name}.{index}"
        seen.add(name)
