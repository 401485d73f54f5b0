"""One number format for parameters, inputs and computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, Literal

import torch
from torch import nn

from fulmen.contracts.precision import Precision
from fulmen.errors import ConfigurationError

DTYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16}


class TruePrecision(Precision):
    """Double precision, or bfloat16 throughout. Optimizer states have the format of the parameters.

    Args:
        name: ``"64-true"`` or ``"bf16-true"``.
    """

    def __init__(self, name: Literal["64-true", "bf16-true"]) -> None:
        if name not in DTYPES:
            raise ConfigurationError(f"name={name!r} is not one of {', '.join(DTYPES)}")
        self.name, self.dtype = name, DTYPES[name]

    def convert_module(self, module: nn.Module) -> nn.Module:
        """``module`` with floating-point parameters and buffers in the format."""
        return module.to(self.dtype)

    def convert_input(self, batch: Any) -> Any:
        """``batch`` with floating-point tensors in the format."""
        return self.cast(batch, self.dtype)

    def wrap_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """``step``, in which new tensors have the format too."""

        @wraps(step)
        def converted(*args: Any, **kwargs: Any) -> Any:
            with self.forward_context():
                return step(*args, **kwargs)

        return converted

    def forward_context(self) -> AbstractContextManager[Any]:
        """New floating-point tensors have the format."""
        return _default_dtype(self.dtype)

    def init_context(self) -> AbstractContextManager[Any]:
        """Modules are built in the format."""
        return _default_dtype(self.dtype)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
