"""The loop, top to bottom: ``fit`` -> ``train_epoch`` -> the step -> the user's ``training_step``; what is between steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from time import monotonic
from typing import Any

from fulmen.checkpoint import finish_resuming
from fulmen.data import loaders_of, on_device, reload_loaders
from fulmen.errors import ModuleError
from fulmen.evaluation import evaluation_epoch, evaluation_mode, sanity_check
from fulmen.hooks import HookChain, fire
from fulmen.optimizers import advance_schedulers
from fulmen.progress import BATCH, EPOCH_ENDED, EPOCH_ENDING, LOGGED, PLATEAU, SCHEDULED, VALIDATED
from fulmen.rank_state import standing
from fulmen.reporting import announce, report_nothing_left, report_resume, report_unsent
from fulmen.schedule import plan_validation, validation_is_due
from fulmen.state import Run
from fulmen.step import make_step
from fulmen.uneven import agree_on_length, while_all, while_any


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
    if run.progress.settled == EPOCH_ENDED:  # cut between the last hooks of an epoch, which counts already
        run.progress.epoch -= 1
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
    run.metrics.enter("train_start", batches=False)
    fire(run.hooks.on_train_start, run.late.on_train_start)
    if run.resumed is None:
        run.metrics.reduce("train_start", batches=False)
        run.metrics.send(max(0, run.progress.updates - 1))
    run.metrics.discard("train_start")  # of a training that goes on, it is in the record
    run.metrics.leave()


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
        if not progress.is_done(SCHEDULED):  # set when it is done: what fails in it is not saved as done
            advance_schedulers(run, "epoch", plateau=False)
            progress.settled = SCHEDULED
    if not skipped and validation_is_due(run, at_end=True, stopping=stopping):
        validate(run)
    if stopping:
        run.began = run.began or standing(run, is_due=False)
    metrics.position = progress.batches
    metrics.reduce("train", batches=True, keep=stopping)
    if not stopping and not progress.is_done(PLATEAU):
        advance_schedulers(run, "epoch", plateau=True)
        progress.settled = PLATEAU
    metrics.enter("train", batches=False)
    (fire if stopping else partial(progress.once, EPOCH_ENDING))(run.hooks.on_train_epoch_end)
    metrics.reduce("train", batches=False, keep=stopping)
    metrics.reset_objects()
    metrics.send(max(0, progress.updates - 1))
    metrics.leave()
    if stopping:
        fire(run.late.on_train_epoch_end)
    else:
        leave_epoch(run)
    run.agree()


def leave_epoch(run: Run) -> None:
    """Call the last hooks of an epoch, and count it."""
    progress = run.progress
    progress.once(EPOCH_ENDED, run.late.on_train_epoch_end)
    progress.epoch, progress.batch, progress.settled = progress.epoch + 1, 0, BATCH


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


def skips_epoch(chain: HookChain, batch: Any, batch_idx: int) -> bool:
    """Call the hooks before a batch; whether one of them asked to skip the rest of the epoch."""
    answers = [hook(batch, batch_idx) for hook in chain]
    return any(answer == -1 for answer in answers)
