from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.builtin.csv_logger import CSVLogger
from fulmen.builtin.device_stats import DeviceStatsMonitor, host_stats, plain_host_stats
from fulmen.contracts.module import Module
from fulmen.errors import ConfigurationError
from fulmen.trainer import Trainer


class Model(Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path: Path, monitor: DeviceStatsMonitor, **options: Any) -> list[dict[str, str]]:
    settings = {"max_epochs": 2, "log_every_n_steps": 2, "logger": CSVLogger(tmp_path, version="v"), **options}
    trainer = Trainer(
        callbacks=[monitor], enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings
    )
    trainer.fit(Model(), DataLoader(torch.ones(12, 4), batch_size=2))  # type: ignore[arg-type]
    path = tmp_path / "fulmen_logs" / "v" / "metrics.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_figures_join_the_rows_of_logging_steps(tmp_path: Path) -> None:
    found = fit(tmp_path, DeviceStatsMonitor())
    names = [name for name in found[0] if name.startswith("DeviceStatsMonitor/")]
    assert {f"DeviceStatsMonitor/{name}" for name in host_stats()} <= set(names)
    assert [int(row["step"]) for row in found] == [1, 3, 5, 7, 9, 11]
    assert all(row["loss"] and float(row[name]) >= 0 for row in found for name in names)


def test_a_step_of_several_batches_is_logged_once(tmp_path: Path) -> None:
    found = fit(tmp_path, DeviceStatsMonitor(cpu_stats=True), accumulate_grad_batches=3)
    assert [int(row["step"]) for row in found] == [1, 3]


def test_the_host_can_be_left_out(tmp_path: Path) -> None:
    found = fit(tmp_path, DeviceStatsMonitor(cpu_stats=False))
    assert not {f"DeviceStatsMonitor/{name}" for name in host_stats()} & set(found[0])


def test_a_name_of_a_subclass_is_its_own(tmp_path: Path) -> None:
    class Mine(DeviceStatsMonitor):
        pass

    assert any(name.startswith("Mine/") for name in fit(tmp_path, Mine())[0])


def test_a_monitor_needs_a_logger(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        fit(tmp_path, DeviceStatsMonitor(), logger=False)
    assert str(caught.value) == (
        "DeviceStatsMonitor has no logger to send values to: leave out logger=False, or drop the callback"
    )
    assert fit(tmp_path, DeviceStatsMonitor(), fast_dev_run=True) == []


def test_figures_of_psutil() -> None:
    pytest.importorskip("psutil")
    found = host_stats()
    assert set(found) == {"cpu_percent", "cpu_vm_percent", "cpu_swap_percent", "process_rss_bytes"}
    assert 1e6 < found["process_rss_bytes"] < 1e12 and 0 < found["cpu_vm_percent"] <= 100


PLAIN = """
import sys
sys.modules["psutil"] = None
from fulmen.builtin.device_stats import host_stats, plain_host_stats
assert set(host_stats()) == set(plain_host_stats())
"""


def test_figures_without_psutil() -> None:
    result = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = plain_host_stats()
    assert found["process_cpu_seconds"] > 0
    if sys.platform != "win32":
        assert 1e6 < found["process_max_rss_bytes"] < 1e12 and found["load_average_1_minute"] >= 0
