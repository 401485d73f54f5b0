"""The suite for strategies. What needs several processes runs in a program of its own, as users start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen import Strategy
from fulmen.testing.conformance import strategy_job
from fulmen.testing.conformance.measure import Between, DeviceReads, Lines
from fulmen.testing.conformance.suite import Suite, only_if, process_is_left_as_it_was
from fulmen.testing.fakes import FailingModule, Failure
from fulmen.testing.training import Validated, batches, same_weights


class StrategySuite(Suite):
    """Subclass it, give ``name``, :meth:`make` and, for several devices, :attr:`devices` and :attr:`processes`."""

    kind = "strategy"

    accelerator: str = "cpu"
    """The accelerator of these tests."""

    devices: int = 1
    """How many devices it works on in these tests."""

    processes: int = 1
    """How many processes it works with on that many devices."""

    shares_data: bool = True
    """Whether each process sees its own share of the data. Of no meaning for one process."""

    works_in_one_process: bool = True
    """Whether it also works on one device without starting processes, as it must for tests inside pytest."""

    computes_in_double: bool = True
    """Whether the devices have double precision, in which trainings are compared: rounding then hides no fault."""

    tolerance: float = 1e-6
    """How far weights may be from those of one process on the same global batches (relative, and absolute near 0)."""

    timeout_seconds: float = 120.0
    """How long a job of a few steps may take until all of its processes are gone."""

    picklable = False
    """Strategies are made in the process that trains; what they send to new processes is their business."""

    def place(self, part: Any) -> dict[str, Any]:
        """The strategy, on one device."""
        return {"strategy": part, "accelerator": self.accelerator, "devices": 1}

    def job(self, folder: Path, what: str, **more: Any) -> tuple[int, str, dict[int, dict[str, Any]]]:
        """Run a program that trains with the strategy; its exit status, its errors, and what each rank reports."""
        settings = {
            "what": what,
            "strategy": {"name": self.name, **self.arguments},
            "accelerator": self.accelerator,
            "devices": self.devices,
            "options": self.options,
            "double": self.computes_in_double,
            "folder": str(folder),
            **more,
        }
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, strategy_job.__file__, json.dumps(settings)]
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=self.timeout_seconds, check=False
        )
        reports = {int(path.stem): torch.load(path, weights_only=True) for path in sorted(folder.glob("[0-9]*.report"))}
        return done.returncode, done.stdout + done.stderr, reports

    def succeeded(self, folder: Path, what: str, **more: Any) -> dict[int, dict[str, Any]]:
        """The reports of a job that must end well."""
        status, output, reports = self.job(folder, what, **more)
        assert status == 0, output[-4000:]
        assert sorted(reports) == list(range(self.processes)), f"ranks that reported: {sorted(reports)}\n{output[-2000:]}"
        return reports

    # ---- Ranks and collectives

    def test_it_has_the_name_it_is_registered_under(self, tmp_path: Path) -> None:
        """Errors and checkpoints show it."""
        part = self.make(tmp_path)
        assert isinstance(part, Strategy) and part.name == self.name

    def test_ranks_and_collectives(self, tmp_path: Path) -> None:
        """Every rank knows its place; sums, means, extremes, gathering, broadcasting and agreeing give what they promise."""
        n = self.processes
        for rank, report in self.succeeded(tmp_path, "collectives").items():
            assert report["ranks"] == [rank, n], f"rank {rank} reports [rank, size] {report['ranks']}"
            values = torch.arange(1.0, n + 1)
            expected = {"sum": values.sum(), "mean": values.mean(), "min": values.min(), "max": values.max()}
            assert report["reduced"] == {op: float(value) for op, value in expected.items()}
            assert report["gathered"] == [[float(each), 0.0] for each in values]
            assert report["broadcast"] == {"from": 0, "text": "é", "tensor": [0.0]}
            assert report["agreed"] == (1 << n) - 1

    # ---- Training

    @pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.05}], ids=str)
    def test_it_learns_what_one_process_learns(self, tmp_path: Path, options: dict[str, Any]) -> None:
        """The same weights on every rank, and those of one process that sees the same global batches."""
        reports = self.succeeded(tmp_path, "train", options={**self.options, **options})
        weights = [report["state_dict"] for report in reports.values()]
        share = self.processes if self.shares_data else 1
        alone = strategy_job.trained(4 * share, self.computes_in_double, options).state_dict()
        for state in weights:
            assert list(state) == list(alone), "the keys of the module's state differ from those of the module itself"
            for key, value in alone.items():
                assert torch.equal(state[key], weights[0][key]), f"{key} differs between ranks"
                torch.testing.assert_close(state[key], value, rtol=self.tolerance, atol=self.tolerance, msg=None)

    def test_a_training_that_was_cut_and_resumed_equals_one_that_was_not(self, tmp_path: Path) -> None:
        """Bit for bit, from a checkpoint that one process can read."""
        folders = [tmp_path / name for name in ("whole", "cut")]
        for folder in folders:
            folder.mkdir()
        whole = self.succeeded(folders[0], "train")[0]["state_dict"]
        checkpoint = str(folders[1] / "cut.ckpt")
        self.succeeded(folders[1], "cut", checkpoint=checkpoint)
        assert list(torch.load(checkpoint, weights_only=True)["state_dict"]) == list(whole)
        resumed = self.succeeded(folders[1], "resume", checkpoint=checkpoint)[0]["state_dict"]
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items())

    # ---- Failure

    def test_a_rank_that_fails_ends_the_job(self, tmp_path: Path) -> None:
        """All processes end in time, the exit status is not 0, and the first traceback is shown."""
        status, output, _ = self.job(tmp_path, "fail", rank=self.processes - 1)
        assert status != 0
        assert "Failure: batch 2 fails, as asked" in output, f"the error of the rank is not shown:\n{output[-3000:]}"

    # ---- One process

    @only_if("works_in_one_process")
    def test_on_one_device_it_trains_as_without_it(self, tmp_path: Path) -> None:
        """Bit for bit; the process is left as it was, also by a training that fails; teardown may be repeated."""
        with process_is_left_as_it_was():
            ours, theirs = Validated(), Validated()
            part = self.make(tmp_path)
            self.train(part, ours)
            self.train("single_device", theirs)
            assert same_weights(ours, theirs)
            part.teardown()
            with pytest.raises(Failure):
                self.train(self.make(tmp_path), FailingModule(at=3))
            self.train(self.make(tmp_path), max_epochs=1)

    @only_if("works_in_one_process")
    def test_a_step_costs_the_same_after_many_and_never_waits(self, tmp_path: Path) -> None:
        """Lines of Python per step do not grow, and nothing is read from the device."""
        early, late, reads, fewer = Lines(), Lines(), DeviceReads(), DeviceReads()
        data = batches(4) * 111
        options: dict[str, Any] = {"max_epochs": 1, "log_every_n_steps": 0}
        callbacks = [Between(reads, 2, 6), Between(early, 20, 40), Between(late, 420, 440)]
        self.train(self.make(tmp_path), data=data, callbacks=callbacks, **options)
        self.train("single_device", data=batches(8), callbacks=[Between(fewer, 2, 6)], **options)
        assert (late.count - early.count) / 20 <= 100, f"20 steps run {early.count} lines at first and {late.count} later"
        assert reads.count <= fewer.count, f"it waits for the device: {reads.places}"
