"""In which number format the parts of a step are computed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.batches import map_tensors

Step = Callable[..., Any]


class Precision:
    """Single precision everywhere, which is also the default of every method.

    What is not overridden is not called: in 32 bits, a step is ``module.training_step``, ``loss.backward()`` and
    ``optimizer.step()`` themselves.
    """

    name: str = "32-true"

    def connect(self, device: torch.device) -> None:
        """Learn what kind of device it works on. Called once, before anything is launched or set up.

        Raises:
            ConfigurationError: This precision cannot work there.
        """

    def convert_module(self, module: nn.Module) -> nn.Module:
        """``module`` with its parameters in the format they are kept in. Called once, before optimizers are made."""
        return module

    def convert_input(self, batch: Any) -> Any:
        """``batch`` in the format that the module takes. Called per batch, on the device, where overridden."""
        return batch

    def wrap_step(self, step: Step) -> Step:
        """The function that computes the user's ``step`` in this precision. Called once per run and step kind."""
        return step

    def forward_context(self) -> AbstractContextManager[Any]:
        """The context for a forward pass in a loop of one's own."""
        return nullcontext()

    def init_context(self) -> AbstractContextManager[Any]:
        """The context in which a module is built."""
        return nullcontext()

    def scale_loss(self, loss: Tensor) -> Tensor:
        """``loss`` as its backward pass is to start from; a gradient scaler multiplies it here."""
        return loss

    def unscale(self, optimizer: Optimizer) -> None:
        """Undo the scale of the gradients of ``optimizer``, before they are looked at or clipped.

        May be called again before :meth:`optimizer_step`, and must do nothing then.
        """

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters, or skip the update where gradients overflowed."""
        return optimizer.step() if closure is None else optimizer.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint, such as a gradient scale; empty where there is none."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""

    def teardown(self) -> None:
        """Undo process-wide changes, such as the default dtype."""

    @staticmethod
    def cast(batch: Any, dtype: torch.dtype) -> Any:
        """``batch`` with its floating-point tensors in ``dtype``; a helper for :meth:`convert_input`."""

        def convert(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return map_tensors(batch, convert)
