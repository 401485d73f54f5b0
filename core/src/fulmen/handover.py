"""How a run that took place in another process reaches the objects of the caller: as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, zip_longest
from typing import Any

import torch

from fulmen.batches import move_to_device
from fulmen.checkpoint import training_state
from fulmen.contracts.launcher import Launcher
from fulmen.contracts.logger import Logger, call_loggers
from fulmen.contracts.module import load_weights
from fulmen.progress import Progress
from fulmen.state import Run

FLAGS = ("status", "stop_reason", "stop_requested", "stop_now", "validates", "accumulate", "run_id", "log_dir")


def leave_records(loggers: Iterable[Logger], launcher: Launcher | None) -> None:
    """End the records of this process where another one is about to continue them: a file or run has one who writes to it."""
    if launcher is not None and not launcher.takes_part:
        call_loggers(loggers, lambda logger: logger.finalize("interrupted"))


def earlier_run(run: Run) -> tuple[Progress, str]:
    """What the next run of a trainer takes from the one before."""
    return run.progress, run.run_id


def predictions_of_all(run: Run, outputs: list[list[Any]]) -> list[list[Any]]:
    """The predictions of all ranks on every rank, on the host, one list for each loader.

    The batches of the ranks come in turn, which is their order in the data where each rank was dealt every n-th. The same
    call on every rank.
    """
    if run.runtime.world_size == 1:
        return outputs
    own = move_to_device(outputs, torch.device("cpu"))
    ranks = [run.runtime.broadcast(own, rank) for rank in range(run.runtime.world_size)]
    missing = object()
    together = (chain.from_iterable(zip_longest(*parts, fillvalue=missing)) for parts in zip(*ranks, strict=True))
    return [[output for output in loader if output is not missing] for loader in together]


def ending_of(run: Run) -> dict[str, Any]:
    """A finished run as plain data on the host. The same call on every rank."""
    module, datamodule, metrics = run.module, run.datamodule, run.metrics
    ending = {
        "state_dict": run.runtime.strategy.module_state(module),
        "datamodule": {} if datamodule is None else datamodule.state_dict(),
        "training": training_state(run),
        "flags": {name: getattr(run, name) for name in FLAGS},
        "progress": run.progress,
        "logged": dict(metrics.logged),
        "bar": metrics.showing(wait=True),
    }
    return move_to_device(ending, torch.device("cpu"))  # type: ignore[no-any-return]


def take_over(run: Run, ending: dict[str, Any]) -> None:
    """Bring ``run``, which is new, and the objects of the caller to where another process left its copies of them."""
    module, training = run.module, ending["training"]
    module.configure_model()  # layers that are made there
    load_weights(module, ending["state_dict"], strict=True, source="the process that trained")
    if run.datamodule is not None and ending["datamodule"]:
        run.datamodule.load_state_dict(ending["datamodule"])
    for callback in run.callbacks:
        if callback.state_key in training["callbacks"]:
            callback.load_state_dict(training["callbacks"][callback.state_key])
    for logger, saved in zip(run.loggers, training["loggers"], strict=True):
        if saved["state"]:
            logger.load_state_dict(saved["state"])
    run.progress = ending["progress"]
    run.metrics.load_state_dict(training["loops"]["fit_loop"]["metrics"], torch.device("cpu"), {})
    run.metrics.show(ending["logged"], ending["bar"])
    for name, value in ending["flags"].items():
        setattr(run, name, value)
    run.carried = training
