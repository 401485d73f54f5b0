"""The loops, top to bottom: ``fit`` -> ``train_epoch`` -> the step -> the user's ``training_step``; and ``evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from time import monotonic
from typing import Any, NamedTuple

import torch

from fulmen.checkpoint import finish_resuming
from fulmen.contracts.module_hooks import ModuleHooks
from fulmen.data import last_batch, loaders_of, on_device, reload_loaders
from fulmen.errors import ModuleError
from fulmen.hooks import HookChain, Hooks, overrides
from fulmen.optimizers import advance_schedulers
from fulmen.progress import BATCH, EPOCH_ENDED, EPOCH_ENDING, LOGGED, PLATEAU, SCHEDULED, VALIDATED
from fulmen.rank_state import standing
from fulmen.readback import Readback
from fulmen.reporting import announce, report_nothing_left, report_resume, report_unsent
from fulmen.rng import isolated
from fulmen.schedule import plan_validation, validation_is_due
from fulmen.state import Phase, Run
from fulmen.step import make_step, user_step


def fit(run: Run) -> None:
    """Train until a maximum is reached or someone asks to stop. Everything is set up, and a resumed state is applied."""
    before = run.progress.batches
    fire(run.hooks.on_fit_start, run.late.on_fit_start)
    announce(run)
    if run.validates and run.resumed is None:
        sanity_check(run)
    run.agree()
    trains = bool(loaders_of(run, "train").total) and not run.must_stop()
    if trains:
        begin_training(run)
    finish_resuming(run)  # whatever the hooks so far drew was drawn before
    if run.progress.settled == EPOCH_ENDED:
        leave_epoch(run)
    while trains and not run.must_stop():
        train_epoch(run)
    if trains:
        report_unsent(run)
        fire(run.hooks.on_train_end, run.late.on_train_end)
    report_nothing_left(run, before)
    fire(run.hooks.on_fit_end, run.late.on_fit_end)


def begin_training(run: Run) -> None:
    """Make the step, agree on what an epoch is, and tell everyone."""
    run.step, run.phase = make_step(run), "train"
    agree_on_length(run)
    plan_validation(run)
    finish_resuming(run)
    report_resume(run)
    fire(run.hooks.on_train_start, run.late.on_train_start)


def train_epoch(run: Run) -> None:
    """Train on the batches of an epoch, from where the run stands, and validate in between."""
    begin_epoch(run)
    progress, metrics, clock, step = run.progress, run.metrics, run.clock, run.step
    starts = run.hooks.on_train_batch_start + run.late.on_train_batch_start
    ends, late_ends, distributed = run.hooks.on_train_batch_end, run.late.on_train_batch_end, run.runtime.world_size > 1
    log_every, max_steps, num_batches = run.options.log_every_n_steps, run.options.num_steps, run.loaders["train"].total
    validate_every, across_epochs = run.validation.inside(progress.epoch), run.validation.epochs is None
    skipped = stopping = False
    metrics.enter("train", batches=True)
    for batch in training_batches(run):
        metrics.batch = batch
        batch_idx = run.batch_idx = progress.batch
        if starts and skips_epoch(starts, batch, batch_idx):
            skipped = True
            break
        outputs = step(batch, batch_idx)
        progress.batch += 1
        progress.batches += 1
        progress.settled = BATCH
        for hook in ends:
            hook(outputs, batch, batch_idx)
        if run.stepped and log_every and not progress.updates % log_every:
            metrics.flush_step(progress.updates - 1)
        progress.settled = LOGGED
        for hook in late_ends:
            hook(outputs, batch, batch_idx)
        if clock.next_due is not None and not distributed and monotonic() >= clock.next_due:
            clock.ring(monotonic())
        if validate_every and not (progress.batches if across_epochs else progress.batch) % validate_every:
            run.validation_requested = True
        if run.validation_requested and progress.batch < num_batches:
            validate(run)
        if distributed:
            run.agree()  # synchronises the ranks, not the device
        if (run.stop_requested or progress.step >= max_steps) and run.must_stop():
            stopping = progress.batch < num_batches or run.stop_now
            break
    end_epoch(run, stopping, skipped)


def training_batches(run: Run) -> Iterator[Any]:
    """The batches of the epoch on their device, from where the run stands; measured where there is a profiler."""
    loaders = run.loaders["train"]
    batches = loaders.iterate(run.progress.epoch, run.progress.batch)
    if run.runtime.world_size > 1:
        run.runtime.strategy.own_batches = float("inf")
        batches = (while_any if run.runtime.strategy.uneven in ("pad", "join") else while_all)(run, batches)
    batches = on_device(run, batches, loaders)
    return batches if run.profiler is None else run.profiler.iterate(loaders.name, batches)


def agree_on_length(run: Run) -> None:
    """Let all ranks expect the same number of batches: windows, schedules and validations follow from it."""
    loaders, strategy = run.loaders["train"], run.runtime.strategy
    if run.runtime.world_size == 1:
        return
    total = float(loaders.total)
    low, high = strategy.all_reduce(torch.tensor([-total, total], device=run.device), "max").tolist()  # synchronises
    if -low != high:
        agreed = high if strategy.uneven in ("pad", "join") or high == float("inf") else -low
        loaders.num_batches = [agreed if agreed == float("inf") else int(agreed)]
    loaders.is_sure = not strategy.agree(int(None in loaders.lengths))


def while_all(run: Run, batches: Iterator[Any]) -> Iterator[Any]:
    """``batches`` until one rank has no more: a step with fewer ranks would wait for them for ever.

    Where ranks do not know their number of batches, they agree before each, through the host.
    """
    if run.loaders["train"].is_sure:
        yield from batches
        return
    ended = object()
    while not run.runtime.strategy.agree(int((batch := next(batches, ended)) is ended)):
        yield batch


def while_any(run: Run, batches: Iterator[Any]) -> Iterator[Any]:
    """``batches`` until no rank has more: where this rank has none, its last one comes again."""
    loaders, strategy, done = run.loaders["train"], run.runtime.strategy, run.progress.batch
    ended = last = object()
    for index in count(done) if loaders.total == float("inf") else range(done, int(loaders.total)):
        batch = next(batches, ended)
        if not loaders.is_sure and not strategy.agree(int(batch is not ended)):
            return
        if batch is ended:
            strategy.own_batches = min(strategy.own_batches, index)
            batch = last_batch(run) if last is ended else last
        last = batch
        yield batch


def begin_epoch(run: Run) -> None:
    """Start an epoch, or do the rest of what follows the batch at which a run was cut."""
    progress, metrics, every = run.progress, run.metrics, run.options.log_every_n_steps
    metrics.epoch = progress.epoch
    if progress.batch == 0 and not progress.is_done(LOGGED):
        run.accumulate = run.options.accumulate_at(progress.epoch)
        if reload_loaders(run):
            agree_on_length(run)
        metrics.enter("train", batches=False)
        progress.once(LOGGED, run.hooks.on_train_epoch_start + run.late.on_train_epoch_start)
        return
    if not progress.is_done(LOGGED) and run.stepped and every and not progress.updates % every:
        metrics.enter("train", batches=True)
        metrics.flush_step(progress.updates - 1)
    if 0 < progress.batch < run.loaders["train"].total and validation_is_due(run):
        validate(run)


def end_epoch(run: Run, stopping: bool, skipped: bool) -> None:
    """Settle what follows the batches of an epoch. One that is cut short keeps its position, to be continued."""
    progress, metrics = run.progress, run.metrics
    if stopping:
        fire(run.hooks.on_train_stop, run.late.on_train_stop)
        if run.stop_now:
            return metrics.leave()
        run.began = standing(run, is_due=run.validation_requested)  # what follows, a resumed run does when the epoch ends
    elif not progress.batch and not skipped:
        raise ModuleError(
            f"train_dataloader gave no batch in epoch {progress.epoch}: it is empty, or an iterator that can be used only once"
        )
    else:
        run.step.finish_window()
        progress.once(SCHEDULED, [lambda: advance_schedulers(run, "epoch", plateau=False)])
    if not skipped and validation_is_due(run, at_end=True, stopping=stopping):
        validate(run)
    if stopping:
        run.began = run.began or standing(run, is_due=False)
    metrics.position = progress.batches
    metrics.reduce("train", batches=True, keep=stopping)
    if not stopping:
        progress.once(PLATEAU, [lambda: advance_schedulers(run, "epoch", plateau=True)])
    metrics.enter("train", batches=False)
    (fire if stopping else partial(progress.once, EPOCH_ENDING))(run.hooks.on_train_epoch_end)
    metrics.reduce("train", batches=False, keep=stopping)
    metrics.send(max(0, progress.updates - 1))
    metrics.leave()
    if stopping:
        fire(run.late.on_train_epoch_end)
    else:
        leave_epoch(run)
    run.agree()


def leave_epoch(run: Run) -> None:
    """Count the epoch, call its last hooks, and stand before the next."""
    run.progress.once(EPOCH_ENDED, [run.progress.end_epoch, *run.late.on_train_epoch_end])
    run.progress.settled = BATCH


def skips_epoch(chain: HookChain, batch: Any, batch_idx: int) -> bool:
    """Call the hooks before a batch; whether one of them asked to skip the rest of the epoch."""
    answers = [hook(batch, batch_idx) for hook in chain]
    return any(answer == -1 for answer in answers)


def fire(first: HookChain, last: HookChain = ()) -> None:
    """Call the hooks of a moment."""
    for hook in (*first, *last):
        hook()


# ---- Evaluation


def sanity_check(run: Run) -> None:
    """Validate on a few batches before training, to find errors early. Leaves no trace: no metrics, no random numbers."""
    steps = run.options.num_sanity_val_steps
    if steps == 0 or run.options.fast_dev_run:
        return
    fire(run.hooks.on_sanity_check_start, run.late.on_sanity_check_start)
    with isolated():
        evaluate(run, "sanity_check", limit=None if steps == -1 else steps)
    fire(run.hooks.on_sanity_check_end, run.late.on_sanity_check_end)


def validate(run: Run) -> None:
    """Validate inside a training. One that is cut is repeated, but not what follows when its result is known."""
    run.validation_requested = False
    if not run.step.position:  # gradients of an open accumulation window are still needed
        run.module.on_validation_model_zero_grad()
    with evaluation_mode(run, "validate"):
        if run.progress.settled < VALIDATED:
            run.began = run.began or standing(run, is_due=True)
            evaluation_epoch(run, "validate")
            run.began = None if run.began["is_due"] else run.began
        run.progress.once(VALIDATED, run.hooks.on_validation_end + run.late.on_validation_end)
    run.metrics.enter("train", batches=True)


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
