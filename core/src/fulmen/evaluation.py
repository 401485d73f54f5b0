"""Validate, test and predict: :func:`evaluate` -> the user's ``validation_step``, ``test_step`` or ``predict_step``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, NamedTuple

import torch

from fulmen.contracts.module_hooks import ModuleHooks
from fulmen.data import loaders_of, on_device
from fulmen.hooks import HookChain, Hooks, fire, overrides
from fulmen.readback import Readback
from fulmen.rng import isolated
from fulmen.state import Phase, Run
from fulmen.step import user_step


def evaluate(run: Run, phase: Phase, limit: int | None = None, keep_outputs: bool = False) -> tuple[list[Any], list[Any]]:
    """One pass over the loaders of a phase.

    Args:
        run: The run.
        phase: ``"validate"``, ``"test"``, ``"predict"`` or ``"sanity_check"``.
        limit: Batches of each loader; ``None``: as the options say.
        keep_outputs: Whether to keep what the steps return.

    Returns:
        The metrics, one mapping per loader, and the outputs, one list per loader.
    """
    if run.stage != "fit":
        run.metrics.epoch = run.progress.epoch
    with evaluation_mode(run, phase):
        results, outputs = evaluation_epoch(run, phase, limit, keep_outputs)
        fire(evaluation_hooks(run.hooks, phase).end, evaluation_hooks(run.late, phase).end)
    return results, outputs


def evaluation_epoch(
    run: Run, phase: Phase, limit: int | None = None, keep_outputs: bool = False
) -> tuple[list[Any], list[Any]]:
    """The same in evaluation mode, but for the last hooks: what they find is complete."""
    first, last, metrics = evaluation_hooks(run.hooks, phase), evaluation_hooks(run.late, phase), run.metrics
    if phase != "predict":
        metrics.enter(phase, batches=False)
    fire(first.start, last.start)
    fire(first.epoch_start, last.epoch_start)
    outputs = evaluate_batches(run, phase, limit, keep_outputs, (first, last))
    if phase != "predict":
        metrics.enter(phase, batches=False)
    fire(first.epoch_end, last.epoch_end)
    results = publish(run, phase)
    metrics.reset_objects()
    metrics.leave()
    return results, outputs


def evaluate_batches(
    run: Run, phase: Phase, limit: int | None, keep: bool, hooks: tuple[EvaluationHooks, ...]
) -> list[list[Any]]:
    """Run the step of a phase on every batch of every loader."""
    metrics, clock, loaders = run.metrics, run.clock, loaders_of(run, phase)
    several = len(loaders.num_batches) > 1
    step, alone = evaluation_step(run, phase, several), run.runtime.world_size == 1  # ranks may have different counts
    starts = hooks[0].batch_start + hooks[1].batch_start
    ends = hooks[0].batch_end + hooks[1].batch_end
    outputs: list[list[Any]] = []
    for index, batches in loaders.each(run.progress.epoch, limit):
        outputs.append([])
        if phase != "predict":
            metrics.enter(phase, batches=True, dataloader_idx=index if several else None)
        moved = on_device(run, batches, loaders, index)
        timed = moved if run.profiler is None else run.profiler.iterate(loaders.name, moved)
        for batch_idx, batch in enumerate(timed):
            metrics.batch = batch
            for hook in starts:
                hook(batch, batch_idx, index)
            output = step(batch, batch_idx, index)
            for hook in ends:
                hook(output, batch, batch_idx, index)
            if metrics.has_step_values and phase != "sanity_check":
                metrics.flush_step(run.progress.evaluated)
            run.progress.evaluated += phase != "sanity_check"
            if keep:
                outputs[-1].append(output)
            if clock.next_due is not None and alone and monotonic() >= clock.next_due:
                clock.ring(monotonic())
    return outputs


def evaluation_step(run: Run, phase: Phase, several: bool) -> Any:
    """The user's step of a phase, taking ``(batch, batch_idx, dataloader_idx)``.

    Raises:
        ModuleError: There are several loaders, and it does not take ``dataloader_idx``.
    """
    return user_step(
        run, {"sanity_check": "validation_step", "validate": "validation_step"}.get(phase, f"{phase}_step"), 3, several
    )


def publish(run: Run, phase: Phase) -> list[dict[str, float]]:
    """Publish and log the metrics of an evaluation; one mapping per loader, with what was logged around them in each."""
    metrics = run.metrics
    if phase in ("predict", "sanity_check"):
        metrics.discard(phase)
        return []
    metrics.position = run.progress.batches
    per_loader = metrics.reduce(phase, batches=True) or [{}]
    around = {key: value for found in metrics.reduce(phase, batches=False) for key, value in found.items()}
    metrics.send(max(0, run.progress.updates - 1))
    if run.stage == "fit":
        return []
    return [Readback({**found, **around}).result() for found in per_loader]  # waits for the device: the caller gets numbers


@contextmanager
def evaluation_mode(run: Run, phase: Phase) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule is in exactly the mode it was in."""
    module, before = run.module, run.phase
    modes = [(part, part.training) for part in module.modules()]
    name = {"sanity_check": "validation", "validate": "validation"}.get(phase, phase)
    inference = run.options.inference_mode and run.stage != "fit" and run.runtime.accelerator.supports_inference_mode
    run.runtime.strategy.prepare_evaluation(module)
    run.phase = phase
    try:
        with torch.inference_mode() if inference else torch.no_grad():
            getattr(module, f"on_{name}_model_eval")()
            yield
    finally:
        run.phase = before
        restore = f"on_{name}_model_train"
        if hasattr(ModuleHooks, restore) and overrides(module, restore, ModuleHooks):
            getattr(module, restore)()
        else:
            for part, training in modes:
                part.training = training


class EvaluationHooks(NamedTuple):
    """The hooks of one phase."""

    start: HookChain
    end: HookChain
    epoch_start: HookChain
    epoch_end: HookChain
    batch_start: HookChain
    batch_end: HookChain


def evaluation_hooks(hooks: Hooks, phase: Phase) -> EvaluationHooks:
    """The hooks of a phase by what they have in common."""
    if phase == "test":
        return EvaluationHooks(
            hooks.on_test_start, hooks.on_test_end, hooks.on_test_epoch_start, hooks.on_test_epoch_end,
            hooks.on_test_batch_start, hooks.on_test_batch_end,
        )  # fmt: skip
    if phase == "predict":
        return EvaluationHooks(
            hooks.on_predict_start, hooks.on_predict_end, hooks.on_predict_epoch_start, hooks.on_predict_epoch_end,
            hooks.on_predict_batch_start, hooks.on_predict_batch_end,
        )  # fmt: skip
    return EvaluationHooks(
        hooks.on_validation_start, hooks.on_validation_end, hooks.on_validation_epoch_start, hooks.on_validation_epoch_end,
        hooks.on_validation_batch_start, hooks.on_validation_batch_end,
    )  # fmt: skip


def sanity_check(run: Run) -> None:
    """Validate on a few batches before training, to find errors early. Leaves no trace: no metrics, no random numbers."""
    steps = run.options.num_sanity_val_steps
    if steps == 0 or run.options.fast_dev_run:
        return
    fire(run.hooks.on_sanity_check_start, run.late.on_sanity_check_start)
    with isolated():
        evaluate(run, "sanity_check", limit=None if steps == -1 else steps)
    fire(run.hooks.on_sanity_check_end, run.late.on_sanity_check_end)
