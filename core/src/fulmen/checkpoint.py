"""A run <-> one dictionary of plain data: everything needed to go on as if it had never stopped.

The keys::

    format, fulmen_version      of this file
    state_dict                  of the module
    epoch, global_step          for people; the position is in ``loops``
    loops                       {"fit_loop": position, open accumulation window, sums of unfinished epoch metrics}
    optimizer_states            one per optimizer, in the order of configure_optimizers
    lr_schedulers               one per scheduler, likewise
    callbacks                   {state_key: state}
    precision                   a gradient scale, where there is one
    hyper_parameters, hparams_name; datamodule_hyper_parameters, datamodule_hparams_name
    <name of the data module>   its state, where it has one
    loggers                     one per logger, in order: {"class", "state"}
    rng                         random states of the host and of the device
    data                        {phase: one position per loader}
    ranks                       rng, data and what is unfinished in ``loops``, of every rank, where there are several
    run                         {"id", "module", "options", "plugins", "stop_reason", "inexact"}

``on_save_checkpoint`` hooks may add others. A checkpoint of weights only has neither optimizers, schedulers, callbacks,
``loops`` nor anything after ``hyper_parameters``.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from fulmen.contracts.callback import Callback, Checkpoint
from fulmen.contracts.hyperparameters import plain
from fulmen.contracts.logger import Logger, call_loggers
from fulmen.contracts.module import load_weights
from fulmen.durable import remove_leftovers
from fulmen.errors import CheckpointError, ConfigurationError, listing, warn
from fulmen.gathering import gathering_parts
from fulmen.likeness import check_like, restoring
from fulmen.plugins import version
from fulmen.progress import LOGGED, Progress
from fulmen.rank_state import of_all_ranks, own_part, own_state, own_unfinished, position_in, restore_gathered, unfinished
from fulmen.rng import seed_everything, set_random_state
from fulmen.state import Run
from fulmen.storage import check_plain, newest_checkpoint, read_checkpoint, write_checkpoint

FORMAT = 1
_FIT_KEYS = ("optimizer_states", "lr_schedulers", "loops")
_OWN: dict[str, Any] = {"rng": {"python": (), "torch": torch.empty(0)}, "data": {}}
_WEIGHTS: dict[str, Any] = {
    "format": 0, "epoch": 0, "global_step": 0, "state_dict": {}, "hyper_parameters": {}, "hparams_name": "",
    "datamodule_hyper_parameters": {}, "datamodule_hparams_name": "", "callbacks": {},
}  # fmt: skip
_POSITION: dict[str, Any] = {
    "progress": Progress().state_dict(), "accumulate_grad_batches": 0, "stepped": False, "window": {}, "gradients": {},
    "metrics": {"published": {}, "epoch": []},
}  # fmt: skip
_TRAINING: dict[str, Any] = {
    **_OWN, "callbacks": {}, "precision": {}, "optimizer_states": [{"state": {}, "param_groups": [{}]}], "lr_schedulers": [{}],
    "loops": {"fit_loop": _POSITION}, "loggers": [{"class": "", "state": {}}], "run": {"id": "", "module": ""},
}  # fmt: skip
"""What a checkpoint looks like that ``fit`` can continue; with ``ranks``, ``[_OWN]``, where there are several."""


# ---- Save


def collect(run: Run, weights_only: bool = False, alone: bool = False) -> dict[str, Any]:
    """The checkpoint of a run as it stands. The same call on every rank.

    Args:
        run: The run.
        weights_only: Only what is needed to use or test the module.
        alone: Whether the other ranks are not asked: they may not come this far.
    """
    module, datamodule, progress = run.module, run.datamodule, run.progress
    checkpoint: dict[str, Any] = {
        "format": FORMAT,
        "fulmen_version": version(),
        "epoch": progress.epoch,
        "global_step": progress.step,
        "state_dict": run.runtime.strategy.module_state(module),
        **_hyperparameters(module, "hparams_name", "hyper_parameters"),
    }
    if datamodule is not None:
        checkpoint.update(_hyperparameters(datamodule, "datamodule_hparams_name", "datamodule_hyper_parameters"))
        if state := datamodule.state_dict():
            checkpoint[type(datamodule).__qualname__] = state
    if not weights_only:
        checkpoint.update(training_state(run, alone))
    for hook in (*run.hooks.on_save_checkpoint, *run.late.on_save_checkpoint):
        hook(checkpoint)
    return run.runtime.strategy.portable(checkpoint)


def save(run: Run, path: str | os.PathLike[str], weights_only: bool = False) -> None:
    """Write a checkpoint of a run: rank 0 does it, and every rank returns, or raises, when it is done.

    Raises:
        CheckpointError: It cannot be written, or holds more than plain data.
    """
    checkpoint, failure = collect(run, weights_only), None
    if run.runtime.is_global_zero:
        try:
            write_checkpoint(checkpoint, path)
        except CheckpointError as error:
            if run.runtime.world_size == 1:
                raise
            failure = str(error)
    failure = run.runtime.broadcast(failure)
    if failure is not None:
        raise CheckpointError(failure)


def training_state(run: Run, alone: bool = False) -> dict[str, Any]:
    """What a checkpoint holds beyond the module and its data module. The same call on every rank, unless ``alone``."""
    if run.carried is not None:
        return run.carried
    strategy, progress = run.runtime.strategy, run.progress
    run.metrics.drain(wait=True)  # loggers say where their record ends: everything sent must have arrived
    rest, ranks = own_unfinished(run), run.runtime.world_size
    alone = alone and ranks > 1
    position: dict[str, Any] = {
        "alone_of": ranks if alone else 0,
        "accumulate_grad_batches": run.accumulate,
        "stepped": run.stepped,
        "callbacks": _names(run),
        "validation_requested": run.validation_requested if run.began is None else run.began["is_due"],
        **({"gradients": {}, **rest["unfinished"]} if alone else unfinished(run)),
    }
    inside = position["inside_batch"] = _is_inside_batch(run)
    if inside and run.active:  # on an exception there is no later moment
        warn(
            "save-in-batch",
            f"saved while batch {run.batch_idx} of epoch {progress.epoch} is trained on: a resumed run trains on it from its "
            "beginning, with other random numbers than those that were drawn for it. Save in on_train_batch_end or later",
        )
    own = {**own_state(run, inside), **rest}
    return {
        "loops": {"fit_loop": position},
        "optimizer_states": [strategy.optimizer_state(optimizer) for optimizer in run.optimizers],
        "lr_schedulers": [config.scheduler.state_dict() for config in run.schedulers],
        "callbacks": {callback.state_key: state for callback in run.callbacks if (state := callback.state_dict())},
        "precision": run.runtime.precision.state_dict(),
        "loggers": [{"class": type(logger).__qualname__, "state": _logger_state(logger)} for logger in run.loggers],
        "rng": own["rng"],
        "data": own["data"],
        **({} if alone else of_all_ranks(run, own)),
        "run": {
            "id": run.run_id,
            "module": type(run.module).__qualname__,
            "options": run.options.to_json(),
            "plugins": run.runtime.plugins.effective(),
            "stop_reason": run.stop_reason,
            "inexact": [*run.inexact, *([saved_alone(ranks)] if alone else [])],
        },
    }


def saved_alone(ranks: int) -> str:
    """Why a resume is not exact where rank 0 could not ask the others."""
    return (
        f"the checkpoint was saved by rank 0 alone when {ranks} ranks failed: what the others had of their own (random "
        "numbers, sums of the epoch's metrics, open gradients) is not in it"
    )


def _is_inside_batch(run: Run) -> bool:
    """Whether a batch has been taken and not been done with: something failed, or saves in the middle of it."""
    progress = run.progress
    begun = progress.batch > 0 or (progress.settled == LOGGED and not progress.fired)
    return run.stage == "fit" and run.phase == "train" and begun and run.batch_idx == progress.batch


def _names(run: Run) -> list[str]:
    return [type(callback).__qualname__ for callback in run.callbacks]


def _logger_state(logger: Logger) -> dict[str, Any]:
    """Its state; empty, with a warning, where it fails and is not required."""
    found: list[dict[str, Any]] = [{}]
    call_loggers([logger], lambda each: found.append(each.state_dict()))
    return found[-1]


def _hyperparameters(owner: Any, name_key: str, key: str) -> dict[str, Any]:
    if not owner.hparams:
        return {}
    return {name_key: owner.hparams_name or "kwargs", key: plain(dict(owner.hparams))}


def check_savable(run: Run) -> None:
    """Find out before training, not at the first save, whether hyper-parameters and states can be saved.

    Raises:
        CheckpointError: They cannot; the message names the key.
        ConfigurationError: Two callbacks would use the same key.
    """
    if any(isinstance(callback, Checkpoint) for callback in run.callbacks):
        check_plain(_hyperparameters(run.module, "hparams_name", "hyper_parameters"))
        if run.datamodule is not None:
            check_plain(_hyperparameters(run.datamodule, "datamodule_hparams_name", "datamodule_hyper_parameters"))
    keys = [callback.state_key for callback in run.callbacks if callback.state_dict()]
    for key in {key for key in keys if keys.count(key) > 1}:
        raise ConfigurationError(
            f"two callbacks keep their state under {key!r}, so one would overwrite the other: "
            "override state_key to tell them apart"
        )


def remove_unfinished(run: Run) -> None:
    """Remove what earlier processes were writing to the folders of this experiment when they were killed."""
    if run.runtime.is_global_zero:
        savers = [callback for callback in run.callbacks if isinstance(callback, Checkpoint)]
        remove_leftovers({folder for callback in savers for folder in callback.folders(run.trainer)})


# ---- Find


def find_checkpoint(ckpt_path: Any, trainer: Any, callbacks: list[Callback], module: str) -> str | None:
    """The path that ``ckpt_path`` stands for.

    Args:
        ckpt_path: A path or URL, ``"last"``, ``"best"``, or ``None``.
        trainer: For the callbacks that are asked.
        callbacks: Those of the trainer.
        module: The class of the module, which the checkpoint must have been made of where it is searched for.

    Raises:
        CheckpointError: There is no best one.
    """
    if ckpt_path is None or str(ckpt_path) not in ("last", "best"):
        return None if ckpt_path is None else str(ckpt_path)
    savers = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    if ckpt_path == "best":
        found = next((callback.best_model_path for callback in savers if callback.best_model_path), None)
        if found is None:
            raise CheckpointError(
                "ckpt_path='best': no callback of this trainer has a best checkpoint; add a ModelCheckpoint with a monitor, "
                "and fit before"
            )
        return found
    folders = [folder for callback in savers for folder in callback.folders(trainer)]
    others = [found for callback in savers for found in callback.elsewhere(trainer)]
    newest = newest_checkpoint(folders, partial(_is_of, module), others)
    if newest is None:
        warn(
            "no-checkpoint", f"ckpt_path='last': there is none of a {module} in {listing(folders)}; starting from the beginning"
        )
    return str(newest) if newest is not None else None


def _is_of(module: str, checkpoint: dict[str, Any]) -> bool:
    """Whether it was made of a module of that class.

    Raises:
        CheckpointError: It was, and cannot be continued.
    """
    run = checkpoint.get("run")
    if not isinstance(run, Mapping) or run.get("module") != module:
        return False
    check_training(checkpoint, "it")
    return True


def check_training(checkpoint: Mapping[str, Any], path: str) -> None:
    """Raise :class:`CheckpointError` where a part is missing, or of another kind than what fulmen writes."""
    check_like(checkpoint, _WEIGHTS, path)
    check_like(checkpoint, _TRAINING, path, complete=True)
    gathered: dict[str, Any] = {"gathered": {}}
    unfinished = {**gathered, **{key: _POSITION[key] for key in ("progress", "window", "gradients", "metrics")}}
    check_like(checkpoint, {"loops": {"fit_loop": gathered}, "ranks": [{**_OWN, "unfinished": unfinished}]}, path)


def read_for(stage: str, path: str) -> dict[str, Any]:
    """Read a checkpoint for a stage.

    Raises:
        CheckpointError: It cannot be read, is of a newer fulmen or another library, or lacks what the stage needs.
    """
    checkpoint = read_checkpoint(path)
    if "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is no checkpoint of a module: it has no 'state_dict', but {listing(checkpoint)}")
    check_like(checkpoint, _WEIGHTS, path)
    if checkpoint.get("format", FORMAT) > FORMAT:
        raise CheckpointError(
            f"{path} has format {checkpoint['format']}, and this fulmen reads formats up to {FORMAT}: update fulmen "
            f"(it was written by version {checkpoint.get('fulmen_version')})"
        )
    if stage != "fit":
        return checkpoint
    missing = [key for key in _FIT_KEYS if key not in checkpoint]
    if "format" not in checkpoint and "pytorch-lightning_version" in checkpoint:
        raise CheckpointError(
            f"{path} was written by PyTorch Lightning {checkpoint['pytorch-lightning_version']}, and a fit continues only what "
            "fulmen wrote; take its weights: Module.load_from_checkpoint(path)"
        )
    if missing:
        raise CheckpointError(
            f"{path} cannot be continued: it has no {listing(missing)}, so it holds weights only; take them with "
            "Module.load_from_checkpoint(path) and start a new fit"
        )
    check_training(checkpoint, path)
    return checkpoint


# ---- Restore


def apply(run: Run, checkpoint: dict[str, Any], path: str) -> None:
    """Put the state in a checkpoint into a run that is set up.

    Random states and positions in the data follow when training starts.

    Raises:
        CheckpointError: It does not fit the module, its optimizers or schedulers.
    """
    for hook in (*run.hooks.on_load_checkpoint, *run.late.on_load_checkpoint):
        with restoring(path, "what on_load_checkpoint takes"):
            hook(checkpoint)
    module, strategy = run.module, run.runtime.strategy
    load_weights(
        module, checkpoint["state_dict"], module.strict_loading, path,
        lambda state, strict: strategy.load_module_state(module, state, strict),
    )  # fmt: skip
    if run.datamodule is not None and type(run.datamodule).__qualname__ in checkpoint:
        key = type(run.datamodule).__qualname__
        with restoring(path, key):
            run.datamodule.load_state_dict(checkpoint[key])
    _apply_callbacks(run, checkpoint.get("callbacks", {}), path)
    if run.stage == "fit":
        _apply_training(run, checkpoint, path)


def _apply_callbacks(run: Run, states: Mapping[str, Any], path: str) -> None:
    by_key = {callback.state_key: callback for callback in run.callbacks}
    for key, state in states.items():
        if key in by_key:
            check_like(state, by_key[key].state_dict(), path, f"callbacks.{key}")
            with restoring(path, f"callbacks.{key}"):
                by_key[key].load_state_dict(state)
    lost = [key for key in states if key not in by_key]
    if lost and run.stage == "fit":
        warn("callback-state", f"{path} holds the state of callbacks that this trainer does not have: {listing(lost)}")


def _apply_training(run: Run, checkpoint: dict[str, Any], path: str) -> None:
    with restoring(path, "precision"):
        run.runtime.precision.load_state_dict(checkpoint["precision"])
    _check_count(path, "optimizers", len(run.optimizers), len(checkpoint["optimizer_states"]))
    _check_count(path, "learning-rate schedulers", len(run.schedulers), len(checkpoint["lr_schedulers"]))
    for index, (optimizer, state) in enumerate(zip(run.optimizers, checkpoint["optimizer_states"], strict=True)):
        own = run.runtime.strategy.optimizer_state(optimizer)["param_groups"]
        check_like(state["param_groups"], own, path, f"optimizer_states[{index}].param_groups")
        with restoring(path, f"optimizer_states[{index}]"):
            try:
                run.runtime.strategy.load_optimizer_state(optimizer, state)
            except ValueError as error:
                raise CheckpointError(f"{path} does not fit the optimizer {type(optimizer).__name__}: {error}") from error
    for index, (config, state) in enumerate(zip(run.schedulers, checkpoint["lr_schedulers"], strict=True)):
        check_like(state, config.scheduler.state_dict(), path, f"lr_schedulers[{index}]")
        with restoring(path, f"lr_schedulers[{index}]"):
            config.scheduler.load_state_dict(state)
    for optimizer in run.optimizers:
        optimizer._opt_called = True  # type: ignore[attr-defined]  # it stepped before the checkpoint: schedulers would warn
    with restoring(path, "loops"):
        _apply_position(run, checkpoint)


def _apply_position(run: Run, checkpoint: dict[str, Any]) -> None:
    position = position_in(run, checkpoint)
    run.progress.load_state_dict(position["progress"])
    if position.get("callbacks") != _names(run):  # nobody knows which hooks of the moment were called
        run.progress.forget_calls()
    run.accumulate, run.stepped = position["accumulate_grad_batches"], position["stepped"]
    if checkpoint["run"].get("options", {}).get("accumulate_grad_batches") != run.options.to_json()["accumulate_grad_batches"]:
        run.accumulate = run.options.accumulate_at(run.progress.epoch)
    run.validation_requested = position.get("validation_requested", False)
    run.inexact = restore_gathered(run, checkpoint)
    run.metrics.load_state_dict(position["metrics"], run.device, gathering_parts(run.module))
    run.run_id = checkpoint["run"]["id"]
    gradients = position["gradients"]
    for name, parameter in run.module.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter.device)


def _check_count(path: str, what: str, have: int, saved: int) -> None:
    if have != saved:
        raise CheckpointError(
            f"{path} holds the state of {saved} {what}, and configure_optimizers gives {have}: they must be the same"
        )


def apply_loggers(run: Run, checkpoint: dict[str, Any], path: str) -> None:
    """Let loggers continue their records: before anything is logged, and before anyone asks for their folders."""
    for index, (logger, saved) in enumerate(zip(run.loggers, checkpoint.get("loggers", []), strict=False)):
        if saved["class"] == type(logger).__qualname__ and saved["state"]:
            with restoring(path, f"loggers[{index}]"):
                logger.load_state_dict(saved["state"])


def release_resumed(run: Run) -> None:
    """Free the checkpoint of a run that is over, but for what a save after it still needs: where nobody went on from it."""
    if run.resumed is not None:
        window = position_in(run, run.resumed)["window"]
        run.resumed = {"data": own_part(run, run.resumed, "data"), "loops": {"fit_loop": {"window": window}}}


def in_batches_of_now(window: dict[str, Any], ratio: float) -> dict[str, Any]:
    """An open accumulation window where other batches go on with it: ``ratio`` of them for each of before."""
    if ratio == 1 or not window["position"]:
        return window
    counts = {name: max(1, round(window[name] * ratio)) for name in ("position", "window", "counted") if window[name]}
    return {**window, **counts}


def finish_resuming(run: Run) -> None:
    """The last part of a resume, when nothing stands between it and the next batch: open windows and random states."""
    checkpoint = run.resumed
    if checkpoint is None:
        return
    window = position_in(run, checkpoint)["window"]
    if run.step is not None and window:
        with restoring(run.resumed_from, "loops"):
            run.step.load_state_dict(in_batches_of_now(window, run.loaders["train"].ratio))
    rank, ranks = run.runtime.global_rank, checkpoint.get("ranks") or [checkpoint]
    states = ranks[min(rank, len(ranks) - 1)]["rng"]
    with restoring(run.resumed_from, "rng"):
        set_random_state(states)
        run.runtime.accelerator.set_random_state(states["device"])
    if rank >= len(ranks):  # a rank that was not there draws numbers of its own
        seed_everything(zlib.crc32(states["torch"].numpy().tobytes(), rank))
