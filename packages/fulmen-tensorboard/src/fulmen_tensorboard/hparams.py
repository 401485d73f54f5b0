"""Hyper-parameters: for TensorBoard's HPARAMS page, and as a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import api_pb2, metadata  # type: ignore[import-untyped]
from tensorboard.plugins.hparams.plugin_data_pb2 import (  # type: ignore[import-untyped]
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)

from fulmen.contracts.logger import Status

STATUSES = {
    "success": api_pb2.Status.Value("STATUS_SUCCESS"),
    "failed": api_pb2.Status.Value("STATUS_FAILURE"),
    "interrupted": api_pb2.Status.Value("STATUS_UNKNOWN"),  # it may yet be resumed
}


def session_start(params: Mapping[str, Any], start_time: float) -> Summary:
    """The record that puts a run on the HPARAMS page.

    Metrics are not named: TensorBoard then offers every scalar of every run, and the parameters of all runs. With an
    experiment record, as ``SummaryWriter.add_hparams`` writes it, those of the first run would decide for all.

    Args:
        params: Flat names and plain values.
        start_time: Seconds since 1970.
    """
    info = SessionStartInfo(start_time_secs=start_time)
    for name, value in params.items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, (int, float)):
            info.hparams[name].number_value = value
        else:
            info.hparams[name].string_value = str(value)
    return _summary(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))


def session_end(status: Status, end_time: float) -> Summary:
    """The record that tells how a run ended."""
    info = SessionEndInfo(status=STATUSES[status], end_time_secs=end_time)
    return _summary(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def _summary(tag: str, content: HParamsPluginData) -> Summary:
    content.version = metadata.PLUGIN_DATA_VERSION
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString())
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])


def flatten(params: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings under names joined by ``/``, as numbers, booleans and text.

    >>> dict(flatten({"net": {"sizes": [64, 10]}, "lr": 0.1, "act": None}))
    {'net/sizes': '[64, 10]', 'lr': 0.1, 'act': 'None'}
    """
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value if isinstance(value, (bool, int, float, str)) else text(value)


def text(value: Any) -> str:
    """Any object as text that is the same in each run: a class or function by its name, the rest as ``str`` gives it."""
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - of a foreign __str__; the other parameters are worth having
        return f"<{type(value).__module__}.{type(value).__qualname__}>"


def yaml(value: Any, newline: str = "\n") -> str:
    """``value`` as indented JSON that YAML reads alike. What neither has is text.

    >>> print(yaml({"lr": 1e-05, "sizes": [64]}))
    {
      "lr": 1.0e-05,
      "sizes": [
        64
      ]
    }
    """
    deeper = f"{newline}  "
    if isinstance(value, Mapping):
        inside = [f"{json.dumps(str(key))}: {yaml(item, deeper)}" for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        inside = [yaml(item, deeper) for item in value]
    elif isinstance(value, float) and math.isfinite(value):
        number = float.__repr__(value)
        return number if "." in number or "e" not in number else number.replace("e", ".0e")  # else YAML 1.1 reads text
    elif value is None or isinstance(value, (bool, int)):
        return json.dumps(value)
    else:
        return json.dumps(text(value))
    start, end = "{}" if isinstance(value, Mapping) else "[]"
    return f"{start}{deeper}{f',{deeper}'.join(inside)}{newline}{end}" if inside else f"{start}{end}"
