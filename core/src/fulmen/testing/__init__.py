"""The test kit for authors of plugins: small real trainings, and parts that record or fail.

``fulmen.testing.conformance`` holds one suite of tests per contract; it needs pytest: ``pip install "fulmen[testing]"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen.testing.fakes import (
        FailingCallback,
        FailingLogger,
        FailingModule,
        Failure,
        FakeAccelerator,
        RecordingCallback,
        RecordingLogger,
    )
    from fulmen.testing.training import (
        QUIET,
        Regression,
        Validated,
        batches,
        mse,
        network,
        quiet,
        same_weights,
        without_dropout,
    )

__all__ = [
    "QUIET",
    "FailingCallback",
    "FailingLogger",
    "FailingModule",
    "Failure",
    "FakeAccelerator",
    "RecordingCallback",
    "RecordingLogger",
    "Regression",
    "Validated",
    "batches",
    "mse",
    "network",
    "quiet",
    "same_weights",
    "without_dropout",
]

_FAKES = ("Failing", "Failure", "Fake", "Recording")

__getattr__, __dir__ = attributes(__name__, {name: "fakes" if name.startswith(_FAKES) else "training" for name in __all__})
