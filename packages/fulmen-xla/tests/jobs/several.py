"""Trains on several devices that the processor plays, and prints what every rank has: a program as users start it.

On the processor, torch_xla runs one thread per device in one process, and does not claim to support collectives there: two
threads that compile a graph at once never meet. So they compile in turns here. TPUs need none of this.
"""

from __future__ import annotations

import json
import sys
import threading

import torch
from fulmen_xla import XLAStrategy
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback
from fulmen.testing import Regression, quiet


def compile_in_turns():
    import torch_xla

    library, lock = torch_xla._XLAC, threading.Lock()
    step, several, wait = library._xla_step_marker, library._xla_sync_multi, library._xla_wait_device_ops

    def own():
        return library._xla_real_devices([library._xla_get_default_device()])

    def step_in_turn(*args, wait_after=False, **kwargs):
        after = kwargs.pop("wait", wait_after)
        wait(devices=own())
        with lock:
            step(*args, wait=False, **kwargs)
        if after:
            wait(devices=own())

    def sync_in_turn(tensors, devices=(), wait_after=True, sync_xla_data=True, **kwargs):
        after = kwargs.pop("wait", wait_after)
        wait(devices=own())
        with lock:
            several(tensors, list(devices), wait=False, sync_xla_data=sync_xla_data, **kwargs)
        if after:
            wait(devices=own())

    library._xla_step_marker, library._xla_sync_multi = step_in_turn, sync_in_turn


class Job(Regression):
    def __init__(self, fails=-1):
        super().__init__()
        self.net[2] = nn.Identity()
        self.fails = fails

    def training_step(self, batch, batch_idx):
        if batch_idx == 2 and self.global_rank == self.fails:
            raise ValueError(f"rank {self.fails} fails, as asked")
        return mse_loss(self(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("test_loss", mse_loss(self(batch[0]), batch[1]), sync_dist=True)


class Tell(Callback):
    def on_fit_end(self, trainer, module):
        strategy, rank = trainer.runtime.strategy, trainer.global_rank
        own = torch.tensor([rank + 1.0])
        told = {
            "rank": rank,
            "imported_again": sys.modules["__main__"].__name__ == "__mp_main__",
            "world_size": trainer.world_size,
            "reduced": {op: float(strategy.all_reduce(own, op)) for op in ("sum", "mean", "min", "max")},
            "gathered": strategy.all_gather(own).tolist(),
            "broadcast": strategy.broadcast({"from": rank, "text": "é" * (rank + 1)}, source=1),
            "agreed": strategy.agree(1 << rank),
            "weights": [round(value, 5) for value in module.net[0].weight.flatten().tolist()],
        }
        strategy.barrier("told")
        sys.stdout.write(f"told {json.dumps(told)}\n")
        sys.stdout.flush()


def data(batch_size):
    x = torch.randn(48, 3, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size)


compile_in_turns()  # also in the process that torch_xla starts, which imports this file

if __name__ == "__main__":
    module = Job(fails=int(sys.argv[1]))
    trainer = quiet(
        accelerator="xla",
        strategy=XLAStrategy(start_method=sys.argv[3]),
        max_epochs=2,
        accumulate_grad_batches=int(sys.argv[2]),
        callbacks=Tell(),
    )
    trainer.fit(module, data(4))
    result = trainer.test(module, data(4), verbose=False)
    weights = [round(value, 5) for value in module.net[0].weight.flatten().tolist()]
    sys.stdout.write(f"parent {json.dumps({'weights': weights, 'step': trainer.global_step, 'test': result[0]})}\n")
