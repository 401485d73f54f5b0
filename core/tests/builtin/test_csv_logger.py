from __future__ import annotations

import csv
import json
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.builtin.csv_logger import CSVLogger
from fulmen.contracts.callback import Callback
from fulmen.contracts.logger import call_loggers
from fulmen.contracts.module import Module
from fulmen.errors import ConfigurationError, FulmenWarning
from fulmen.trainer import Trainer

yaml = pytest.importorskip("yaml", reason="reads what must be YAML")


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- Folders and versions


def test_nothing_is_created_before_something_is_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs")
    assert logger.version == 0
    assert logger.log_dir == str(tmp_path / "logs" / "fulmen_logs" / "version_0")
    assert (logger.name, logger.save_dir) == ("fulmen_logs", str(tmp_path / "logs"))
    assert logger.experiment is logger
    logger.save()
    logger.finalize("success")
    assert logger.state_dict() == {}
    assert names(tmp_path) == []


def test_the_next_free_number_is_taken(tmp_path: Path) -> None:
    for made in ("version_0", "version_7", "version_x", "other"):
        (tmp_path / "run" / made).mkdir(parents=True)
    assert CSVLogger(tmp_path, "run").version == 8


def test_a_name_of_none_leaves_a_level_out(tmp_path: Path) -> None:
    assert CSVLogger(tmp_path, None).log_dir == str(tmp_path / "version_0")


@pytest.mark.parametrize(("version", "folder"), [(3, "version_3"), ("mine", "mine")])
def test_a_given_version_is_used_and_continued(tmp_path: Path, version: Any, folder: str) -> None:
    first = CSVLogger(tmp_path, "run", version)
    first.log_metrics({"a": 1.0}, 0)
    first.finalize("success")
    second = CSVLogger(tmp_path, "run", version)
    second.log_metrics({"b": 2.0}, 1)
    second.finalize("success")
    assert rows(tmp_path / "run" / folder / "metrics.csv") == [
        {"step": "0", "a": "1.0", "b": ""},
        {"step": "1", "a": "", "b": "2.0"},
    ]


def test_two_loggers_that_choose_the_same_number_get_folders_of_their_own(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path), CSVLogger(tmp_path)]
    assert [logger.version for logger in loggers] == [0, 0]
    for index, logger in enumerate(loggers):
        logger.log_metrics({"a": float(index)}, 0)
        logger.finalize("success")
    assert [logger.version for logger in loggers] == [0, 1]
    assert [rows(Path(logger.log_dir) / "metrics.csv")[0]["a"] for logger in loggers] == ["0.0", "1.0"]


RACE = """
import sys, time
from fulmen.builtin.csv_logger import CSVLogger
logger = CSVLogger(sys.argv[1])
logger.version
print("ready", flush=True)
sys.stdin.readline()
logger.log_metrics({"who": float(sys.argv[2])}, 0)
logger.finalize("success")
print(logger.version)
"""


def test_processes_that_choose_at_the_same_time_do_not_mix_their_rows(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for i in range(3)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    versions = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        versions.append(int(process.communicate(timeout=60)[0]))
    assert sorted(versions) == [0, 1, 2]
    files = [tmp_path / "fulmen_logs" / f"version_{version}" / "metrics.csv" for version in versions]
    assert [[row["who"] for row in rows(file)] for file in files] == [["0.0"], ["1.0"], ["2.0"]]


def test_arguments_that_cannot_work() -> None:
    with pytest.raises(ConfigurationError) as caught:
        CSVLogger("s3://bucket/logs")
    assert str(caught.value) == (
        "CSVLogger cannot write to save_dir='s3://bucket/logs': rows are added to a file, which needs a local disk. Give it a "
        "local folder, as in Trainer(logger=CSVLogger('logs')), and copy that folder when the run is over; or choose another "
        "logger, or logger=False"
    )
    with pytest.raises(ConfigurationError) as caught:
        CSVLogger(version=-1)
    assert str(caught.value) == "version=-1 is not allowed; allowed: a number from 0, the name of a folder, or None"
    with pytest.raises(ConfigurationError) as caught:
        CSVLogger(flush_logs_every_n_steps=0)
    assert str(caught.value) == "flush_logs_every_n_steps=0 must be a whole number from 1"


# ---- Rows


def test_columns_are_step_and_the_names_in_order(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version="v", prefix="mine")
    logger.log_metrics({"loss": 0.1, "epoch": 0}, 4)
    logger.log_metrics({"acc": torch.tensor(0.5), "epoch": 1}, 9)  # type: ignore[dict-item]
    logger.save()
    assert (tmp_path / "fulmen_logs" / "v" / "metrics.csv").read_text() == (
        "step,mine-loss,epoch,mine-acc\n4,0.1,0,\n9,,1,0.5\n"
    )


def test_rows_are_written_in_portions_and_at_save(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version="v", flush_logs_every_n_steps=3)
    path = tmp_path / "fulmen_logs" / "v" / "metrics.csv"
    for step in range(2):
        logger.log_metrics({"a": 1.0}, step)
    assert not path.exists()
    logger.log_metrics({"a": 1.0}, 2)
    assert len(rows(path)) == 3
    logger.log_metrics({"a": 1.0}, 3)
    assert len(rows(path)) == 3
    logger.save()
    assert len(rows(path)) == 4


def test_a_call_costs_the_same_however_long_the_history_is(tmp_path: Path) -> None:
    """Bytes read and written, as the system counts them for this process, after 10,000 rows and after 40,000."""
    if not Path("/proc/self/io").exists():
        pytest.skip("needs /proc")

    def transferred() -> int:
        return sum(int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines()[:2])

    logger, costs, count = CSVLogger(tmp_path, version="v", flush_logs_every_n_steps=10), [], 0
    for until in (10_000, 40_000):
        while count < until:
            logger.log_metrics({"a": 0.123456789, "b": 1.0}, 100_000 + count)
            count += 1
        before = transferred()
        for _ in range(1000):
            logger.log_metrics({"a": 0.123456789, "b": 1.0}, 100_000 + count)
            count += 1
        costs.append(transferred() - before)
    assert costs[1] < 1.5 * costs[0]


def test_a_folder_that_is_gone_is_reported_and_loses_nothing_once_it_is_back(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version="v", flush_logs_every_n_steps=1)
    logger.log_metrics({"a": 1.0}, 0)
    folder, hidden = tmp_path / "fulmen_logs" / "v", tmp_path / "hidden"
    folder.rename(hidden)
    with pytest.warns(FulmenWarning, match=re.escape("[logger-failed] CSVLogger: FileNotFoundError")):
        call_loggers([logger], lambda each: each.log_metrics({"a": 2.0}, 1))
    hidden.rename(folder)
    logger.log_metrics({"a": 3.0}, 2)
    assert [row["a"] for row in rows(folder / "metrics.csv")] == ["1.0", "2.0", "3.0"]


def test_a_logger_travels_to_another_process(tmp_path: Path) -> None:
    logger = pickle.loads(pickle.dumps(CSVLogger(tmp_path)))
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert len(rows(Path(logger.log_dir) / "metrics.csv")) == 1


# ---- Hyper-parameters and options


def test_hyperparameters_are_json_and_yaml(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version="v")
    logger.log_hyperparams({"lr": 1e-05, "layers": [64, 10], "act": torch.nn.ReLU, "note": "ü\u2028: #"})
    logger.log_hyperparams({"extra": None})
    text = (tmp_path / "fulmen_logs" / "v" / "hparams.yaml").read_text(encoding="utf-8")
    expected = {
        "lr": 1e-05, "layers": [64, 10], "act": "torch.nn.modules.activation.ReLU", "note": "ü\u2028: #", "extra": None,
    }  # fmt: skip
    assert json.loads(text) == yaml.safe_load(text) == expected


def test_options_are_json(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version="v")
    logger.log_config({"run": "abc", "options": {"max_epochs": 3}})
    folder = tmp_path / "fulmen_logs" / "v"
    assert json.loads((folder / "config.json").read_text()) == {"run": "abc", "options": {"max_epochs": 3}}
    assert names(folder) == ["config.json"]


# ---- Resume


def logged(folder: Path, run: str = "r1", steps: int = 6, save_at: int = 3) -> dict[str, Any]:
    """A record of some steps, and the state after some of them; a validation is logged after that."""
    logger, state = CSVLogger(folder, "run"), {}
    logger.log_config({"run": run})
    for step in range(steps):
        logger.log_metrics({"loss": step / 10} if step != 4 else {"loss": 0.4, "val": 1.0}, step)
        if step + 1 == save_at:
            state = logger.state_dict()
    logger.finalize("interrupted")
    return state


def test_a_resumed_record_is_that_of_a_run_that_was_never_cut(tmp_path: Path) -> None:
    logged(tmp_path / "whole")
    state = logged(tmp_path / "cut")
    assert state == {"name": "run", "version": 0, "run": "r1", "rows": 3, "columns": 2, "step": 2}
    resumed = CSVLogger(tmp_path / "cut", "run")
    resumed.load_state_dict(state)
    assert resumed.version == 0
    resumed.log_config({"run": "r1"})
    folder = tmp_path / "cut" / "run" / "version_0"
    assert rows(folder / "metrics.csv") == [{"step": str(i), "loss": str(i / 10)} for i in range(3)]
    for step in range(3, 6):
        resumed.log_metrics({"loss": step / 10} if step != 4 else {"loss": 0.4, "val": 1.0}, step)
    resumed.finalize("success")
    whole = tmp_path / "whole" / "run" / "version_0"
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert [row["step"] for row in rows(folder / "metrics.discarded.csv")] == ["3", "4", "5"]
    assert names(tmp_path / "cut" / "run") == [
        "version_0", "version_0/config.json", "version_0/metrics.csv", "version_0/metrics.discarded.csv",
    ]  # fmt: skip


def test_loading_a_state_writes_nothing(tmp_path: Path) -> None:
    """Every rank loads it, and one logs."""
    state = logged(tmp_path)
    before = (tmp_path / "run" / "version_0" / "metrics.csv").read_bytes()
    other = CSVLogger(tmp_path, "run")
    other.load_state_dict(state)
    assert other.log_dir == str(tmp_path / "run" / "version_0")
    assert other.state_dict() == state
    assert (tmp_path / "run" / "version_0" / "metrics.csv").read_bytes() == before


def test_the_same_logger_can_go_back_too(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "run")
    logger.log_metrics({"a": 1.0}, 0)
    state = logger.state_dict()
    logger.log_metrics({"a": 2.0}, 1)  # waits to be written
    logger.load_state_dict(state)
    logger.log_metrics({"a": 3.0}, 1)
    logger.finalize("success")
    assert [row["a"] for row in rows(Path(logger.log_dir) / "metrics.csv")] == ["1.0", "3.0"]
    assert [row["a"] for row in rows(Path(logger.log_dir) / "metrics.discarded.csv")] == ["2.0"]


@pytest.mark.parametrize("moved", ["folder", "name", "run"])
def test_a_record_that_is_elsewhere_is_left_alone(tmp_path: Path, moved: str) -> None:
    state = logged(tmp_path)
    folder = tmp_path / "run" / "version_0"
    before = (folder / "metrics.csv").read_bytes()
    save_dir, name = (tmp_path / "new" if moved == "folder" else tmp_path), ("other" if moved == "name" else "run")
    if moved == "name":
        (tmp_path / "other" / "version_0").mkdir(parents=True)
    if moved == "run":
        (folder / "config.json").write_text('{"run": "r2"}')
    logger = CSVLogger(save_dir, name)
    reason = {
        "folder": "which does not exist",
        "name": "which is an experiment of another name than 'run'",
        "run": "which holds another run (r2)",
    }[moved]
    new = save_dir / name / ("version_0" if moved == "folder" else "version_1")
    with pytest.warns(FulmenWarning) as caught:
        logger.load_state_dict(state)
    assert str(caught[0].message) == (
        f"[csv-moved] the checkpoint continues the metrics in {save_dir / name / 'version_0'}, {reason}; they go on in {new}, "
        "without the earlier rows. Give the logger the save_dir and name that it had, to continue them"
    )
    logger.log_metrics({"a": 1.0}, 3)
    logger.finalize("success")
    assert len(rows(new / "metrics.csv")) == 1
    assert (folder / "metrics.csv").read_bytes() == before


def test_a_version_that_the_user_gives_wins(tmp_path: Path) -> None:
    state = logged(tmp_path)
    logger = CSVLogger(tmp_path, "run", version="mine")
    logger.load_state_dict(state)
    assert logger.version == "mine"
    same = CSVLogger(tmp_path, "run", version=0)
    same.load_state_dict(state)
    same.log_metrics({"loss": 0.3}, 3)
    same.finalize("success")
    assert len(rows(tmp_path / "run" / "version_0" / "metrics.csv")) == 4


def test_rows_that_are_missing_are_reported(tmp_path: Path) -> None:
    state = logged(tmp_path)
    path = tmp_path / "run" / "version_0" / "metrics.csv"
    path.write_text("step,loss\n0,0.0\n")
    logger = CSVLogger(tmp_path, "run")
    logger.load_state_dict(state)
    with pytest.warns(FulmenWarning) as caught:
        logger.log_metrics({"loss": 0.3}, 3)
    assert str(caught[0].message) == f"[csv-rows-missing] {path} has 1 rows; when the checkpoint was saved it had 3"


def test_half_a_row_at_the_end_of_a_given_version_is_moved_away(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "v"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,a\n0,1.0\n1,2")
    (folder / ".metrics.csv.0123abcd.tmp").write_text("left over")
    logger = CSVLogger(tmp_path, "run", "v")
    logger.log_metrics({"a": 3.0}, 1)
    logger.finalize("success")
    assert (folder / "metrics.csv").read_text() == "step,a\n0,1.0\n1,3.0\n"
    assert (folder / "metrics.discarded.csv").read_text() == "step,a\n1,2\n"
    assert names(folder) == ["metrics.csv", "metrics.discarded.csv"]


KILLED = """
import json, sys
from fulmen.builtin.csv_logger import CSVLogger
logger = CSVLogger(sys.argv[1], "run", flush_logs_every_n_steps=1)
step = 0
while True:
    logger.log_metrics({"loss": step / 7, **({f"new{step // 50}": 1.0} if step % 50 == 0 else {})}, step)
    step += 1
    if step == 60:
        print(json.dumps(logger.state_dict()), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_killed_process_leaves_a_record_that_can_be_continued(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    state = json.loads(process.stdout.readline())
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    logger = CSVLogger(tmp_path, "run")
    logger.load_state_dict(state)
    logger.log_metrics({"loss": 60 / 7}, 60)
    logger.finalize("success")
    found = rows(tmp_path / "run" / "version_0" / "metrics.csv")
    assert [int(row["step"]) for row in found] == list(range(61))
    assert [float(row["loss"]) for row in found] == [step / 7 for step in range(61)]
    assert list(found[0]) == ["step", "loss", "new0", "new1"]
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]


# ---- In a training


class Model(Module):
    def __init__(self, lr: float = 1e-05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch).square().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def fit(folder: Path, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    data = torch.utils.data.DataLoader[Any](torch.randn(12, 4), batch_size=2)  # type: ignore[arg-type]
    trainer = Trainer(
        default_root_dir=folder, callbacks=list(callbacks), log_every_n_steps=2, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **{"max_epochs": 3, **options},
    )  # fmt: skip
    trainer.fit(Model(), data, data, ckpt_path=ckpt_path)
    return trainer


class SaveAt(Callback):
    def __init__(self, step: int, path: Path, runs_last: bool) -> None:
        self.step, self.path, self.runs_last = step, path, runs_last

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("runs_last", [False, True])
@pytest.mark.parametrize("step", [2, 5, 6, 7, 12, 18])
def test_a_resumed_training_continues_its_file(tmp_path: Path, step: int, runs_last: bool) -> None:
    fit(tmp_path / "whole")
    # Goes on after the save, as a process does until it is killed.
    fit(tmp_path / "cut", SaveAt(step, tmp_path / "cut.ckpt", runs_last))
    trainer = fit(tmp_path / "cut", ckpt_path=tmp_path / "cut.ckpt")
    assert trainer.log_dir == str(tmp_path / "cut" / "fulmen_logs" / "version_0")
    whole, cut = ((tmp_path / name / "fulmen_logs" / "version_0" / "metrics.csv").read_bytes() for name in ("whole", "cut"))
    assert cut == whole


def test_a_training_leaves_metrics_hyperparameters_and_options(tmp_path: Path) -> None:
    trainer = fit(tmp_path)
    folder = tmp_path / "fulmen_logs" / "version_0"
    assert trainer.log_dir == str(folder)
    assert names(folder) == ["config.json", "hparams.yaml", "metrics.csv"]
    assert yaml.safe_load((folder / "hparams.yaml").read_text()) == {"lr": 1e-05}
    config = json.loads((folder / "config.json").read_text())
    assert config["run"] == trainer.run_id and config["options"]["max_epochs"] == 3
    found = rows(folder / "metrics.csv")
    assert list(found[0]) == ["step", "loss_step", "epoch", "val_loss", "loss_epoch"]
    assert [int(row["step"]) for row in found if row["loss_step"]] == list(range(1, 18, 2))
    assert float(found[-1]["loss_epoch"]) == trainer.logged_metrics["loss_epoch"]


def test_a_trainer_with_a_url_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=re.escape("CSVLogger cannot write to save_dir='s3://bucket/runs'")):
        Trainer(default_root_dir="s3://bucket/runs")
