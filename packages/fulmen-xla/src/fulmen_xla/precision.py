"""bfloat16 on XLA devices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, Literal

import torch
from torch import nn

from fulmen import ConfigurationError, Precision

NAMES = ("xla-bf16-mixed", "xla-bf16-true")


class XLAPrecision(Precision):
    """bfloat16, which TPUs compute in at full speed and which needs no scaling of gradients.

    Args:
        name: ``"xla-bf16-mixed"``: parameters in single precision, and each step under ``torch.autocast("xla")``.
            ``"xla-bf16-true"``: parameters, inputs and optimizer states in bfloat16.

    Raises:
        ConfigurationError: The name is another.
    """

    def __init__(self, name: Literal["xla-bf16-mixed", "xla-bf16-true"] = "xla-bf16-mixed") -> None:
        if name not in NAMES:
            raise ConfigurationError(f"name={name!r} is not allowed; allowed: {', '.join(map(repr, NAMES))}")
        self.name = name

    @property
    def _mixed(self) -> bool:
        return self.name == "xla-bf16-mixed"

    def connect(self, device: torch.device) -> None:
        """Check the device.

        Raises:
            ConfigurationError: It is no XLA device.
        """
        if device.type != "xla":
            raise ConfigurationError(
                f"precision {self.name!r} is for accelerator 'xla', and the device is {device.type!r}; use "
                f"{self.name.removeprefix('xla-')!r}"
            )

    def convert_module(self, module: nn.Module) -> nn.Module:
        """``module`` in bfloat16, or as it is."""
        return module if self._mixed else module.to(torch.bfloat16)

    def convert_input(self, batch: Any) -> Any:
        """``batch`` with its floating-point tensors in bfloat16, or as it is."""
        return batch if self._mixed else self.cast(batch, torch.bfloat16)

    def wrap_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """``step`` under autocast, or itself."""
        if not self._mixed:
            return step

        @wraps(step)
        def under_autocast(*args: Any, **kwargs: Any) -> Any:
            with self.forward_context():
                return step(*args, **kwargs)

        return under_autocast

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast, where the precision is mixed."""
        return torch.autocast("xla", dtype=torch.bfloat16) if self._mixed else nullcontext()
