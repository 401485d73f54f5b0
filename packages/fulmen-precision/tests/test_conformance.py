"""The suite for precisions, for each that this package offers."""

from __future__ import annotations

import torch
from fulmen_precision import HalfPrecision, MixedPrecision, ScaledMixedPrecision

from fulmen.testing.conformance.precision import PrecisionSuite


class TestBFloat16Mixed(PrecisionSuite):
    name, compute_dtype, tolerance = "bf16-mixed", torch.bfloat16, 3e-2

    def make(self, folder):
        return MixedPrecision()


class TestFloat16Mixed(PrecisionSuite):
    name, compute_dtype, tolerance = "16-mixed", torch.float16, 3e-3
    takes_closure, reads_device, has_state = False, True, True

    def make(self, folder):
        return ScaledMixedPrecision(init_scale=64.0)


class TestFloat16(PrecisionSuite):
    name, parameter_dtype, compute_dtype, tolerance = "16-true", torch.float16, torch.float16, 3e-2

    def make(self, folder):
        return HalfPrecision()
