"""One parameter update, top to bottom. Which of the step functions a run uses is decided once, at its start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fulmen.contracts.module import Module
from fulmen.contracts.precision import Precision
from fulmen.contracts.strategy import STAND_IN, Strategy
from fulmen.errors import ConfigurationError, ModuleError
from fulmen.hooks import accepting, overrides
from fulmen.optimizers import NoOptimizer, advance_schedulers, drop_gradients, needs_closure

if TYPE_CHECKING:
    from fulmen.state import Run

Step = Callable[[Any, int], Any]


def make_step(run: Run) -> Step:
    """The function that trains on one batch: ``step(batch, batch_idx) -> outputs``."""
    module = run.module
    if not module.automatic_optimization:
        return ManualStep(run)
    by_closure = bool(run.optimizers) and overrides(module, "optimizer_step", Module)
    if run.optimizers and needs_closure(run.optimizers[0]):
        if run.options.accumulates:
            raise ConfigurationError(
                f"{type(run.optimizers[0]).__name__} evaluates each batch several times and cannot accumulate gradients over "
                "batches: leave accumulate_grad_batches at 1"
            )
        by_closure = True
    if by_closure:
        return ClosureStep(run)
    step = AutomaticStep(run)
    return PlainStep(run) if step.is_plain else step


def user_step(run: Run, name: str, arguments: int, required: bool = False) -> Callable[..., Any]:
    """The user's step under the run's strategy, precision and profiler. In 32 bits on one device: itself.

    Args:
        run: The run.
        name: ``"training_step"`` or another.
        arguments: How many it is called with; it may take fewer.
        required: Whether it must take them all.

    Raises:
        ModuleError: It must, and does not.
    """
    method = accepting(getattr(run.module, name), arguments)
    if required and method != getattr(run.module, name):
        raise ModuleError(
            f"there are several loaders, and {type(run.module).__name__}.{name} does not take the index of the loader: "
            f"def {name}(self, batch, batch_idx, dataloader_idx)"
        )
    step = run.runtime.wrap_step(run.module, name, method)
    return step if run.profiler is None else run.profiler.wrap(name, step)


def planned_window(run: Run) -> int:
    """Batches until the next optimizer step: fewer than ``accumulate_grad_batches`` where the epoch ends before."""
    return int(max(1, min(run.accumulate, run.loaders["train"].total - run.progress.batch)))


class AutomaticStep:
    """Forward, backward and, at the end of each window of ``accumulate_grad_batches``, the update."""

    def __init__(self, run: Run) -> None:
        module, precision, strategy = run.module, run.runtime.precision, run.runtime.strategy
        self.run, self.hooks = run, run.hooks
        self.training_step = user_step(run, "training_step", 2)
        self.optimizer: Any = run.optimizers[0] if run.optimizers else NoOptimizer()
        self.position = 0  # batches of the window so far
        self.window = 1  # batches that the window is planned to have
        self.counted = 0  # batches of the window that gave a gradient
        self.stand_ins = 0  # those of them that gave one of zero, because other ranks may wait for it
        self.weight: Any = None  # sum of the weights in the window, where losses are sums
        self.check_finite = run.options.detect_anomaly
        self.schedules = any(config.interval == "step" for config in run.schedulers)
        # What nobody overrides is not called: None stands for loss.backward(), drop_gradients() and optimizer.step().
        own_backward = overrides(module, "backward", Module) or overrides(strategy, "backward", Strategy)
        own_backward = own_backward or overrides(precision, "scale_loss", Precision)
        backward = partial(run.runtime.backward, module=module) if own_backward else None
        self.backward = self._profiled("backward", _plain_backward, backward)
        own_zero_grad = overrides(module, "optimizer_zero_grad", Module) or overrides(self.optimizer, "zero_grad", Optimizer)
        self.zero_grad = module.optimizer_zero_grad if own_zero_grad else None
        self.unscale = self._optional(precision, "unscale", Precision)
        own_update = overrides(precision, "optimizer_step", Precision)
        self.update = self._profiled("optimizer_step", _plain_step, run.runtime.optimizer_step if own_update else None)
        clips = run.options.gradient_clip_val is not None or overrides(module, "configure_gradient_clipping", Module)
        self.clip = module.configure_gradient_clipping if clips else None
        self.no_sync = run.runtime.no_sync if overrides(strategy, "no_sync", Strategy) else None

    @property
    def is_plain(self) -> bool:
        """Whether nobody acts between the forward pass and the update."""
        hooks, own = self.hooks, (self.backward, self.zero_grad, self.unscale, self.update, self.clip, self.no_sync)
        acting = hooks.on_before_zero_grad + hooks.on_before_backward + hooks.on_after_backward + hooks.on_before_optimizer_step
        alone = not acting and all(function is None for function in own)
        return alone and not self.check_finite and not self.run.options.accumulates

    def __call__(self, batch: Any, batch_idx: int) -> Any:
        """Train on one batch and return what ``training_step`` returned."""
        run = self.run
        run.stepped = False
        if not self.position:
            self.window = run.accumulate if run.accumulate == 1 else planned_window(run)
        if self.no_sync is not None and self.position + 1 < self.window:
            with self.no_sync(run.module):  # gradients are exchanged once per window, with its last batch
                outputs = self.forward_backward(batch, batch_idx)
        else:
            outputs = self.forward_backward(batch, batch_idx)
        self.position += 1
        if self.position >= self.window:
            self.finish_window()
        return outputs

    def forward_backward(self, batch: Any, batch_idx: int) -> Any:
        """Add the gradient of one batch to the window's."""
        outputs = self.training_step(batch, batch_idx)
        self.learn(outputs, batch_idx)
        return outputs if type(outputs) is not dict or STAND_IN not in outputs else None

    def learn(self, outputs: Any, batch_idx: int) -> None:
        """Add the gradient of what ``training_step`` returned to the window's."""
        hooks = self.hooks
        loss, weight = (outputs, None) if type(outputs) is Tensor else read_loss(outputs)
        if loss is None:
            return
        if type(outputs) is dict and STAND_IN in outputs:
            self.stand_ins, weight = self.stand_ins + 1, None if self.weight is None else 0.0
        if self.check_finite or not loss.requires_grad or loss.ndim:
            if not self.is_usable(loss, batch_idx):
                return
        if not self.counted:
            for hook in hooks.on_before_zero_grad:
                hook(self.optimizer)
            if self.zero_grad is None:
                drop_gradients(self.optimizer)
            else:
                self.zero_grad(self.run.progress.epoch, batch_idx, self.optimizer)
        if weight is not None or self.weight is not None or self.window > 1:
            loss = self.share(loss, weight)
        for hook in hooks.on_before_backward:
            hook(loss)
        if self.backward is None:
            loss.backward()
        else:
            self.backward(loss)
        for hook in hooks.on_after_backward:
            hook()
        self.counted += 1

    def share(self, loss: Tensor, weight: Tensor | float | None) -> Tensor:
        """The part of ``loss`` in the update of the window."""
        if self.counted > self.stand_ins and (weight is None) is not (self.weight is None):
            raise ModuleError(
                "training_step returned a mean for one batch and (loss_sum, weight) for another of the same accumulation "
                "window; return the same form for all"
            )
        if weight is None:
            return loss / self.window
        if self.window == 1 and self.run.runtime.world_size == 1:
            return loss / weight
        self.weight = weight if self.weight is None else self.weight + weight
        return loss

    def finish_window(self) -> None:
        """Update the parameters with the gradients of the window, if it has any. Also ends a window cut short."""
        if self.no_sync is not None and 0 < self.position < self.window:
            self.exchange_gradients()
        if self.stand_ins:
            self.settle_stand_ins()
        if self.counted:
            self.prepare_update()
            if self.update is None:
                self.optimizer.step()
            else:
                self.update(self.optimizer)
        self.close_window()

    def settle_stand_ins(self) -> None:
        """Count only batches for which some rank had a loss, as all ranks do."""
        empty, weighted = self.run.runtime.strategy.settle_stand_ins()
        self.counted, self.stand_ins = self.counted - empty, 0
        if weighted and self.weight is None:
            self.weight = 0.0

    def prepare_update(self) -> None:
        """Make the gradients of the window complete, show them, clip them."""
        if self.weight is not None or self.counted != self.window:
            self.rescale_gradients()
        if self.unscale is not None:
            self.unscale(self.optimizer)
        for hook in self.hooks.on_before_optimizer_step:
            hook(self.optimizer)
        if self.clip is not None:
            self.clip(self.optimizer, self.run.options.gradient_clip_val, self.run.options.gradient_clip_algorithm)

    def exchange_gradients(self) -> None:
        """Average the gradients of a window cut short: nobody knew that its last batch was the last, so it was not done."""
        strategy = self.run.runtime.strategy
        for parameter in (p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = strategy.all_reduce(gradient, "mean")

    def rescale_gradients(self) -> None:
        """Divide by the weight of the whole window on all ranks, or by the batches that it has instead of those planned."""
        runtime = self.run.runtime
        if self.weight is None:
            factor: Any = self.window / self.counted
        else:
            total = self.widened(self.weight)
            # Ranks average their gradients; of sums, the sum is wanted.
            factor = runtime.world_size / runtime.strategy.all_reduce(total, "sum")
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)

    def widened(self, value: Tensor | float) -> Tensor:
        """A number that is exchanged, in the widest format of the device."""
        wide = torch.float64 if self.run.runtime.accelerator.supports_float64 else torch.float32
        return torch.as_tensor(value, dtype=wide, device=self.run.device)

    def close_window(self) -> None:
        """Count the update and advance the schedulers, and begin a new window."""
        run, progress = self.run, self.run.progress
        if self.counted:
            progress.step += 1
            progress.updates += 1
            run.stepped = True
            if self.schedules:
                advance_schedulers(run, "step")
        self.position = self.counted = 0
        self.weight = None

    def is_usable(self, loss: Tensor, batch_idx: int) -> bool:
        """Whether there is a gradient to compute.

        Raises:
            ModuleError: The loss has several elements, does not depend on the parameters, or is not finite.
        """
        if loss.numel() != 1:
            raise ModuleError(
                f"training_step returned a loss of shape {tuple(loss.shape)}; it must have one element: return loss.mean()"
            )
        if self.check_finite and not bool(torch.isfinite(loss)):  # synchronises: detect_anomaly asks for it
            raise ModuleError(
                f"training_step returned a loss of {loss.item()} in epoch {self.run.progress.epoch}, batch {batch_idx}; "
                "look at that batch and at the learning rate"
            )
        if not loss.requires_grad and self.run.optimizers:
            raise ModuleError(
                "training_step returned a loss that does not depend on any parameter that is trained: it was detached, made "
                "from a number, or all parameters are frozen"
            )
        return loss.requires_grad

    def state_dict(self) -> dict[str, Any]:
        """The window that is open; gradients are kept apart."""
        return {"position": self.position, "window": self.window, "counted": self.counted, "weight": self.weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a window."""
        self.position, self.window, self.counted = state["position"], state["window"], state["counted"]
        self.weight = state["weight"]

    def _optional(self, owner: Any, name: str, base: type) -> Callable[..., Any] | None:
        return getattr(owner, name) if overrides(owner, name, base) else None

    def _profiled(self, action: str, plain: Callable[..., Any], own: Callable[..., Any] | None) -> Callable[..., Any] | None:
        profiler = self.run.profiler
        return own if profiler is None else profiler.wrap(action, own or plain)


class PlainStep(AutomaticStep):
    """The same update where nobody acts on it but the module and its optimizer: the lines that one would write by hand.

    Chosen once per run. It saves the calls and tests of the general one, some 5 % of the smallest step.
    """

    def __call__(self, batch: Any, batch_idx: int) -> Any:
        """Train on one batch and return what ``training_step`` returned."""
        run = self.run
        if run.accumulate != 1 or self.position:  # a callback may change that between two steps
            return super().__call__(batch, batch_idx)
        outputs = self.training_step(batch, batch_idx)
        if type(outputs) is Tensor and outputs.requires_grad and not outputs.ndim:
            drop_gradients(self.optimizer)
            outputs.backward()
            self.optimizer.step()
            progress, run.stepped = run.progress, True
            progress.step += 1
            progress.updates += 1
            if self.schedules:
                advance_schedulers(run, "step")
        else:
            run.stepped, self.window, self.position = False, 1, 1
            self.learn(outputs, batch_idx)
            self.finish_window()
        return outputs


class ClosureStep(AutomaticStep):
    """The same update inside a closure, for optimizers that evaluate it and modules that override ``optimizer_step``."""

    def __call__(self, batch: Any, batch_idx: int) -> Any:
        """Train on one batch and return what ``training_step`` returned."""
        run = self.run
        run.stepped = False
        if not self.position:
            self.window = planned_window(run)
        self.outputs: Any = None
        self.position += 1
        if self.position < self.window:
            return self.forward_backward(batch, batch_idx)

        def closure() -> Any:
            if self.window == 1:  # each evaluation starts from zero
                self.counted, self.weight = 0, None
            self.outputs = self.forward_backward(batch, batch_idx)
            if self.stand_ins:
                self.settle_stand_ins()
            if self.counted:
                self.prepare_update()
            else:  # no loss: what the batch before left must not be applied again
                self.optimizer.zero_grad()
            loss = read_loss(self.outputs)[0]
            if run.runtime.world_size > 1:  # the optimizer decides by it: alike on all ranks
                return run.runtime.strategy.all_reduce(self.widened(0.0 if loss is None else loss.detach()), "mean")
            return torch.zeros(()) if loss is None else loss

        run.module.optimizer_step(run.progress.epoch, batch_idx, run.optimizer_handles[0], closure)
        self.close_window()
        return self.outputs

    def finish_window(self) -> None:
        """Update with what a window has that was cut short."""
        run = self.run
        if self.counted:
            run.module.optimizer_step(run.progress.epoch, run.progress.batch, run.optimizer_handles[0], self.prepare_update)
        self.close_window()


class ManualStep:
    """``training_step`` does it all; the steps of its optimizers are counted."""

    position = 0

    def __init__(self, run: Run) -> None:
        self.run = run
        self.training_step = user_step(run, "training_step", 2)

    def __call__(self, batch: Any, batch_idx: int) -> Any:
        """Train on one batch and return what ``training_step`` returned."""
        outputs = self.training_step(batch, batch_idx)
        self.run.progress.updates += 1
        self.run.stepped = True
        return outputs

    def finish_window(self) -> None:
        """There is none."""

    def state_dict(self) -> dict[str, Any]:
        """There is none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is none."""


def read_loss(outputs: Any) -> tuple[Tensor | None, Any]:
    """The loss in what ``training_step`` returned, and its weight where it is a sum.

    Raises:
        ModuleError: It returned something else.
    """
    if outputs is None or isinstance(outputs, Tensor):
        return outputs, None
    if isinstance(outputs, Mapping) and "loss" in outputs:
        return read_loss(outputs["loss"])
    if isinstance(outputs, Mapping) and STAND_IN in outputs:
        return outputs[STAND_IN], None
    if isinstance(outputs, Mapping) and "loss_sum" in outputs and "weight" in outputs:
        return outputs["loss_sum"], outputs["weight"]
    if isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(outputs[0], Tensor):
        if isinstance(outputs[1], (int, float)) or (isinstance(outputs[1], Tensor) and outputs[1].numel() == 1):
            return outputs
    found = f"a mapping with {sorted(map(str, outputs))}" if isinstance(outputs, Mapping) else f"{type(outputs).__name__}"
    raise ModuleError(
        f"training_step returned {found}; allowed are the loss as a tensor, a mapping with 'loss', (loss_sum, weight), a "
        "mapping with 'loss_sum' and 'weight', and None to skip the batch"
    )


def _plain_backward(loss: Tensor) -> None:
    loss.backward()


def _plain_step(optimizer: Any) -> None:
    optimizer.step()
