"""float16 for parameters, inputs and computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from fulmen import Precision


class HalfPrecision(Precision):
    """Half the memory, and 11 bits of precision, for parameters, gradients and optimizer states alike.

    Nothing is scaled: gradients below 6e-8 become 0, and values above 65504 infinite. Give Adam an ``eps`` of 1e-4 or so:
    the default of 1e-8 is 0 in float16. Where the memory allows it, ``"16-mixed"`` trains more reliably.
    """

    name = "16-true"
    dtype = torch.float16

    def convert_module(self, module: nn.Module) -> nn.Module:
        """``module`` with floating-point parameters and buffers in float16."""
        return module.to(self.dtype)

    def convert_input(self, batch: Any) -> Any:
        """``batch`` with floating-point tensors in float16."""
        return self.cast(batch, self.dtype)

    def wrap_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """``step``, in which new floating-point tensors are float16 too."""

        @wraps(step)
        def converted(*args: Any, **kwargs: Any) -> Any:
            with default_dtype(self.dtype):
                return step(*args, **kwargs)

        return converted

    def forward_context(self) -> AbstractContextManager[Any]:
        """New floating-point tensors are float16."""
        return default_dtype(self.dtype)

    def init_context(self) -> AbstractContextManager[Any]:
        """Modules are built in float16."""
        return default_dtype(self.dtype)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """PyTorch's default dtype for the length of a block; exactly what it was before, afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
