"""Who acts when: recorded runs against the annotated loop, and hooks against their contracts."""

from __future__ import annotations

import inspect
import re

import pytest

from fulmen import Callback, FulmenWarning, Module, ModuleError, hookimpl, hookspecs
from fulmen.builtin.single_device import SingleDevice
from fulmen.contracts.module_hooks import ModuleHooks
from fulmen.hooks import hook_arguments
from fulmen.testing import Regression, Validated, batches, quiet

HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "fulmen_spec") and name.startswith("on_")]


def recording(base, label, log, arguments):
    """A class that notes each hook it is called with."""

    def method(name):
        def hook(self, *given):
            assert len(given) >= arguments
            log.append(f"{label}.{name}")

        return hook

    own = [name for name in HOOKS if base is Callback or hasattr(ModuleHooks, name)]
    return type(label, (base,), {name: method(name) for name in own})


def traced(stage="fit", options=(), **loaders):
    log: list[str] = []
    names = HOOKS

    class Plugin:
        pass

    for name in names:
        parameters = ", ".join(["trainer", "module", *hook_arguments(name)])
        scope: dict = {"log": log}
        exec(f"def {name}({parameters}): log.append('plugin.{name}')", scope)
        setattr(Plugin, name, staticmethod(hookimpl(scope[name])))
    early = recording(Callback, "callback", log, 2)()
    late = recording(Callback, "late", log, 2)()
    late.runs_last = True
    module = recording(Validated, "module", log, 0)()
    trainer = quiet(max_epochs=1, callbacks=[late, early], plugins=[Plugin()], **dict(options))
    getattr(trainer, stage)(module, **loaders)
    return log


def of(log, label):
    return [entry.partition(".")[2] for entry in log if entry.startswith(f"{label}.")]


def expected_fit(num_batches=2, num_val=1):
    """The annotated loop, unrolled by reading its marks."""
    val = ["on_validation_start", "on_validation_epoch_start"]
    val += ["on_validation_batch_start", "on_validation_batch_end"] * num_val
    val += ["on_validation_epoch_end", "on_validation_end"]
    batch = ["on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"]
    batch += ["on_before_optimizer_step", "on_train_batch_end"]
    loop = ["on_fit_start", "on_sanity_check_start", *val, "on_sanity_check_end", "on_train_start", "on_train_epoch_start"]
    return [*loop, *batch * num_batches, *val, "on_train_epoch_end", "on_train_end", "on_fit_end"]


def test_fit_calls_every_hook_in_the_order_of_the_annotated_loop():
    log = traced(train_dataloaders=batches(2), val_dataloaders=batches(1))
    assert of(log, "callback") == expected_fit()
    assert of(log, "plugin") == expected_fit()
    marks = re.findall(r"# <(on_\w+)>", hookspecs.__doc__)
    first_fit = [name for name in dict.fromkeys(of(log, "callback")) if "validation" not in name]
    annotated = [name for name in dict.fromkeys(marks) if name in first_fit]
    assert first_fit == annotated


def test_plugins_come_first_then_callbacks_then_the_module_then_those_that_run_last():
    log = traced(train_dataloaders=batches(2), val_dataloaders=batches(1))
    at = [entry.partition(".")[0] for entry in log if entry.endswith(".on_train_epoch_end")]
    assert at == ["plugin", "callback", "module", "late"]
    assert [entry for entry in of(log, "module") if not entry.startswith("on_sanity")] == [
        entry for entry in expected_fit() if not entry.startswith("on_sanity")
    ]


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluations_call_their_hooks_in_order(stage):
    name = {"validate": "validation"}.get(stage, stage)
    log = traced(stage, dataloaders=batches(2))
    steps = [f"on_{name}_batch_start", f"on_{name}_batch_end"] * 2
    order = [f"on_{name}_start", f"on_{name}_epoch_start", *steps, f"on_{name}_epoch_end", f"on_{name}_end"]
    assert of(log, "callback") == of(log, "module") == of(log, "plugin") == order


def test_accumulation_updates_at_the_end_of_each_window():
    log = traced(train_dataloaders=batches(3), options={"accumulate_grad_batches": 2, "limit_val_batches": 0})
    found = [entry for entry in of(log, "callback") if "grad" in entry or "optimizer" in entry or "backward" in entry]
    both = ["on_before_backward", "on_after_backward"]
    window = ["on_before_zero_grad", *both, *both, "on_before_optimizer_step"]
    assert found == [*window, "on_before_zero_grad", *both, "on_before_optimizer_step"]


def test_minus_one_skips_the_rest_of_the_epoch_and_not_the_training():
    class Skip(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            return -1 if batch_idx == 2 else None

    trainer = quiet(max_epochs=3, callbacks=Skip())
    trainer.fit(Regression(), batches(5))
    assert (trainer.current_epoch, trainer.global_step) == (3, 6)


def test_a_fit_without_overridden_hooks_calls_none():
    trainer = quiet(max_epochs=1)
    trainer.fit(Regression(), batches(2))
    assert not any(getattr(trainer._run.hooks, name) for name in HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_the_same_in_all_its_contracts(name):
    spec = getattr(hookspecs, name)
    described = inspect.getdoc(spec)
    assert described
    callback = getattr(Callback, name)
    assert list(inspect.signature(callback).parameters)[1:] == list(inspect.signature(spec).parameters)
    assert inspect.getdoc(callback) == described
    if hasattr(ModuleHooks, name):
        method = getattr(ModuleHooks, name)
        assert list(inspect.signature(method).parameters)[1:] == hook_arguments(name)
        assert inspect.getdoc(method)


def test_every_hook_has_its_mark_in_the_annotated_loop():
    text = hookspecs.__doc__
    validation = {name.replace(kind, "validation") for name in HOOKS for kind in ("test", "predict") if f"on_{kind}" in name}
    for name in {name for name in HOOKS if "on_test" not in name and "on_predict" not in name} | validation:
        assert name in text, name


def test_a_method_that_lightning_removed_says_what_to_do():
    class Old(Regression):
        def training_epoch_end(self, outputs):
            pass

    with pytest.raises(ModuleError) as caught:
        quiet(max_epochs=1).fit(Old(), batches())
    assert str(caught.value) == (
        "Old.training_epoch_end would never be called: keep what you need in training_step and use on_train_epoch_end"
    )


def test_a_method_that_the_strategy_calls_itself_is_no_mistake():
    class Merging(SingleDevice):
        step_hooks = ("training_step_end",)

    class Merges(Regression):
        def training_step_end(self, outputs):
            pass

    trainer = quiet(max_epochs=1, strategy=Merging())
    trainer.fit(Merges(), batches(1))
    assert trainer.global_step == 1


def test_a_misspelled_hook_is_a_warning():
    class Typo(Callback):
        def on_train_epoch_ends(self, trainer, module):
            pass

    message = r"\[hook-spelling\] Typo.on_train_epoch_ends is no hook and is never called; did you mean 'on_train_epoch_end'\?"
    with pytest.warns(FulmenWarning, match=message):
        quiet(max_epochs=1, callbacks=Typo()).fit(Regression(), batches(1))


def test_hooks_may_declare_fewer_arguments():
    seen = []

    class Short(Callback):
        def on_train_batch_end(self, trainer, module):
            seen.append(trainer.global_step)

    class ShortModule(Regression):
        def on_train_batch_start(self, batch):
            seen.append(len(batch))

    quiet(max_epochs=1, callbacks=Short()).fit(ShortModule(), batches(2))
    assert seen == [2, 1, 2, 2]


def test_a_module_has_no_hook_that_callbacks_lack():
    own = {name for name in vars(ModuleHooks) if name.startswith("on_")}
    only_modules = {name for name in own if name.endswith(("_model_eval", "_model_train", "_model_zero_grad"))}
    assert own - only_modules <= set(HOOKS)
    assert issubclass(Module, ModuleHooks)
