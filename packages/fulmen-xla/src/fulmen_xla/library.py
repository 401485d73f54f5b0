"""The one door to torch_xla, which is imported when it is used: it takes seconds and starts the device's library."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def root() -> Any:
    """``torch_xla``."""
    return import_module("torch_xla")


def runtime() -> Any:
    """``torch_xla.runtime``: ranks and devices."""
    return import_module("torch_xla.runtime")


def model() -> Any:
    """``torch_xla.core.xla_model``: collectives, memory and random numbers."""
    return import_module("torch_xla.core.xla_model")


def metrics() -> Any:
    """``torch_xla.debug.metrics``: counts of what was compiled."""
    return import_module("torch_xla.debug.metrics")


def tpus() -> int:
    """How many TPU devices this host has. The public functions start the device, so this asks an internal one."""
    return int(import_module("torch_xla._internal.tpu").num_available_devices())


def end_graph(wait: bool = False) -> None:
    """Run what was recorded. The host goes on without waiting for the device, unless ``wait``."""
    root().sync(wait=wait)
