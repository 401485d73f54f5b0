"""Set a run up, and tear it down whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from fulmen.checkpoint import apply, apply_loggers, check_savable, find_checkpoint, read_for, release_resumed, remove_unfinished
from fulmen.contracts.callback import RUNNING
from fulmen.contracts.logger import Status
from fulmen.contracts.module import Module
from fulmen.data import has_loader
from fulmen.errors import ModuleError, warn
from fulmen.hooks import overrides, resolve_hooks
from fulmen.optimizers import OptimizerHandle, configured_optimizers
from fulmen.signals import signals_stop
from fulmen.state import Run

STEP_METHODS = {"fit": "training_step", "validate": "validation_step", "test": "test_step", "predict": "predict_step"}


@contextmanager
def running(run: Run, ckpt_path: Any) -> Iterator[None]:
    """Around the loop: everything is set up inside, and put back afterwards.

    Args:
        run: A new run.
        ckpt_path: The checkpoint to start from, as :meth:`fulmen.Trainer.fit` takes it.
    """
    check_contract(run)
    with ExitStack() as stack:
        run.status = "running"
        stack.callback(RUNNING.reset, RUNNING.set(run.module))
        stack.callback(run.runtime.close)
        run.runtime.open()
        stack.enter_context(backend_switches(run))
        if run.stage == "fit":
            stack.enter_context(signals_stop(run))
        stack.push(partial(tear_down, run))
        try:
            set_up(run, ckpt_path)
            yield
            run.writer.finish()
            run.metrics.drain(wait=True)
            run.status = "interrupted" if run.stop_now else "finished"
        except BaseException as error:
            run.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            report_failure(run, error)
            raise


def check_contract(run: Run) -> None:
    """Find out before anything is set up whether the module and its data have what the stage needs.

    Raises:
        ModuleError: They have not.
    """
    module, stage, name = run.module, run.stage, type(run.module).__name__
    step = STEP_METHODS[stage]
    if stage in ("fit", "validate", "test") and not overrides(module, step, Module):
        raise ModuleError(f"{name} has no {step}, which {stage} needs: def {step}(self, batch, batch_idx)")
    if stage == "fit" and not overrides(module, "configure_optimizers", Module):
        raise ModuleError(f"{name} has no configure_optimizers, which fit needs: return an optimizer, or None to train without")
    phase = "train" if stage == "fit" else stage
    if not has_loader(run, phase):
        argument = "train_dataloaders" if stage == "fit" else "dataloaders"
        method = {"train": "train", "validate": "val"}.get(phase, phase)
        raise ModuleError(
            f"{stage} has no data: pass {argument}= or datamodule=, or define {method}_dataloader in {name} or its data module"
        )
    if stage == "fit":
        run.validates = _validates(run)


def _validates(run: Run) -> bool:
    has_step, has_data = overrides(run.module, "validation_step", Module), has_loader(run, "validate")
    if run.options.limit("validate") == 0:
        return False
    if has_data and not has_step:
        warn(
            "no-validation-step",
            f"there is a val_dataloader, and {type(run.module).__name__} has no validation_step: nothing is validated",
        )
    if has_step and not has_data:
        warn(
            "no-validation-data",
            f"{type(run.module).__name__} has a validation_step, and there is no val_dataloader: nothing is validated",
        )
    return has_step and has_data


def set_up(run: Run, ckpt_path: Any) -> None:
    """Data, hooks, module, optimizers and the state of a checkpoint, in this order."""
    module, datamodule, runtime = run.module, run.datamodule, run.runtime
    run.hooks, run.late = resolve_hooks(run.trainer, module, run.callbacks, runtime.plugins, run.profiler)
    path = find_checkpoint(ckpt_path, run.trainer, run.callbacks, type(module).__qualname__)
    path = runtime.broadcast(path)
    checkpoint = read_for(run.stage, path) if path is not None else None
    if checkpoint is not None and run.stage == "fit":
        run.resumed, run.resumed_from = checkpoint, str(path)
        apply_loggers(run, checkpoint, str(path))
    if runtime.world_size > 1:
        run.log_dir = runtime.broadcast(run.trainer.log_dir)
    owners = [owner for owner in (datamodule, module) if owner is not None]
    if runtime.local_rank == 0:
        for owner in owners:
            owner.prepare_data()
    runtime.barrier("prepare_data")
    if datamodule is not None:
        datamodule.setup(run.stage)
    for callback in run.callbacks:
        callback.setup(run.trainer, module, run.stage)
    module.setup(run.stage)
    module.configure_model()
    runtime.strategy.setup_module(runtime.precision.convert_module(module))
    if run.stage == "fit":
        set_up_optimizers(run)
        check_savable(run)
        remove_unfinished(run)
    if checkpoint is not None:
        apply(run, checkpoint, str(path))
        where = f"continuing from {path}, epoch {run.progress.epoch}, step {run.progress.step}"
        run.trainer.print(where if run.stage == "fit" else f"weights of {path}")
        runtime.barrier("restored")


def set_up_optimizers(run: Run) -> None:
    """Ask the module for its optimizers, which must come after its parameters have their final device and format."""
    optimizers, run.schedulers = configured_optimizers(run.module)
    run.optimizers = run.runtime.strategy.setup_optimizers(optimizers)
    run.optimizer_handles = [OptimizerHandle(optimizer, run) for optimizer in run.optimizers]
    run.module.zero_grad()


def report_failure(run: Run, error: BaseException) -> None:
    """Tell everyone that the run failed. What fails on the way is noted with the error, not raised instead of it."""
    telling = [*run.hooks.on_exception, *run.late.on_exception]
    if run.datamodule is not None:
        telling.append(run.datamodule.on_exception)
    for hook in telling:
        try:
            hook(error)
        except Exception as second:  # noqa: BLE001  whatever a hook raises must not hide the failure
            _note(error, f"on_exception failed too: {type(second).__name__}: {second}")
    try:
        run.metrics.drain(wait=True)
    except Exception as second:  # noqa: BLE001  the device itself may be what failed
        _note(error, f"the last metrics could not be read: {type(second).__name__}: {second}")


def _note(error: BaseException, text: str) -> None:
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(text)


def tear_down(run: Run, kind: Any = None, error: BaseException | None = None, traceback: Any = None) -> None:
    """Undo the set-up, as the exit of a context that ``error`` may have ended.

    Everyone is told, even where one of them fails. The first failure of the run is raised, and the later are noted with it.
    """
    data = [] if run.datamodule is None else [partial(run.datamodule.teardown, run.stage)]
    callbacks = [partial(callback.teardown, run.trainer, run.module, run.stage) for callback in run.callbacks]
    first: BaseException | None = error
    for undo in (
        partial(run.writer.close),
        *data,
        *callbacks,
        partial(run.module.teardown, run.stage),
        partial(_finalize, run),
    ):
        try:
            undo()
        except Exception as failure:  # noqa: BLE001  raised below, or noted with the one before it
            if first is None:
                first = failure
            else:
                _note(first, f"teardown failed too: {type(failure).__name__}: {failure}")
    if first is not None and first is not error:
        raise first


def _finalize(run: Run) -> None:
    status: Status = {"finished": "success", "interrupted": "interrupted"}.get(run.status, "failed")  # type: ignore[assignment]
    run.metrics.leave()
    run.log_rows(lambda logger: logger.finalize(status))
    if run.profiler is not None:
        run.profiler.teardown()
    run.untoggle()
    for loaders in run.loaders.values():
        loaders.close()
    release_resumed(run)
    if run.device.type != "cpu":
        run.module.cpu()  # so that the module can be used, and its device freed


@contextmanager
def backend_switches(run: Run) -> Iterator[None]:
    """Set what is global in PyTorch for the length of a run."""
    options = run.options
    run.runtime.accelerator.configure(deterministic=options.deterministic, benchmark=options.benchmark)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if options.deterministic is not None:
        torch.use_deterministic_algorithms(bool(options.deterministic), warn_only=options.deterministic == "warn")
    try:
        with torch.autograd.set_detect_anomaly(options.detect_anomaly or torch.is_anomaly_enabled()):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
