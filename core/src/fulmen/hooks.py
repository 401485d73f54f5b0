"""Who acts at each moment of a run: resolved once, at its start, into plain tuples of functions.

pluggy discovers, validates and orders; it is not called while a run goes on. A moment at which nobody acts is an empty
tuple, so the loop pays one truth test for it, or nothing at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from fulmen import hookspecs
from fulmen.contracts.callback import Callback
from fulmen.contracts.module import Module
from fulmen.contracts.module_hooks import ModuleHooks
from fulmen.errors import ModuleError, did_you_mean, warn

if TYPE_CHECKING:
    from fulmen.contracts.profiler import Profiler
    from fulmen.plugins import PluginSet
    from fulmen.trainer import Trainer

Hook = Callable[..., Any]
HookChain = tuple[Hook, ...]


@dataclass(slots=True)
class Hooks:
    """For each hook, the functions to call, in order. They take the module's arguments: ``hook(batch, batch_idx)``."""

    on_fit_start: HookChain = ()
    on_fit_end: HookChain = ()
    on_sanity_check_start: HookChain = ()
    on_sanity_check_end: HookChain = ()
    on_train_start: HookChain = ()
    on_train_end: HookChain = ()
    on_train_stop: HookChain = ()
    on_train_epoch_start: HookChain = ()
    on_train_epoch_end: HookChain = ()
    on_train_batch_start: HookChain = ()
    on_train_batch_end: HookChain = ()
    on_before_zero_grad: HookChain = ()
    on_before_backward: HookChain = ()
    on_after_backward: HookChain = ()
    on_before_optimizer_step: HookChain = ()
    on_validation_start: HookChain = ()
    on_validation_end: HookChain = ()
    on_validation_epoch_start: HookChain = ()
    on_validation_epoch_end: HookChain = ()
    on_validation_batch_start: HookChain = ()
    on_validation_batch_end: HookChain = ()
    on_test_start: HookChain = ()
    on_test_end: HookChain = ()
    on_test_epoch_start: HookChain = ()
    on_test_epoch_end: HookChain = ()
    on_test_batch_start: HookChain = ()
    on_test_batch_end: HookChain = ()
    on_predict_start: HookChain = ()
    on_predict_end: HookChain = ()
    on_predict_epoch_start: HookChain = ()
    on_predict_epoch_end: HookChain = ()
    on_predict_batch_start: HookChain = ()
    on_predict_batch_end: HookChain = ()
    on_save_checkpoint: HookChain = ()
    on_load_checkpoint: HookChain = ()
    on_exception: HookChain = ()


REMOVED = {
    "training_step_end": "merge the outputs at the end of training_step",
    "validation_step_end": "merge the outputs at the end of validation_step",
    "test_step_end": "merge the outputs at the end of test_step",
    "training_epoch_end": "keep what you need in training_step and use on_train_epoch_end",
    "validation_epoch_end": "keep what you need in validation_step and use on_validation_epoch_end",
    "test_epoch_end": "keep what you need in test_step and use on_test_epoch_end",
    "on_epoch_start": "use on_train_epoch_start",
    "on_epoch_end": "use on_train_epoch_end",
    "on_batch_start": "use on_train_batch_start",
    "on_batch_end": "use on_train_batch_end",
    "on_pretrain_routine_start": "use on_fit_start",
    "on_pretrain_routine_end": "use on_fit_start",
    "on_init_start": "use the constructor",
    "on_init_end": "use setup",
    "on_keyboard_interrupt": "use on_exception, or read trainer.interrupted",
}
"""Methods that Lightning called once, and does not call any more: what to do instead."""


def resolve_hooks(
    trainer: Trainer, module: Module, callbacks: Iterable[Callback], plugins: PluginSet, profiler: Profiler | None
) -> tuple[Hooks, Hooks]:
    """The hooks of a run.

    Returns:
        Two sets: those that fire first (plugins, callbacks, module), and those of callbacks that run last.
    """
    callbacks = list(callbacks)
    owners: tuple[Callback | Module, ...] = (*callbacks, module)
    for owner in owners:
        check_spelling(owner, trainer.runtime.strategy.step_hooks)
    first, last = Hooks(), Hooks()
    for name in (field.name for field in fields(Hooks)):
        chain = _plugin_hooks(name, trainer, module, plugins)
        chain += _callback_hooks(name, trainer, module, (c for c in callbacks if not c.runs_last))
        if hasattr(ModuleHooks, name) and overrides(module, name, Module):
            chain.append((f"{type(module).__name__}.{name}", accepting(getattr(module, name), _arity(name))))
        setattr(first, name, _finished(chain, profiler))
        late = _callback_hooks(name, trainer, module, (c for c in callbacks if c.runs_last))
        setattr(last, name, _finished(late, profiler))
    return first, last


def _plugin_hooks(name: str, trainer: Trainer, module: Module, plugins: PluginSet) -> list[tuple[str, Hook]]:
    arguments = hook_arguments(name)

    def positional(function: Hook) -> Hook:
        def call(*values: Any) -> Any:
            return function(trainer=trainer, module=module, **dict(zip(arguments, values, strict=False)))

        return call

    return [(f"plugin.{name}", positional(function)) for function in plugins.hook_functions(name)]


def _callback_hooks(name: str, trainer: Trainer, module: Module, callbacks: Iterable[Callback]) -> list[tuple[str, Hook]]:
    acting = [callback for callback in callbacks if overrides(callback, name, Callback)]
    return [
        (f"{type(c).__name__}.{name}", partial(accepting(getattr(c, name), _arity(name) + 2), trainer, module)) for c in acting
    ]


def _finished(chain: list[tuple[str, Hook]], profiler: Profiler | None) -> HookChain:
    return tuple(hook if profiler is None else profiler.wrap(action, hook) for action, hook in chain)


def hook_arguments(name: str) -> list[str]:
    """The arguments of a hook after ``trainer`` and ``module``, as :mod:`fulmen.hookspecs` declares them."""
    return list(inspect.signature(getattr(hookspecs, name)).parameters)[2:]


def _arity(name: str) -> int:
    return len(hook_arguments(name))


def overrides(owner: object, name: str, base: type) -> bool:
    """Whether ``owner`` has a method of its own in place of the one of ``base``."""
    return name in vars(owner) or getattr(type(owner), name, None) is not getattr(base, name)


def accepting(function: Hook, count: int) -> Hook:
    """``function``, callable with ``count`` positional arguments even where it declares fewer: the last are dropped."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature takes what it is given
        return function
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return function
    taken = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return function if taken >= count else lambda *values: function(*values[:taken])


def check_spelling(owner: Module | Callback, called: Iterable[str] = ()) -> None:
    """Refuse methods that look like hooks and would never be called; those in ``called`` are.

    Raises:
        ModuleError: ``owner`` has a method that Lightning used to call.
    """
    known = {name for name in dir(Callback) + dir(Module) if name.startswith("on_")}
    for name in dir(type(owner)):
        if name in REMOVED and name not in called:
            raise ModuleError(f"{type(owner).__name__}.{name} would never be called: {REMOVED[name]}")
        if name.startswith("on_") and name not in known and (guess := did_you_mean(name, known)):
            warn("hook-spelling", f"{type(owner).__name__}.{name} is no hook and is never called{guess}")


def fire(first: HookChain, last: HookChain = ()) -> None:
    """Call the hooks of a moment."""
    for hook in (*first, *last):
        hook()
