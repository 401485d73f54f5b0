"""Several devices, which the processor plays: programs in processes of their own, because a failure there ends the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from fulmen.testing import Regression, quiet

JOB = Path(__file__).parent / "jobs" / "several.py"
on_processor = pytest.mark.skipif(os.environ.get("PJRT_DEVICE") != "CPU", reason="needs PJRT_DEVICE=CPU")
pytestmark = [pytest.mark.hardware("xla"), on_processor]


def run(devices, fails=-1, window=1, start_method="spawn"):
    env = {**os.environ, "CPU_NUM_DEVICES": str(devices), "XLA_THREAD_POOL_SIZE": "16"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-W", "ignore", str(JOB), str(fails), str(window), start_method]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    told = sorted((json.loads(text) for kind, _, text in lines if kind == "told"), key=lambda each: each["rank"])
    return done, told, [json.loads(text) for kind, _, text in lines if kind == "parent"]


class Alone(Regression):
    def training_step(self, batch, batch_idx):
        return mse_loss(self(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))


def data(batch_size):
    x = torch.randn(48, 3, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size)


@pytest.mark.parametrize(("window", "start_method"), [(1, "spawn"), (2, "fork")])
def test_two_devices_learn_what_one_learns_from_batches_twice_as_large(window, start_method):
    done, told, (parent,) = run(2, window=window, start_method=start_method)
    assert done.returncode == 0, done.stderr
    assert {each["imported_again"] for each in told} == {start_method == "spawn"}
    assert [each["rank"] for each in told] == [0, 1] and {each["world_size"] for each in told} == {2}
    for each in told:
        assert each["reduced"] == {"sum": 3.0, "mean": 1.5, "min": 1.0, "max": 2.0}
        assert (each["gathered"], each["agreed"]) == ([[1.0], [2.0]], 3)
        assert each["broadcast"] == {"from": 1, "text": "éé"}
    assert told[0]["weights"] == told[1]["weights"] == parent["weights"]

    alone = Alone()
    alone.net[2] = nn.Identity()
    trainer = quiet(accelerator="cpu", max_epochs=2, accumulate_grad_batches=window)
    trainer.fit(alone, data(8))
    assert parent["step"] == trainer.global_step
    torch.testing.assert_close(torch.tensor(parent["weights"]), alone.net[0].weight.detach().flatten(), rtol=1e-3, atol=1e-3)
    expected = trainer.test(alone, data(8), verbose=False)[0]
    assert parent["test"] == pytest.approx(expected, rel=1e-2)


def test_the_error_of_one_rank_ends_all_and_is_raised():
    done, told, parent = run(2, fails=1)
    assert (done.returncode, told, parent) == (1, [], [])
    assert "ValueError: rank 1 fails, as asked" in done.stderr
