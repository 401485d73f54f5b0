"""What each rank has of its own in a checkpoint, so that a training on as many ranks goes on bit for bit.

That is random states, positions in the data, and what is unfinished: the open accumulation window with its gradients, the
sums of the epoch's metrics, and counts, since ranks may evaluate different numbers of batches. The position in ``loops`` has
the same in a form from which any number of ranks can go on: means and totals over all ranks, rounded in another order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fulmen.gathering import gathered, gathering_parts, put_back
from fulmen.rng import random_state

if TYPE_CHECKING:
    from fulmen.state import Run

OWN_GRADIENTS_BYTES = 2**30
"""Up to this size of all ranks' open gradients together, a checkpoint holds those of each; above it, their mean alone."""


def own_state(run: Run, inside: bool = False) -> dict[str, Any]:
    """Random states, and positions in the data; ``inside``: in the middle of a batch."""
    own, began = _own_now(run, inside), run.began
    if began is not None:
        own = {"rng": began["rng"], "data": {"train": own["data"]["train"], **began["data"]}}
    return own


def _own_now(run: Run, inside: bool = False) -> dict[str, Any]:
    kept = {} if run.resumed is None else own_part(run, run.resumed, "data")  # of loaders that nobody has asked for yet
    done = run.progress.state_dict()["batch"]
    return {
        "rng": {**random_state(), "device": run.runtime.accelerator.random_state()},
        "data": {**kept, **{phase: loaders.state_dict(done, inside) for phase, loaders in run.loaders.items()}},
    }


def own_part(run: Run, checkpoint: Mapping[str, Any], key: str) -> Any:
    """The part of this rank; that of rank 0 where the checkpoint was made by another number of ranks."""
    ranks = checkpoint.get("ranks", [])
    return (ranks[run.runtime.global_rank] if len(ranks) == run.runtime.world_size else checkpoint).get(key, {})


def position_in(run: Run, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Where a training stands, with what is unfinished on this rank."""
    return {**checkpoint["loops"]["fit_loop"], **own_part(run, checkpoint, "unfinished")}


def restore_gathered(run: Run, checkpoint: Mapping[str, Any]) -> list[str]:
    """Let metrics hold what they held on this rank; why the resume is not exact where they cannot."""
    ranks = [rank.get("unfinished", {}) for rank in checkpoint.get("ranks", [])] or [checkpoint["loops"]["fit_loop"]]
    if len(ranks) == run.runtime.world_size:
        own = ranks[run.runtime.global_rank].get("gathered", {})
        lost = put_back(run.module, own, run.device, run.resumed_from)
    else:
        lost = sorted({name for rank in ranks for name, held in rank.get("gathered", {}).items() if held.get("updates", 1)})
    return [
        f"{name} holds values of before (update, compute, reset) no more: the metrics or the number of ranks are others"
        for name in lost
    ]


def lacks_own_gradients(run: Run, checkpoint: Mapping[str, Any]) -> bool:
    """Whether a window goes on with the mean of the ranks' gradients: theirs were too large to keep."""
    saved = checkpoint["loops"]["fit_loop"]["gradients"] and len(checkpoint.get("ranks", [])) == run.runtime.world_size
    return bool(saved) and "gradients" not in own_part(run, checkpoint, "unfinished")


def of_all_ranks(run: Run, own: dict[str, Any]) -> dict[str, Any]:
    """What each rank has of its own; nothing in one process. Rank 0 writes it, and the others keep no gradients of others."""
    count, found = run.runtime.world_size, []
    for rank in range(count if count > 1 else 0):
        found.append(run.runtime.broadcast(own, rank))
        if not run.runtime.is_global_zero:
            found[-1].get("unfinished", {}).pop("gradients", None)
    return {"ranks": found} if found else {}


# ---- What is unfinished


def unfinished(run: Run) -> dict[str, Any]:
    """The open accumulation window, its gradients and the sums of an unfinished epoch, for any number of ranks."""
    averaged = run.runtime.world_size > 1
    gradients = _mean_gradients(run) if averaged else _gradients(run)
    return {"window": _window(run, averaged), "gradients": gradients, **_counts(run)}


def own_unfinished(run: Run) -> dict[str, Any]:
    """The same of this rank alone; without gradients where those of all ranks are large. Nothing in one process."""
    if run.runtime.world_size == 1:
        return {}
    found, gradients = {"window": _window(run), **_counts(run, shared=False)}, _gradients(run)
    size = sum(parameter.numel() * parameter.element_size() for parameter in run.module.parameters())  # alike on all ranks
    if size * run.runtime.world_size <= OWN_GRADIENTS_BYTES:
        found["gradients"] = {name: gradient.cpu() for name, gradient in gradients.items()}
    return {"unfinished": found}


def _counts(run: Run, shared: bool = True) -> dict[str, Any]:
    """How far the training is, and what was measured."""
    found = {
        "progress": run.progress.state_dict(),
        "metrics": run.metrics.state_dict(gathering_parts(run.module), shared),
        "gathered": {} if shared and run.runtime.world_size > 1 else gathered(run.module),
    }
    return found if run.began is None else {key: {**value, **run.began[key]} for key, value in found.items()}


def _gradients(run: Run) -> dict[str, torch.Tensor]:
    """Those that wait for the rest of their accumulation window; nothing between steps."""
    if not _window(run).get("position"):
        return {}
    return {name: p.grad for name, p in run.module.named_parameters() if p.grad is not None}


def _mean_gradients(run: Run) -> dict[str, torch.Tensor]:
    """The mean over all ranks: with it on every rank, the window ends with the same sum. Some may have none for a parameter."""
    if not _window(run).get("position"):
        return {}
    named, found = list(run.module.named_parameters()), {}
    has = torch.tensor([float(parameter.grad is not None) for _, parameter in named], device=run.device)
    for (name, parameter), exists in zip(named, run.runtime.strategy.all_reduce(has, "max").tolist(), strict=True):
        if exists:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            mean = run.runtime.strategy.all_reduce(own.to_dense() if own.is_sparse else own, "mean")
            found[name] = mean.to_sparse(own.sparse_dim()) if own.is_sparse else mean
    return found


def _window(run: Run, averaged: bool = False) -> dict[str, Any]:
    """The state of the window that is open; ``averaged``: with the mean of the ranks' weights."""
    if run.step is None:  # nothing was trained: as it was, where the run was resumed
        return {} if run.resumed is None else dict(position_in(run, run.resumed)["window"])
    state: dict[str, Any] = run.step.state_dict()
    if averaged and state.get("weight") is not None:
        weight = torch.as_tensor(state["weight"], dtype=torch.float32, device=run.device)
        state["weight"] = run.runtime.strategy.all_reduce(weight, "mean")
    return state


def standing(run: Run, is_due: bool) -> dict[str, Any]:
    """What a validation changes, before it begins. Costs some microseconds, and a copy of what metrics hold.

    A checkpoint that is saved in it goes back to that, and the validation is repeated: what a user's module gathers in it
    otherwise is in no checkpoint. ``is_due``: whether a resumed run has to validate here, and not only one that is stopped.
    """
    state = _own_now(run)
    return {
        "rng": state["rng"],
        "data": {phase: positions for phase, positions in state["data"].items() if phase != "train"},
        "progress": {"evaluated": run.progress.evaluated, "settled": run.progress.settled, "fired": 0},
        "metrics": {**run.metrics.shown(), **({} if is_due else {"recorded": run.progress.evaluated})},
        "gathered": gathered(run.module),
        "is_due": is_due,
    }
