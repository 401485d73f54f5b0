"""What tests of fulmen and of its plugins share; third parties use the same.

Small trainings (:class:`Regression`, :func:`batches`, :func:`quiet`, ...), and in :mod:`fulmen.testing.conformance` one suite
of tests for each contract.
"""

from __future__ import annotations

from fulmen.testing.training import QUIET, Regression, Validated, batches, mse, network, quiet, same_weights

__all__ = ["QUIET", "Regression", "Validated", "batches", "mse", "network", "quiet", "same_weights"]
