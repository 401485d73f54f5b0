"""One suite of tests per contract, for every plugin: ours and yours pass the same ones.

A package subclasses a suite, says how to make its part, and runs pytest::

    from fulmen.testing.conformance import LoggerSuite
    from fulmen_jsonl import JSONLogger

    class TestJSONLogger(LoggerSuite):
        name = "jsonl"

        def make(self, folder):
            return JSONLogger(folder)

        def read_back(self, part, folder):
            return [json.loads(line) for line in part.path.read_text().splitlines()]

What a part cannot do is said by a flag, a class attribute such as ``picklable = False``: the tests of it are then skipped,
with the flag as the reason. A standard test cannot be replaced, and a flag that does not exist is an error.
"""

from __future__ import annotations

import pytest

_SUITES = ("accelerator", "callback", "environment", "exporter", "logger", "precision", "profiler", "strategy")
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in ("suite", *_SUITES)))

from fulmen.testing.conformance.accelerator import AcceleratorSuite  # noqa: E402 - after asking for readable assertions
from fulmen.testing.conformance.callback import CallbackSuite  # noqa: E402
from fulmen.testing.conformance.environment import EnvironmentSuite  # noqa: E402
from fulmen.testing.conformance.exporter import ExporterSuite  # noqa: E402
from fulmen.testing.conformance.logger import LoggerSuite  # noqa: E402
from fulmen.testing.conformance.precision import PrecisionSuite  # noqa: E402
from fulmen.testing.conformance.profiler import ProfilerSuite  # noqa: E402
from fulmen.testing.conformance.strategy import StrategySuite  # noqa: E402

__all__ = [
    "AcceleratorSuite",
    "CallbackSuite",
    "EnvironmentSuite",
    "ExporterSuite",
    "LoggerSuite",
    "PrecisionSuite",
    "ProfilerSuite",
    "StrategySuite",
]
