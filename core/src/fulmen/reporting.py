"""What a run tells people and loggers about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fulmen.checkpoint import saved_alone
from fulmen.contracts.callback import Checkpoint
from fulmen.contracts.hyperparameters import plain
from fulmen.errors import ConfigurationError, listing, warn
from fulmen.grade import obstacles
from fulmen.plugins import version
from fulmen.rank_state import OWN_GRADIENTS_BYTES, lacks_own_gradients
from fulmen.state import Run


def announce(run: Run) -> None:
    """Send options, hyper-parameters and the module to the loggers, once, before the first metrics.

    Raises:
        ConfigurationError: Module and data module have a hyper-parameter of the same name with different values.
    """
    owners = [owner for owner in (run.module, run.datamodule) if owner is not None and owner.logs_hyperparameters]
    params: dict[str, Any] = {}
    for owner in owners:
        for name, value in plain(dict(owner.hparams)).items():
            if name in params and params[name] is not value and params[name] != value:
                raise ConfigurationError(
                    f"the module and the data module both save the hyper-parameter {name!r}, as {params[name]!r} and "
                    f"{value!r}; rename one, or leave it out: save_hyperparameters(ignore=...)"
                )
            params[name] = value
    config = {
        "fulmen": version(),
        "run": run.run_id,
        "options": run.options.to_json(),
        "plugins": run.runtime.plugins.effective(),
    }
    run.log_rows(lambda logger: logger.log_config(config))
    if params:
        run.log_rows(lambda logger: logger.log_hyperparams(params))
    run.log_rows(lambda logger: logger.log_graph(run.module))


def report_unsent(run: Run) -> None:
    """Say so where a training was too short for a single logging step, and values were logged in vain."""
    every, names = run.options.log_every_n_steps, run.metrics.never_sent
    if run.loggers and every and names and run.progress.updates < every and not run.options.fast_dev_run:
        warn(
            "log-interval",
            f"{listing(sorted(names))} never reached the loggers: the training had {run.progress.updates} steps, and "
            f"log_every_n_steps={every}; lower it, or log with on_epoch=True",
        )


def report_resume(run: Run) -> None:
    """Say on rank 0 whether a resume is exact, and how to get that: when it happens, and before where something is saved."""
    run.inexact += obstacles(run)
    if run.resumed is not None and run.resumed["loops"]["fit_loop"].get("inside_batch"):
        run.inexact.append("the checkpoint was saved inside a batch, which is trained on again, with other random numbers")
    alone_of = run.resumed["loops"]["fit_loop"].get("alone_of", 0) if run.resumed is not None else 0
    if alone_of:
        run.inexact.append(saved_alone(alone_of))
    if run.resumed is not None and lacks_own_gradients(run, run.resumed):
        run.inexact.append(
            "the checkpoint was saved inside an accumulation window, with the mean of the ranks' gradients, because all of "
            f"them are more than {OWN_GRADIENTS_BYTES / 2**30:g} GiB: their sum is rounded in another order"
        )
    reasons = "".join(f"\n- {reason}" for reason in run.inexact)
    if reasons and run.resumed is None and any(isinstance(callback, Checkpoint) for callback in run.callbacks):
        run.trainer.print(f"a resume of this training will not be exact:{reasons}")
    if run.resumed is None or not run.runtime.is_global_zero:
        return
    before, now = alone_of or len(run.resumed.get("ranks") or [run.resumed]), run.runtime.world_size
    loaders = run.loaders["train"]
    if before != now:
        text = "random numbers that are drawn in it (dropout, augmentation) are others than they would have been"
        if loaders.is_indexed:
            text = f"every sample is used once in the same order; {text}"
        else:
            text = f"{loaders.name} keeps its own position, of which the one of rank 0 is used for all; {text}"
        warn("resume-ranks", f"a training of {before} ranks goes on with {now}: {text}. For the same numbers use {before}")
    if loaders.ratio != 1:
        sizes = f"{loaders.ratio:g} batches are now what one was before"
        warn(
            "resume-batch-size",
            f"{sizes}: samples keep their order, and losses and the number of steps are others, unless batch_size times the "
            "number of ranks times accumulate_grad_batches is what it was",
        )
    exact = before == now and loaders.ratio == 1 and not reasons
    run.trainer.print("the resume is exact" if exact else f"the resume is not exact{':' if reasons else ''}{reasons}")


def report_nothing_left(run: Run, before: int) -> None:
    """Say so where a training was to be continued and had come to its end already.

    Args:
        run: The run.
        before: Batches that were done when it started.
    """
    if run.resumed is not None and run.progress.batches == before and run.stop_reason and not run.stop_now:
        run.trainer.print(f"nothing left to train: {run.stop_reason}")


def table(results: Sequence[Mapping[str, float]], title: str) -> str:
    """The metrics of an evaluation, a column per loader.

    >>> print(table([{"test_acc": 0.5}], "test"))
    test      loader 0
    --------  --------
    test_acc  0.5
    """
    names = list(dict.fromkeys(name for result in results for name in result))
    rows = [[title, *(f"loader {index}" for index in range(len(results)))]]
    rows += [[name, *(f"{result[name]:.6g}" if name in result else "" for result in results)] for name in names]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
