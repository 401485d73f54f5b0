"""Two ranks whose weights are averaged or pruned, cut and resumed: ``python buffers_job.py FOLDER KIND MOMENT EVERY``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from ranks_job import Apart, OnRankZero, Shared, Told, told
from resume_job import MODULES, Setup, check_union, digest, go_on, train, uncut
from torch import nn

from fulmen import Callback, Trainer
from fulmen.callbacks import ModelPruning


class Normed(Shared):
    """With batch normalisation: its statistics are of each rank's own batches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))


class Attentive(Shared):
    """With attention, which uses a layer without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)

    def loss(self, batch: Any) -> Any:
        index, x, y = batch
        return super().loss((index, self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0], y))


IN_NO_FILE = (".callbacks.EMA", ".callbacks.Stochastic", *(f"('epoch', {epoch}).weights" for epoch in range(6)))
"""Of rank 1: buffers are those of rank 0 from the next batch on, and those of averages from the next validation on."""
MODULES["normed"], MODULES["attentive"] = Normed, Attentive


class ToldAll(Told):
    """Also what the module is in the end, on each rank."""

    runs_last = True

    def on_fit_end(self, trainer: Trainer, module: Any) -> None:
        super().on_fit_end(trainer, module)
        torch.save(digest(module.state_dict()), self.folder / f"end.{trainer.global_rank}")


def pruning(kind: str) -> tuple[Callback, ...]:
    options = {"parameter_names": ["weight"], "use_lottery_ticket_hypothesis": kind == "resampled", "amount": 0.2}
    return (ModelPruning("random_unstructured", resample_parameters=kind == "resampled", **options),)


def ends(folder: Path) -> list[Any]:
    return [torch.load(folder / f"end.{rank}") for rank in range(2)]


def main(folder: Path, kind: str, moment: str, every: int) -> None:
    averaging = kind if kind in ("swa", "ema") else None
    module, epochs, place = "normed" if averaging else "attentive", 6 if kind == "swa" else 3, folder / "run"
    setup = Setup(
        averaging, module, accumulate=1, epochs=epochs, batch_size=4, precision=None, val_check_interval=1.0,
        options={"strategy": "ddp_fork", "devices": 2},
    )  # fmt: skip
    more = lambda keeper: (Apart(), ToldAll(folder, keeper), *(() if averaging else pruning(kind)))  # noqa: E731
    keeper = OnRankZero((moment,), True, place, every)
    idle = keeper.idle()
    whole, _ = told(folder, 2, uncut(setup, place, idle, *more(idle)))
    end = ends(folder)
    before, cuts = told(folder, 2, train(setup, place, extra=(keeper, *more(keeper))))
    assert whole[0].witness.events != whole[1].witness.events, "ranks have the same data: this shows little"
    assert end[0] == end[1], "the ranks end with different modules"
    for name, target, counts in cuts:
        after, _ = told(folder, 2, go_on(setup, place, target, keeper, *more(idle)))
        for rank in range(2):
            after[rank].witness.resumed_at = counts[rank]
            check_union(whole[rank], before[rank], after[rank], f"{name}, rank {rank}", IN_NO_FILE if rank else ())
        assert ends(folder) == end, name
    print(f"{len(cuts)} cuts, {len(whole[0].witness.events)} moments on each of 2 ranks")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
