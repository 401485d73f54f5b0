"""What every test of the repository shares."""

from __future__ import annotations

import importlib.util

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs hardware that is not here. Only the markers ``gpu`` and ``hardware`` lead here."""
    if item.get_closest_marker("gpu") and not _has("cuda"):
        pytest.skip("torch finds no CUDA device")
    for marker in item.iter_markers("hardware"):
        if not _has(marker.args[0]):
            pytest.skip(f"torch finds no {marker.args[0]} device")


def _has(device: str) -> bool:
    import torch

    if device == "xla":
        return importlib.util.find_spec("torch_xla") is not None
    return bool({"cuda": torch.cuda, "mps": torch.backends.mps}[device].is_available())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured, which they tell with the fixture ``record_property``."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    measured = [f"{name}: {value}" for report in reports for name, value in report.user_properties]
    if measured:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(measured))
