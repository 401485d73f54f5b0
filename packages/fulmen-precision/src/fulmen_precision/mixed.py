"""Parameters in single precision, the expensive operations of each step in 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fulmen import ConfigurationError, ModuleError, Precision
from fulmen.errors import warn

FEW_STEPS = 10
"""So many skipped steps may be needed to find the first scale."""


class MixedPrecision(Precision):
    """``torch.autocast`` in bfloat16 around each step.

    bfloat16 has the range of single precision, so gradients need no scale.

    Args:
        cache_enabled: Whether a parameter that is used several times in a step is converted once. Switch it off where a
            step changes parameters itself.

    Source: `PyTorch's autocast <https://docs.pytorch.org/docs/stable/amp.html>`_.
    """

    name = "bf16-mixed"
    dtype = torch.bfloat16
    device_type = "cpu"
    """The kind of device; the run says which."""

    def __init__(self, cache_enabled: bool = True) -> None:
        self.cache_enabled = cache_enabled

    def connect(self, device: torch.device) -> None:
        """Learn the kind of device.

        Raises:
            ConfigurationError: PyTorch has no autocast for it.
        """
        if not torch.amp.is_autocast_available(device.type):
            raise ConfigurationError(
                f"precision {self.name!r} needs torch.autocast, which does not know devices of type {device.type!r}; use "
                "'bf16-true' or '32-true'"
            )
        self.device_type = device.type

    def wrap_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """``step`` under autocast. Its backward pass uses the formats that the forward pass chose, outside of it."""

        @wraps(step)
        def under_autocast(*args: Any, **kwargs: Any) -> Any:
            with self.forward_context():
                return step(*args, **kwargs)

        return under_autocast

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast."""
        return torch.autocast(self.device_type, dtype=self.dtype, cache_enabled=self.cache_enabled)


class ScaledMixedPrecision(MixedPrecision):
    """``torch.autocast`` in float16 around each step, and gradients kept in its range by ``torch.amp.GradScaler``.

    The loss is multiplied by a scale before the backward pass, and gradients are divided by it before they are clipped and
    applied. A step whose gradients overflowed changes no parameter, and the scale is reduced; it grows again after
    ``growth_interval`` steps that did not. The scale and the count of skipped steps are in checkpoints.

    A skipped step is a step: ``global_step`` and schedulers count it, as in PyTorch's own recipe, because whether it was
    skipped may be known to the device only. :attr:`num_skipped_steps` tells how many there were.

    Args:
        init_scale: The scale at first. Every step that overflows while a suitable one is found is skipped.
        growth_factor: What the scale is multiplied by when it grows.
        backoff_factor: What it is multiplied by after an overflow.
        growth_interval: So many steps in a row without overflow let it grow.
        cache_enabled: As in :class:`MixedPrecision`.
        scaler: A scaler of your own instead of the four options above, such as FSDP's ``ShardedGradScaler``.

    Raises:
        ConfigurationError: An option is out of its range, or given together with ``scaler``.

    Source: `PyTorch's gradient scaling <https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling>`_.
    """

    name = "16-mixed"
    dtype = torch.float16

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        cache_enabled: bool = True,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        super().__init__(cache_enabled)
        self._options = {
            "init_scale": init_scale,
            "growth_factor": growth_factor,
            "backoff_factor": backoff_factor,
            "growth_interval": growth_interval,
        }
        check_scale_options(self._options, own_scaler=scaler is not None)
        if scaler is not None and not scaler.is_enabled():
            raise ConfigurationError("scaler= is not enabled, so float16 gradients would underflow; pass one that is, or none")
        self._given = scaler
        self.scaler = scaler or torch.amp.GradScaler(self.device_type, **self._options)  # type: ignore[arg-type]
        self._initial = self.scaler.state_dict()
        self._skipped: Tensor | None = None  # on the device: reading it waits
        self._skipped_before = 0  # before a resume
        self._num_steps = 0  # in this run
        self._unscaled: dict[int, Optimizer] = {}  # whose gradients are unscaled, and wait for their step
        self._begin()

    def connect(self, device: torch.device) -> None:
        """Learn the kind of device.

        Raises:
            ConfigurationError: PyTorch has no autocast for it.
        """
        super().connect(device)
        if self._given is None:
            self.scaler = torch.amp.GradScaler(device.type, **self._options)  # type: ignore[arg-type]

    # ---- Steps

    def scale_loss(self, loss: Tensor) -> Tensor:
        """``loss`` times the scale."""
        if self._unscaled:
            self._check_abandoned()
        if self._stepped:
            self._settle()
        if self._ended:
            self._restart()
        self._scaled = True
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients of ``optimizer`` by the scale, once per step.

        Raises:
            ModuleError: No loss was scaled, so the gradients came from elsewhere.
        """
        if id(optimizer) in self._unscaled or not has_gradients(optimizer):
            return
        if not self._scaled:
            raise ModuleError(
                f"the gradients of {type(optimizer).__name__} were computed without the gradient scale of precision "
                f"{self.name!r}: call self.manual_backward(loss), or runtime.backward(loss), instead of loss.backward()"
            )
        self.scaler.unscale_(optimizer)
        self._unscaled[id(optimizer)] = optimizer

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters, or leave them where gradients overflowed.

        Waits for the device as ``GradScaler.step`` does; not at all with an optimizer made with ``fused=True``.

        Raises:
            ConfigurationError: ``optimizer`` evaluates its closure several times, as LBFGS does.
        """
        result = None
        if closure is not None:
            self._check_closure(optimizer)
            result = closure()
        self.unscale(optimizer)
        if id(optimizer) not in self._unscaled:  # nothing has a gradient
            return optimizer.step() if result is None else result
        stepped = self.scaler.step(optimizer)
        del self._unscaled[id(optimizer)]
        self._count(optimizer)
        self._num_steps += 1
        self._stepped = True
        # A scheduler would warn that it came before the optimizer, where the first step is one that is skipped.
        optimizer._opt_called = True  # type: ignore[attr-defined]
        return stepped if result is None else result

    def _check_closure(self, optimizer: Optimizer) -> None:
        parameter = signature(optimizer.step).parameters.get("closure")
        if parameter is not None and parameter.default is parameter.empty:
            raise ConfigurationError(
                f"{type(optimizer).__name__} evaluates the loss several times per step, and a gradient scale allows one: use "
                "precision 'bf16-mixed' or '32-true', or another optimizer"
            )

    def _check_abandoned(self) -> None:
        """What was unscaled and never applied must be gone, or unscaled and scaled gradients would be added."""
        for optimizer in self._unscaled.values():
            if has_gradients(optimizer):
                raise ModuleError(
                    f"gradients of {type(optimizer).__name__} were unscaled or clipped, and neither applied nor reset before "
                    "the next backward pass: call its step() or zero_grad() first"
                )
        self._stepped = True  # the scaler forgets them with its update

    def _count(self, optimizer: Optimizer) -> None:
        # PyTorch has no public name for this; ShardedGradScaler relies on it too. Tensors of 0 or 1, which are not read here.
        for overflowed in self.scaler._found_inf_per_device(optimizer).values():
            self._skipped = overflowed.clone() if self._skipped is None else self._skipped + overflowed

    def _settle(self) -> None:
        """Let the scale follow the steps since the last backward pass, of all optimizers at once.

        Not after each optimizer's step: the gradients that wait for another one carry the scale as it was.
        """
        self._stepped = False
        self._unscaled.clear()
        self.scaler.update()

    # ---- State

    @property
    def num_skipped_steps(self) -> int:
        """Steps that changed nothing, because gradients overflowed. Waits for the device."""
        return self._skipped_before + (0 if self._skipped is None else int(self._skipped))

    @property
    def scale(self) -> float:
        """What the next loss will be multiplied by. Waits for the device."""
        if self._stepped:
            self._settle()
        return float(self.scaler.get_scale())

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state, and the count of skipped steps. Waits for the device."""
        if self._stepped:
            self._settle()
        self._warn_of_skipped()
        return {**self.scaler.state_dict(), "num_skipped_steps": self.num_skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with a scale. A checkpoint without one, of another precision, is a warning."""
        self._restart()
        if "scale" not in state_dict:
            return warn(
                "gradient-scale",
                f"the checkpoint was written in another precision and has no gradient scale; {self.name!r} starts with "
                f"{self.scaler.get_scale():g}",
            )
        self.scaler.load_state_dict({key: value for key, value in state_dict.items() if key != "num_skipped_steps"})
        self._skipped_before = int(state_dict.get("num_skipped_steps", 0))

    def teardown(self) -> None:
        """Settle the last step; the next run starts with a new scale."""
        if self._stepped:
            self._settle()
        self._ended = True
        self._warn_of_skipped()

    def _begin(self) -> None:
        self._scaled = False  # whether a loss was scaled in this run
        self._stepped = False  # whether a step was made that the scale has not followed yet
        self._ended = False
        self._skipped, self._skipped_before = None, 0
        self._num_steps, self._warned = 0, False
        self._unscaled.clear()

    def _warn_of_skipped(self) -> None:
        """Say so where most steps change nothing: a loss that is not finite is no matter of its scale."""
        if self._warned or self._num_steps < 2 * FEW_STEPS:
            return
        skipped = self.num_skipped_steps - self._skipped_before
        if skipped <= self._num_steps // 2:
            return
        self._warned = True
        warn(
            "skipped-steps",
            f"{skipped} of {self._num_steps} optimizer steps changed nothing, because gradients were infinite or not a number, "
            f"and the gradient scale fell to {self.scaler.get_scale():g}: look at the loss and the data, or use 'bf16-mixed'",
        )

    def _restart(self) -> None:
        self.scaler.load_state_dict(self._initial)
        self._begin()


def has_gradients(optimizer: Optimizer) -> bool:
    """Whether any parameter has one. As a rule the first has."""
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])


def check_scale_options(options: dict[str, float], own_scaler: bool) -> None:
    """Refuse what makes no sense.

    Raises:
        ConfigurationError: An option is out of its range, or given together with a scaler.
    """
    defaults = {"init_scale": 2.0**16, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
    if own_scaler and (given := [name for name in options if options[name] != defaults[name]]):
        raise ConfigurationError(f"{', '.join(given)} given together with scaler=, which has its own; give one of the two")
    interval = options["growth_interval"]
    wrong = {
        "init_scale": (not options["init_scale"] > 0, "a number above 0"),
        "growth_factor": (not options["growth_factor"] > 1, "a number above 1"),
        "backoff_factor": (not 0 < options["backoff_factor"] < 1, "a number between 0 and 1"),
        "growth_interval": (not isinstance(interval, int) or interval < 1, "a whole number from 1"),
    }
    for name, (is_wrong, allowed) in wrong.items():
        if is_wrong:
            raise ConfigurationError(f"{name}={options[name]!r} is not allowed; allowed: {allowed}")
