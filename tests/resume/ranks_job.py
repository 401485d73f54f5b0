"""The standard training on several ranks, cut and resumed: ``python ranks_job.py FOLDER STRATEGY RANKS MOMENT EVERY``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from resume_job import MODULES, Keeper, Result, Setup, Standard, Witness, check_union, go_on, seed, train, uncut

from fulmen import Callback, Trainer


class Shared(Standard):
    """Logs the mean over all ranks: the rates of all follow from it."""

    def log(self, name: str, value: Any, **options: Any) -> None:
        super().log(name, value, **{"sync_dist": True, **options})


MODULES["shared"] = Shared


class Apart(Callback):
    """Every rank draws other random numbers."""

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        seed(5 + trainer.global_rank)


class Told(Callback):
    """What the ranks have witnessed and kept, in files: their memory ends with them."""

    def __init__(self, folder: Path, keeper: Keeper) -> None:
        self.folder, self.keeper = folder, keeper

    def on_fit_end(self, trainer: Trainer, module: Any) -> None:
        witness = next(each for each in trainer.callbacks if isinstance(each, Witness))
        told = {"events": witness.events, "cuts": self.keeper.cuts, "counts": getattr(self.keeper, "counts", [])}
        torch.save(told, self.folder / f"told.{trainer.global_rank}")


class OnRankZero(Keeper):
    """All ranks save together, and one keeps the folder while the others wait. Each counts what it has witnessed by then."""

    def _copy(self, trainer: Trainer, target: Path) -> None:
        witness = next(each for each in trainer.callbacks if isinstance(each, Witness))
        self.counts = [*getattr(self, "counts", []), len(witness.events)]
        if trainer.is_global_zero:
            super()._copy(trainer, target)
        trainer.runtime.barrier("kept")


def told(folder: Path, ranks: int, of_all: Result) -> tuple[list[Result], list[Any]]:
    """What each rank has witnessed, and the cuts that were kept, with what each rank had witnessed by then."""
    records = [torch.load(folder / f"told.{rank}", weights_only=False) for rank in range(ranks)]
    found = [replace(of_all, witness=Witness()) for _ in records]
    for result, record in zip(found, records, strict=True):
        result.witness.events = record["events"]
    counts = zip(*(record["counts"] for record in records), strict=True)
    return found, [(*cut, each) for cut, each in zip(records[0]["cuts"], counts, strict=True)]


def main(folder: Path, strategy: str, ranks: int, moment: str, every: int) -> None:
    options = {"strategy": strategy, "devices": ranks}
    setup, place = Setup(module="shared", averaging="ema", batch_size=1, options=options), folder / "run"
    keeper = OnRankZero((moment,), True, place, every)
    idle = keeper.idle()
    whole, _ = told(folder, ranks, uncut(setup, place, idle, Apart(), Told(folder, idle)))
    before, cuts = told(folder, ranks, train(setup, place, extra=(keeper, Apart(), Told(folder, keeper))))
    assert whole[0].witness.events != whole[1].witness.events, "ranks draw the same numbers: this shows little"
    assert cuts
    for name, target, counts in cuts:
        after, _ = told(folder, ranks, go_on(setup, place, target, keeper, Apart(), Told(folder, idle)))
        for rank in range(ranks):
            after[rank].witness.resumed_at = counts[rank]
            check_union(whole[rank], before[rank], after[rank], f"{name}, rank {rank}")
    print(f"{len(cuts)} cuts, {len(whole[0].witness.events)} moments on each of {ranks} ranks")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
