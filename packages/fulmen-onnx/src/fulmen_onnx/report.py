"""What was measured when a file was written, kept in the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

PREFIX = "fulmen."


def write_report(file: Path, report: Mapping[str, float]) -> None:
    """Add the figures to the metadata of an ONNX file."""
    import onnx

    if not report:
        return
    model = onnx.load(str(file), load_external_data=False)
    for name, value in report.items():
        model.metadata_props.add(key=f"{PREFIX}{name}", value=repr(float(value)))
    onnx.save(model, str(file))


def read_report(path: str | os.PathLike[str]) -> dict[str, float]:
    """The figures in a file that :class:`~fulmen_onnx.ONNXExporter` wrote.

    Returns:
        ``max_difference``: the largest difference between the 32-bit file and the module, where it was checked;
        ``int8_max_difference``: the largest that quantisation made, with ``quantize="int8"``. Both absolute, for the sample.
    """
    import onnx

    properties = onnx.load(os.fspath(path), load_external_data=False).metadata_props
    return {each.key[len(PREFIX) :]: float(each.value) for each in properties if each.key.startswith(PREFIX)}
