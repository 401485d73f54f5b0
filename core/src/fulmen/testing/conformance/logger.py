"""The suite for loggers."""

from __future__ import annotations

import math
import pickle
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen import FulmenWarning, Logger
from fulmen.testing.conformance.measure import Between, DeviceReads, Lines, Traffic, counted, full_disk
from fulmen.testing.conformance.suite import Suite, only_if, same, through_a_file
from fulmen.testing.fakes import FailingModule, Failure, RecordingCallback, RecordingLogger
from fulmen.testing.training import Validated, batches

Rows = list[dict[str, Any]]


class LoggerSuite(Suite):
    """Subclass it, give ``name``, :meth:`make` and :meth:`read_back`."""

    kind = "logger"

    keeps_rows: bool = True
    """Whether logged rows can be read back by these tests."""

    readable_while_open: bool = True
    """Whether rows can be read back after ``save()``, before ``finalize``."""

    keeps_hyperparams: bool = False
    """Whether :meth:`read_hyperparams` gives the hyper-parameters back. Off, because not every destination has a place."""

    makes_nothing_early: bool = True
    """Whether nothing is written before something is logged. Every rank makes a logger, and one of them logs."""

    continues_record: bool = True
    """Whether a training that resumes adds to the record of the one that was cut."""

    rewinds: bool = True
    """Whether a resume takes back rows that were logged after the checkpoint, so that no step is there twice."""

    writes_files: bool = True
    """Whether this process writes files, so that a full disk matters."""

    most_lines_per_row: int = 2000
    """Lines of Python for one row of three values, those of the destination's library included."""

    def read_back(self, part: Any, folder: Path) -> Rows:
        """The rows that the destination holds, as mappings with ``step`` and the values of that step.

        The values of one step may be spread over several rows.
        """
        raise NotImplementedError(f"{type(self).__name__} needs: def read_back(self, part, folder)")

    def read_hyperparams(self, part: Any, folder: Path) -> dict[str, Any]:
        """The hyper-parameters that the destination holds; values may be text."""
        raise NotImplementedError(f"{type(self).__name__} needs: def read_hyperparams(self, part, folder)")

    # ---- Behaviour

    def test_making_one_leaves_no_trace(self, tmp_path: Path) -> None:
        """Its name, version and folders are known without writing anything."""
        part: Logger = self.make(tmp_path)
        assert part.name is None or isinstance(part.name, str)
        assert part.version is None or isinstance(part.version, (int, str))
        for folder in (part.save_dir, part.log_dir):
            assert folder is None or isinstance(folder, str)
        if self.makes_nothing_early:
            assert list(tmp_path.iterdir()) == [], "something was written before anything was logged: all ranks make loggers"

    @only_if("keeps_rows")
    def test_rows_arrive(self, tmp_path: Path) -> None:
        """What is logged can be read back, under its step; values that are no numbers of this world do no harm."""
        part = self.make(tmp_path)
        rows: Rows = [{"step": step, "epoch": 0, "loss": 1.5 - step, "val/acc": 0.25} for step in (0, 2, 5)]
        for row in rows:
            part.log_metrics({name: value for name, value in row.items() if name != "step"}, row["step"])
        part.log_metrics({"epoch": 1, "late": 3.0}, 7)  # a name that was not there before
        part.log_metrics({"bad": math.nan, "worse": math.inf}, 8)
        part.finalize("success")
        found = table(self.read_back(part, tmp_path))
        close(table([*rows, {"step": 7, "epoch": 1, "late": 3.0}]), {key: found[key] for key in found if key[0] != 8})

    @only_if("keeps_rows")
    @only_if("readable_while_open")
    def test_saving_makes_rows_durable(self, tmp_path: Path) -> None:
        """After ``save()``, a process that dies has lost nothing: checkpoints rely on it."""
        part = self.make(tmp_path)
        part.log_metrics({"loss": 0.5}, 3)
        part.save()
        close({(3, "loss"): 0.5}, table(self.read_back(part, tmp_path)))
        part.finalize("success")

    @only_if("keeps_rows")
    def test_a_training_leaves_its_rows(self, tmp_path: Path) -> None:
        """A real training logs the same to this logger as to one that keeps everything in memory."""
        part, recorder = self.make(tmp_path), RecordingLogger()
        self.train(part, logger=[part, recorder], log_every_n_steps=1)
        close(table(recorder.rows), table(self.read_back(part, tmp_path)))

    @only_if("keeps_hyperparams")
    def test_hyperparameters_arrive(self, tmp_path: Path) -> None:
        """Those of the module are in the record."""
        part = self.make(tmp_path)
        self.train(part)
        assert float(self.read_hyperparams(part, tmp_path)["lr"]) == 0.1

    def test_hyperparameters_of_any_kind_are_taken(self, tmp_path: Path) -> None:
        """People put everything into them: none of it may stop a run."""
        part = self.make(tmp_path)
        odd = {"path": tmp_path, "none": None, "nested": {"list": [1, (2, 3)], "dtype": torch.float32}, "text": "é " * 300}
        part.log_hyperparams({"lr": 0.1, **odd})
        part.log_config({"trainer": {"max_epochs": 2}, "plugins": []})
        part.log_metrics({"loss": 1.0}, 0)
        part.finalize("success")

    @only_if("keeps_rows")
    def test_a_row_without_a_step_joins_the_latest(self, tmp_path: Path) -> None:
        """What people log by hand, such as a result after a training, goes where the newest row is."""
        part = self.make(tmp_path)
        part.log_metrics({"before": 1.0})
        part.log_metrics({"loss": 0.5}, 3)
        part.log_metrics({"result": 2.0})
        part.finalize("success")
        close({(0, "before"): 1.0, (3, "loss"): 0.5, (3, "result"): 2.0}, table(self.read_back(part, tmp_path)))

    def test_parsed_arguments_are_hyperparameters(self, tmp_path: Path) -> None:
        """People pass what ``argparse`` gives."""
        part = self.make(tmp_path)
        part.log_hyperparams(Namespace(lr=0.1))
        part.finalize("success")
        if self.keeps_hyperparams:
            assert float(self.read_hyperparams(part, tmp_path)["lr"]) == 0.1

    def test_other_ranks_write_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """People call a logger in hooks and scripts, on every rank: rank 0 writes, and the others do not even begin a run."""
        part = self.make(tmp_path)
        with monkeypatch.context() as variables:
            variables.setenv("RANK", "1")
            part.log_hyperparams({"lr": 0.1})
            part.log_metrics({"loss": 1.0}, 0)
            part.experiment.some.thing({"loss": 1.0})["else"].append(2)
            part.save()
            part.finalize("success")
            if self.makes_nothing_early:
                assert list(tmp_path.iterdir()) == [], "something was written on rank 1"
        part.log_metrics({"loss": 2.0}, 1)
        part.finalize("success")
        if self.keeps_rows:
            close({(1, "loss"): 2.0}, table(self.read_back(part, tmp_path)))

    @only_if("keeps_rows")
    def test_two_fits_in_a_row_are_one_record(self, tmp_path: Path) -> None:
        """A trainer may be used again after ``finalize``: nothing is lost, nothing raises."""
        part, recorder = self.make(tmp_path), RecordingLogger()
        trainer = self.trainer(part, logger=[part, recorder], max_epochs=1, log_every_n_steps=4)
        for seed in (1, 2):
            trainer.fit(Validated(), batches(8, seed=seed), batches(2))
        close(table(recorder.rows), table(self.read_back(part, tmp_path)))

    # ---- Cost

    def test_a_row_costs_the_same_after_many(self, tmp_path: Path) -> None:
        """Neither lines of Python nor bytes grow with the rows before: no file is written anew, no list is gone over."""
        part = self.make(tmp_path)

        def log(first: int, count: int) -> None:
            for step in range(first, first + count):
                part.log_metrics({"epoch": 0, "loss": 1.0 / (step + 1), "acc": 0.5}, step)
            part.save()

        log(0, 100)  # what happens once: opening, the first save
        lines, traffic = counted(Lines(), lambda: log(100, 20)), counted(Traffic(), lambda: log(120, 20))
        log(140, 1000)
        later, more = counted(Lines(), lambda: log(1140, 20)), counted(Traffic(), lambda: log(1160, 20))
        part.finalize("success")
        assert lines / 20 <= self.most_lines_per_row, f"a row costs {lines / 20:.0f} lines; see most_lines_per_row"
        assert later <= 1.5 * lines + 200, f"20 rows cost {lines} lines after 100 rows, and {later} after 1,140"
        assert more <= 1.5 * traffic + 4096, f"20 rows move {traffic} bytes after 120 rows, and {more} after 1,160"

    def test_it_never_waits_for_the_device(self, tmp_path: Path) -> None:
        """Logging at every step reads nothing from the device that the trainer has not read."""
        reads = {}
        for each in ("without", "with"):
            reads[each] = DeviceReads()
            part = self.make(tmp_path) if each == "with" else RecordingLogger()
            self.train(part, max_epochs=1, callbacks=[Between(reads[each], 2, 6)], log_every_n_steps=1)
        assert reads["with"].count <= reads["without"].count, f"reads: {reads['with'].places}"

    # ---- State

    def test_its_state_is_plain_data_and_comes_back(self, tmp_path: Path) -> None:
        """A checkpoint can hold it, a new logger takes it, and taking it writes nothing."""
        part = self.make(tmp_path)
        part.log_metrics({"loss": 1.0}, 0)
        state = through_a_file(part.state_dict())
        part.finalize("success")
        before = sorted(tmp_path.rglob("*"))
        other = self.make(tmp_path)
        other.load_state_dict(state)
        if self.makes_nothing_early:
            assert sorted(tmp_path.rglob("*")) == before, "load_state_dict wrote something: all ranks load, one logs"
        if self.continues_record:
            assert same(through_a_file(other.state_dict()), state)
            assert other.version == part.version

    @only_if("keeps_rows")
    @only_if("continues_record")
    def test_a_training_that_was_cut_and_resumed_has_one_record(self, tmp_path: Path) -> None:
        """Cut in the middle of an epoch at a checkpoint, its rows are those of a training that was never cut."""
        recorder = RecordingLogger()
        self.whole_with(recorder, tmp_path)
        _, part = self.cut_and_resumed(tmp_path, log_every_n_steps=1)
        close(table(recorder.rows), table(self.read_back(part, tmp_path)))

    @only_if("keeps_rows")
    @only_if("rewinds")
    def test_rows_after_the_checkpoint_are_taken_back(self, tmp_path: Path) -> None:
        """A run that dies some steps after its checkpoint logs them again: they must not be there twice, or stale."""
        part = self.make(tmp_path)
        part.log_metrics({"loss": 1.0}, 0)
        state = through_a_file(part.state_dict())
        part.log_metrics({"loss": 77.0, "gone": 1.0}, 1)
        part.finalize("failed")
        part = self.make(tmp_path)
        part.load_state_dict(state)
        part.log_metrics({"loss": 2.0}, 1)
        part.finalize("success")
        rows = self.read_back(part, tmp_path)
        close({(0, "loss"): 1.0, (1, "loss"): 2.0}, table(rows))
        assert len([row for row in rows if "loss" in row]) == 2, f"a step is there twice: {rows}"

    def whole_with(self, recorder: Logger, folder: Path) -> None:
        """The training that :meth:`cut_and_resumed` cuts, logged to ``recorder`` only."""
        self.train(recorder, log_every_n_steps=1)

    @only_if("keeps_rows")
    @only_if("continues_record")
    def test_another_process_continues_it(self, tmp_path: Path) -> None:
        """What strategies do that start processes: a copy writes, and its state comes back. One record, each row once."""
        part = self.make(tmp_path)
        part.log_metrics({"loss": 0.0}, 0)
        for step in (1, 3):
            part.finalize("interrupted")  # before the processes start
            copy = pickle.loads(pickle.dumps(part))
            if step == 1:
                copy.log_config({"run": "one"})
            copy.log_metrics({"loss": float(step)}, step)
            state = through_a_file(copy.state_dict())
            copy.finalize("success")
            part.load_state_dict(state)
            part.log_metrics({"loss": step + 1.0}, step + 1)
        part.finalize("success")
        rows = self.read_back(part, tmp_path)
        close({(step, "loss"): float(step) for step in range(5)}, table(rows))
        if self.rewinds:
            assert len([row for row in rows if "loss" in row]) == 5, f"a step is there twice: {rows}"

    # ---- Failure

    def test_a_training_that_fails_closes_it(self, tmp_path: Path) -> None:
        """The error of the training comes through, the rows before it are kept, and closing again does no harm."""
        part, recorder = self.make(tmp_path), RecordingLogger()
        with pytest.raises(Failure) as caught:
            self.train(part, FailingModule(at=5), logger=[part, recorder], log_every_n_steps=1)
        assert getattr(caught.value, "__notes__", []) == []
        if self.keeps_rows:
            close(table(recorder.rows), table(self.read_back(part, tmp_path)))
        for status in ("failed", "success"):
            part.finalize(status)

    def test_closing_one_that_logged_nothing_does_no_harm(self, tmp_path: Path) -> None:
        """A run may fail before its first row."""
        part = self.make(tmp_path)
        for _ in range(2):
            part.save()
            part.finalize("interrupted")

    @only_if("writes_files")
    def test_a_full_disk_stops_no_training_and_loses_nothing_silently(self, tmp_path: Path) -> None:
        """From the fourth batch on, this process can write no file any more: the training ends, with a warning."""
        pytest.importorskip("resource", reason="this system has no limit for files")
        part, recorder, disk = self.make(tmp_path), RecordingLogger(), full_disk()
        callback = RecordingCallback()
        callback.on_train_batch_end = lambda trainer, *rest: disk.__enter__() if rest[-1] == 3 else None  # type: ignore[method-assign]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                options: dict[str, Any] = {"max_epochs": 1, "log_every_n_steps": 1, "callbacks": [callback]}
                trainer = self.train(part, logger=[part, recorder], **options)
            finally:
                disk.__exit__(None, None, None)
        assert trainer.global_step == 8
        said = [str(each.message) for each in caught if issubclass(each.category, FulmenWarning)]
        if not any(text.startswith("[logger-failed]") for text in said):
            assert self.keeps_rows, "no warning, and rows cannot be read back"
            close(table(recorder.rows), table(self.read_back(part, tmp_path)))  # it writes elsewhere, and all arrived


def table(rows: Rows) -> dict[tuple[int, str], float]:
    """``(step, name) -> value``; rows that repeat a name at one step keep the last."""
    return {
        (int(row["step"]), name): float(value)
        for row in rows
        for name, value in row.items()
        if name != "step" and value not in (None, "")
    }


def close(expected: dict[tuple[int, str], float], found: dict[tuple[int, str], float]) -> None:
    """Fail where two tables differ by more than single precision does."""
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    assert not missing, f"rows that were logged are not there, as (step, name): {sorted(missing)[:10]}"
    assert not extra, f"rows that nobody logged are there, as (step, name): {sorted(extra)[:10]}"
    wrong = {key: (value, found[key]) for key, value in expected.items() if not math.isclose(value, found[key], rel_tol=1e-5)}
    assert not wrong, f"values differ, as (logged, found): {wrong}"
