"""Every suite fails for parts with one defect each: what it promises to find, it finds."""

from __future__ import annotations

import contextlib
import csv
import inspect
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen import Callback, ClusterEnvironment, ConfigurationError, Precision
from fulmen.builtin.cpu import CPUAccelerator
from fulmen.builtin.csv_logger import CSVLogger
from fulmen.builtin.simple_profiler import SimpleProfiler
from fulmen.builtin.true_precision import TruePrecision
from fulmen.testing.conformance import (
    AcceleratorSuite,
    CallbackSuite,
    EnvironmentSuite,
    ExporterSuite,
    LoggerSuite,
    PrecisionSuite,
    ProfilerSuite,
    StrategySuite,
)

pytestmark = pytest.mark.filterwarnings(r"ignore:\[plugin-broken\]")  # as in the suites
WORDS = (AssertionError, Exception, pytest.fail.Exception)


@pytest.fixture(autouse=True)
def _elsewhere(site):
    """As the suites do by themselves; what a test installs is found."""


def fails(suite: type, test: str, message: str, make: Any = None, **fixtures: Any) -> None:
    """The test of a suite must fail, and say why, for the part that ``make`` gives."""
    broken = type("TestBroken", (suite,), {} if make is None else {"make": lambda self, folder: make(folder)})
    with pytest.raises(WORDS, match=message):
        getattr(broken(), test)(**fixtures)


# ---- Loggers


class CSVSuite(LoggerSuite):
    name = "csv"

    def read_back(self, part, folder):
        with open(folder / "fulmen_logs" / "version_0" / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))


class Good(CSVLogger):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, version=0 if list(folder.glob("fulmen_logs/*")) else None)


class LosesRows(Good):
    def log_metrics(self, metrics, step):
        if step != 2:
            super().log_metrics(metrics, step)


class RoundsValues(Good):
    def log_metrics(self, metrics, step):
        super().log_metrics({name: round(value, 1) for name, value in metrics.items()}, step)


class WritesEarly(Good):
    def __init__(self, folder):
        super().__init__(folder)
        (folder / "made").mkdir(exist_ok=True)


class WritesOnLoad(Good):
    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        Path(self.save_dir, "loaded").write_text("")


class HasNoState(Good):
    def __init__(self, folder):
        CSVLogger.__init__(self, folder)

    def state_dict(self):
        return {}


class HasOddState(Good):
    def state_dict(self):
        return {**super().state_dict(), "path": Path("x")}


class KeepsStaleRows(Good):
    def load_state_dict(self, state_dict):
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "rows"})


class SavesNothing(Good):
    def save(self):
        pass


class IsPicky(Good):
    def log_hyperparams(self, params):
        json.dumps(params)


class ClosesOnce(Good):
    closed = False

    def finalize(self, status):
        if self.closed:
            raise ValueError("I/O operation on closed file")
        super().finalize(status)
        self.closed = True


class ForgetsAfterClosing(ClosesOnce):
    def log_metrics(self, metrics, step):
        if not self.closed:
            super().log_metrics(metrics, step)

    def finalize(self, status):
        if not self.closed:
            super().finalize(status)


class LosesRowsOfFailures(Good):
    def save(self):
        pass

    def finalize(self, status):
        if status == "success":
            super().save()


class GoesOverItsHistory(Good):
    def __init__(self, folder):
        super().__init__(folder)
        self.history = []

    def log_metrics(self, metrics, step):
        super().log_metrics(metrics, step)
        self.history.append(metrics["loss"])
        best = self.history[0]
        for value in self.history:
            if value < best:
                best = value


class WritesTheFileAnew(Good):
    rows = ()

    def log_metrics(self, metrics, step):
        super().log_metrics(metrics, step)
        self.rows = [*self.rows, dict(metrics)]
        Path(self.save_dir, "all.json").write_text(json.dumps(self.rows))


class WaitsForTheDevice(Good):
    def log_metrics(self, metrics, step):
        super().log_metrics({**metrics, "one": torch.ones(()).item()}, step)


class SwallowsErrors(Good):
    def log_metrics(self, metrics, step):
        try:
            super().log_metrics(metrics, step)
            self._write()
        except OSError:
            self._waiting = []

    def finalize(self, status):
        with contextlib.suppress(OSError):
            super().finalize(status)


class StopsTheTraining(Good):
    required = True


LOGGERS = [
    (LosesRows, "test_rows_arrive", "not there"),
    (RoundsValues, "test_rows_arrive", "values differ"),
    (LosesRows, "test_a_training_leaves_its_rows", "not there"),
    (WritesEarly, "test_making_one_leaves_no_trace", "all ranks make loggers"),
    (WritesOnLoad, "test_its_state_is_plain_data_and_comes_back", "all ranks load"),
    (HasNoState, "test_its_state_is_plain_data_and_comes_back", "assert 1 == 0"),
    (HasNoState, "test_a_training_that_was_cut_and_resumed_has_one_record", "not there"),
    (HasOddState, "test_its_state_is_plain_data_and_comes_back", "more than plain data"),
    (KeepsStaleRows, "test_rows_after_the_checkpoint_are_taken_back", "nobody logged|twice"),
    (SavesNothing, "test_saving_makes_rows_durable", "not there|No such file"),
    (IsPicky, "test_hyperparameters_of_any_kind_are_taken", "not JSON serializable"),
    (ClosesOnce, "test_a_training_that_fails_closes_it", "closed file"),
    (ClosesOnce, "test_closing_one_that_logged_nothing_does_no_harm", "closed file"),
    (ForgetsAfterClosing, "test_two_fits_in_a_row_are_one_record", "values differ"),
    (LosesRowsOfFailures, "test_a_training_that_fails_closes_it", "No such file|not there"),
    (GoesOverItsHistory, "test_a_row_costs_the_same_after_many", "20 rows cost .* lines after 100 rows"),
    (WritesTheFileAnew, "test_a_row_costs_the_same_after_many", "20 rows move .* bytes"),
    (WaitsForTheDevice, "test_it_never_waits_for_the_device", "item at test_broken.py"),
    (SwallowsErrors, "test_a_full_disk_stops_no_training_and_loses_nothing_silently", "not there"),
    (StopsTheTraining, "test_a_full_disk_stops_no_training_and_loses_nothing_silently", "File too large"),
]


@pytest.mark.parametrize(("part", "test", "message"), LOGGERS, ids=lambda value: getattr(value, "__name__", None))
def test_broken_loggers(tmp_path, part, test, message):
    (tmp_path / "here").mkdir()
    fails(CSVSuite, test, message, part, tmp_path=tmp_path / "here")


# ---- Callbacks


class Misspelled(Callback):
    def on_train_batch_ends(self, trainer, module):
        pass


class Draws(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        torch.rand(1)


class ReadsTheLoss(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.last = float(outputs.detach())


class Branches(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if outputs.detach() > 1e9:
            trainer.should_stop = True


class IsSlow(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        for _ in range(50):
            time.monotonic()


class Remembers(Callback):
    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append(batch_idx)
        total = 0
        for step in self.steps:
            total += step


class Forgets(Callback):
    count = 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}


class KeepsObjects(Forgets):
    def state_dict(self):
        return {"path": Path("x")}


class HasAKeyOfChance(Callback):
    @property
    def state_key(self):
        return str(id(self))


class FailsWhenTold(Callback):
    def on_exception(self, trainer, module, exception):
        raise KeyError("file")


class WorksOnce(Callback):
    def teardown(self, trainer, module, stage):
        del self.file

    def setup(self, trainer, module, stage):
        self.file = 1


class KnowsOnlyFit(Callback):
    def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        outputs["loss"]


class ChangesTheTraining(Callback):
    """Its effect depends on what it has seen since it was made, which a resume forgets."""

    count = 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.count += 1
        if self.count > 12:
            trainer.optimizers[0].param_groups[0]["lr"] = 0.01


class IsOpaque(Callback):
    def on_fit_end(self, trainer, module):
        trainer.callback_metrics["val_loss"]

    def on_train_end(self, trainer, module):
        if "val_loss" not in trainer.callback_metrics:
            raise KeyError(0)


CALLBACKS = [
    (Misspelled, "test_every_hook_of_it_exists", "never called: .*on_train_batch_ends"),
    (Draws, "test_it_leaves_the_training_as_it_is", "the weights differ"),
    (ReadsTheLoss, "test_it_never_waits_for_the_device", "__float__ at test_broken.py"),
    (Branches, "test_it_never_waits_for_the_device", "__bool__ at test_broken.py"),
    (IsSlow, "test_a_step_costs_few_calls", "a step costs .* more calls"),
    (Remembers, "test_a_step_costs_the_same_after_many", "goes over its history"),
    (Forgets, "test_its_state_is_plain_data_and_comes_back", "assert"),
    (Forgets, "test_a_training_that_was_cut_and_resumed_equals_one_that_was_not", "its state differs"),
    (ChangesTheTraining, "test_a_training_that_was_cut_and_resumed_equals_one_that_was_not", "the weights differ"),
    (KeepsObjects, "test_its_state_is_plain_data_and_comes_back", "more than plain data"),
    (HasAKeyOfChance, "test_its_key_is_its_own", "assert"),
    (WorksOnce, "test_a_training_that_fails_leaves_it_usable", "file"),
    (KnowsOnlyFit, "test_it_takes_part_in_every_kind_of_run", "loss|indices"),
    (IsOpaque, "test_without_validation_it_does_no_harm_or_says_what_it_needs", "unclear: 0"),
]


@pytest.mark.parametrize(("part", "test", "message"), CALLBACKS, ids=lambda value: getattr(value, "__name__", None))
def test_broken_callbacks(tmp_path, part, test, message):
    fails(CallbackSuite, test, message, lambda folder: part(), tmp_path=tmp_path)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes before Python 3.11")
def test_a_callback_that_fails_when_it_is_told_of_a_failure(tmp_path):
    test = "test_a_training_that_fails_leaves_it_usable"
    fails(CallbackSuite, test, "failed while it was told", lambda folder: FailsWhenTold(), tmp_path=tmp_path)


# ---- Accelerators


class CPUSuite(AcceleratorSuite):
    name = "cpu"
    has_indices = False
    has_generator = False


class CallsItselfOther(CPUAccelerator):
    name = "cpu0"


class TakesAnything(CPUAccelerator):
    def parse_devices(self, devices):
        return [0]


class CountsText(CPUAccelerator):
    @staticmethod
    def num_available():
        return "1"


class StaysOnItsDevice(CPUAccelerator):
    def devices(self, indices):
        return [torch.device("meta") for _ in indices]


class TearsDownOnce(CPUAccelerator):
    def setup_device(self, device):
        self.handle = device

    def teardown(self):
        del self.handle


class SetsSwitches(CPUAccelerator):
    def configure(self, *, deterministic, benchmark):
        torch.backends.cudnn.benchmark = bool(benchmark) or not torch.backends.cudnn.benchmark


class RefusesWarn(CPUAccelerator):
    def configure(self, *, deterministic, benchmark):
        if deterministic == "warn":
            raise ValueError("deterministic must be a bool")


class WaitsForFigures(CPUAccelerator):
    def stats(self, device):
        return {"used_bytes": torch.ones(()).item()}


class GivesTensors(CPUAccelerator):
    def stats(self, device):
        return {"used_bytes": torch.ones(())}


class KeepsAGenerator(CPUAccelerator):
    def random_state(self):
        return {"generator": object}


ACCELERATORS = [
    (CallsItselfOther, "test_it_knows_what_there_is", "its name is 'cpu0'"),
    (CountsText, "test_it_knows_what_there_is", "assert"),
    (TakesAnything, "test_wrong_devices_are_refused", "DID NOT RAISE"),
    (TearsDownOnce, "test_setting_up_and_tearing_down_may_be_repeated", "handle"),
    (SetsSwitches, "test_switches_are_left_alone_unless_asked", "cudnn.benchmark"),
    (RefusesWarn, "test_switches_are_left_alone_unless_asked", "must be a bool"),
    (WaitsForFigures, "test_figures_are_numbers_read_without_waiting", "item at test_broken.py"),
    (GivesTensors, "test_figures_are_numbers_read_without_waiting", "assert"),
    (KeepsAGenerator, "test_random_state_is_plain_data_and_comes_back", "more than plain data|pickle"),
    (StaysOnItsDevice, "test_it_trains_there_and_brings_the_module_back", "meta"),
]


@pytest.fixture
def _switches():
    before = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = before


@pytest.mark.usefixtures("_switches")
@pytest.mark.parametrize(("part", "test", "message"), ACCELERATORS, ids=lambda value: getattr(value, "__name__", None))
def test_broken_accelerators(tmp_path, part, test, message):
    wanted = inspect.signature(getattr(AcceleratorSuite, test)).parameters
    given = {"tmp_path": tmp_path, "part": part()}
    fails(CPUSuite, test, message, lambda folder: part(), **{name: given[name] for name in given if name in wanted})


def test_an_accelerator_that_has_a_generator_must_give_its_state(tmp_path):
    class Suite(AcceleratorSuite):
        name = "cpu"

    message = r"random_state\(\) is empty"
    fails(Suite, "test_random_state_is_plain_data_and_comes_back", message, part=CPUAccelerator())


# ---- Precisions


class BF16Suite(PrecisionSuite):
    name = "bf16-true"
    parameter_dtype = compute_dtype = torch.bfloat16
    tolerance = 0.1


class Scales(TruePrecision):
    def scale_loss(self, loss):
        return loss * 1024


class CastsEverything(TruePrecision):
    def convert_input(self, batch):
        return {key: value.to(self.dtype) if hasattr(value, "to") else value for key, value in batch.items()}


class ForgetsInput(TruePrecision):
    def wrap_step(self, step):
        return step

    def convert_module(self, module):
        return module

    def convert_input(self, batch):
        return batch


class LeavesADtype(TruePrecision):
    def convert_module(self, module):
        torch.set_default_dtype(self.dtype)
        return super().convert_module(module)


class ChecksOnTheHost(TruePrecision):
    def optimizer_step(self, optimizer, closure=None):
        if all(bool(p.grad.isfinite().all()) for group in optimizer.param_groups for p in group["params"]):
            return super().optimizer_step(optimizer, closure)


class LosesClosures(TruePrecision):
    def optimizer_step(self, optimizer, closure=None):
        return optimizer.step()


class KeepsSteps(TruePrecision):
    steps = ()

    def optimizer_step(self, optimizer, closure=None):
        self.steps = [*self.steps, 1]
        total = 0
        for step in self.steps:
            total += step
        return super().optimizer_step(optimizer, closure)


class SaysNothingOfItsState(TruePrecision):
    def state_dict(self):
        return {"scale": 2.0}


class Drifts(TruePrecision):
    """Its factor grows with the steps, and a checkpoint does not have it."""

    steps = 0

    def scale_loss(self, loss):
        self.steps += 1
        return loss * (1 + self.steps)


PRECISIONS = [
    (Scales, "test_gradients_are_unscaled_where_people_look_and_clip", "not close"),
    (CastsEverything, "test_input_is_converted_where_it_has_to_be", "int64"),
    (ForgetsInput, "test_steps_of_every_kind_run_in_it", "float32"),
    (LeavesADtype, "test_the_process_is_left_as_it_was", "default dtype"),
    (ChecksOnTheHost, "test_it_never_waits_for_the_device", "__bool__ at test_broken.py"),
    (LosesClosures, "test_closures_work_or_are_refused", "closure"),
    (KeepsSteps, "test_a_step_costs_the_same_after_many", "lines at first"),
    (SaysNothingOfItsState, "test_its_state_is_plain_data_and_comes_back", "assert"),
    (Drifts, "test_a_training_that_was_cut_and_resumed_equals_one_that_was_not", "assert"),
    (Drifts, "test_it_learns_what_32_bits_learn", "not close"),
]


@pytest.fixture
def _default_dtype():
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_default_dtype")
@pytest.mark.parametrize(("part", "test", "message"), PRECISIONS, ids=lambda value: getattr(value, "__name__", None))
def test_broken_precisions(tmp_path, part, test, message):
    fails(BF16Suite, test, message, lambda folder: part("bf16-true"), tmp_path=tmp_path)


def test_a_precision_that_updates_after_an_overflow(tmp_path):
    class Suite(PrecisionSuite):
        name = "32-true"
        has_state = True

    test = "test_an_overflow_skips_the_update"
    fails(Suite, test, "gradients are infinite", lambda folder: Precision(), tmp_path=tmp_path)


# ---- Profilers


class ProfileSuite(ProfilerSuite):
    name = "simple"


class SwallowsExceptions(SimpleProfiler):
    def profile(self, action):
        return contextlib.suppress(Exception)


class DropsActions(SimpleProfiler):
    def summary(self):
        return "fast enough"


class LosesResults(SimpleProfiler):
    def wrap(self, action, function):
        super_wrap = super().wrap(action, function)
        return lambda *args: super_wrap(*args) and None


class DrawsNumbers(SimpleProfiler):
    def start(self, action):
        super().start(action)
        torch.rand(1)


class Synchronizes(SimpleProfiler):
    def stop(self, action):
        torch.ones(()).item()
        super().stop(action)


class KeepsEveryCall(SimpleProfiler):
    def __init__(self, dirpath):
        super().__init__(dirpath)
        self.every = []

    def stop(self, action):
        super().stop(action)
        self.every.append(1.0)
        longest = 0.0
        for seconds in self.every:
            longest = max(longest, seconds)


class ClosesOnlyOnce(SimpleProfiler):
    def teardown(self):
        self.first, _ = 1, self.__dict__.pop("path")


PROFILERS = [
    (SwallowsExceptions, "test_it_measures_blocks_functions_and_iterators", "DID NOT RAISE"),
    (DropsActions, "test_it_measures_blocks_functions_and_iterators", "does not show"),
    (DropsActions, "test_a_training_is_measured", "training_step"),
    (LosesResults, "test_it_measures_blocks_functions_and_iterators", "None == 2"),
    (DrawsNumbers, "test_it_changes_nothing", "assert"),
    (Synchronizes, "test_it_never_waits_for_the_device", "item at test_broken.py"),
    (KeepsEveryCall, "test_an_action_costs_few_calls_however_many_there_were", "an action costs|lines at first"),
    (ClosesOnlyOnce, "test_a_training_that_fails_is_closed", "path"),
]


@pytest.mark.parametrize(("part", "test", "message"), PROFILERS, ids=lambda value: getattr(value, "__name__", None))
def test_broken_profilers(tmp_path, part, test, message):
    fails(ProfileSuite, test, message, lambda folder: part(folder), tmp_path=tmp_path)


# ---- Environments


class Listed(ClusterEnvironment):
    """Sound."""

    @staticmethod
    def detect():
        return "LISTED" in os.environ

    @property
    def creates_processes_externally(self):
        return True

    main_address = "node0"  # type: ignore[assignment]

    @property
    def main_port(self):
        return self.number(4)

    def world_size(self):
        return self.number(0)

    def global_rank(self):
        return self.number(1)

    def local_rank(self):
        return self.number(2)

    def node_rank(self):
        return self.number(3)

    def number(self, index):
        text = os.environ["LISTED"].split(",")[index:] or ["(none)"]
        if not text[0].isdecimal():
            raise ConfigurationError(f"LISTED must hold numbers, and has {text[0]!r}")
        return int(text[0])


class ListedSuite(EnvironmentSuite):
    name = "listed"
    variables = {"LISTED": "4,3,1,1,2345"}  # noqa: RUF012
    expected = {  # noqa: RUF012
        "world_size": 4,
        "global_rank": 3,
        "local_rank": 1,
        "node_rank": 1,
        "main_address": "node0",
        "main_port": 2345,
    }
    numbers = ("LISTED",)


class IsEverywhere(Listed):
    @staticmethod
    def detect():
        return True


class CountsFromOne(Listed):
    def global_rank(self):
        return super().global_rank() + 1


class FailsAnyhow(Listed):
    def number(self, index):
        return int(os.environ["LISTED"].split(",")[index])


class CleansTooMuch(Listed):
    def teardown(self):
        del os.environ["LISTED"]


ENVIRONMENTS = [
    (IsEverywhere, "test_outside_it_is_not_detected", "assert True is False"),
    (CountsFromOne, "test_it_says_where_the_process_stands", "'global_rank': 4"),
    (FailsAnyhow, "test_text_in_place_of_a_number_is_an_error_that_names_it", "invalid literal"),
    (CleansTooMuch, "test_teardown_leaves_the_variables_as_they_were", "LISTED"),
]


@pytest.mark.parametrize(("part", "test", "message"), ENVIRONMENTS, ids=lambda value: getattr(value, "__name__", None))
def test_broken_environments(tmp_path, monkeypatch, part, test, message):
    given: dict[str, Any] = {"tmp_path": tmp_path, "monkeypatch": monkeypatch, "inside": None}
    wanted = inspect.signature(getattr(EnvironmentSuite, test)).parameters
    if "inside" in wanted:
        monkeypatch.setenv("LISTED", ListedSuite.variables["LISTED"])
    arguments = {name: given[name] for name in given if name in wanted}
    getattr(type("Sound", (ListedSuite,), {"make": lambda self, folder: Listed()})(), test)(**arguments)
    fails(ListedSuite, test, message, lambda folder: part(), **arguments)


# ---- Exporters and strategies: used by name, in processes of their own


EXPORTER = """
@hookimpl
def register(registry):
    registry.exporter("broken", "{module}_part:Broken", summary="an exporter with a defect")
    registry.strategy("broken", "{module}_part:BrokenStrategy", summary="a strategy with a defect")
"""

WRITES = """
from pathlib import Path
import torch
from fulmen import Exporter

class Broken(Exporter):
    def export(self, module, path, input_sample=None, **options):
        {before}
        if path is not None:
            {write}
        return Path(path) if path else object()
"""
SAVE = "Path(path).write_bytes(__import__('pickle').dumps([p.detach().numpy() for p in module.parameters()]))"


class WeightsSuite(ExporterSuite):
    name = "broken"
    suffix = ".pickle"

    def make(self, folder):
        raise NotImplementedError

    def run(self, path, x):
        import pickle

        first, bias, second, last = (torch.from_numpy(each) for each in pickle.loads(path.read_bytes()))
        return torch.tanh(x @ first.T + bias) @ second.T + last


EXPORTERS = [
    ("pass", "Path(path).write_bytes(b'')", "test_the_file_computes_what_the_module_computes", "Ran out of input"),
    ("module.net[0].weight.data.add_(1)", SAVE, "test_the_module_is_left_as_it_was", "assert"),
    ("module.net[0].requires_grad_(True)", SAVE, "test_the_module_is_left_as_it_was", "assert"),
    ("torch.set_default_dtype(torch.float64)", SAVE, "test_the_module_is_left_as_it_was", "default dtype"),
    ("pass", SAVE, "test_without_a_sample_it_says_how_to_give_one", "DID NOT RAISE"),
    ("pass", SAVE, "test_an_unknown_option_is_an_error", "DID NOT RAISE"),
    ("pass", SAVE, "test_a_full_disk_is_an_error_and_leaves_the_earlier_file", "assert"),
    ("pass", "open('/dev/null', 'wb')", "test_text_is_a_path_and_the_example_input_a_sample", "No such file"),
]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("_default_dtype")
@pytest.mark.parametrize(("before", "write", "test", "message"), EXPORTERS)
def test_broken_exporters(site, tmp_path, before, write, test, message):
    site.install("third-party", EXPORTER.format(module="third_party"))
    (site.packages / "third_party_part.py").write_text(WRITES.format(before=before, write=write))
    site.modules.add("third_party_part")
    (tmp_path / "here").mkdir()
    fails(WeightsSuite, test, message, tmp_path=tmp_path / "here")


STRATEGY = """
from fulmen.builtin.single_device import SingleDevice

class BrokenStrategy(SingleDevice):
    name = "broken"
    {defect}
"""


class BrokenStrategySuite(StrategySuite):
    name = "broken"


STRATEGIES = [
    ("def all_reduce(self, tensor, op='sum'): return tensor * 2", "test_ranks_and_collectives", "reduced|assert"),
    ("def all_gather(self, tensor): return tensor", "test_ranks_and_collectives", "assert"),
    ("def agree(self, flags): return 0", "test_ranks_and_collectives", "assert"),
    ("global_rank = 1", "test_ranks_and_collectives", "ranks that reported"),
    ("def clip_grad_norm(self, parameters, max_norm): return None", "test_it_learns_what_one_process_learns", "not close"),
    (
        "def module_state(self, module): return {'module.' + k: v for k, v in module.state_dict().items()}",
        "test_it_learns_what_one_process_learns",
        "keys of the module's state",
    ),
    (
        "def optimizer_state(self, optimizer): return {**optimizer.state_dict(), 'state': {}}",
        "test_a_training_that_was_cut_and_resumed_equals_one_that_was_not",
        "assert False",
    ),
    (
        "def setup_environment(self): import atexit, os; atexit.register(os._exit, 0)",
        "test_a_rank_that_fails_ends_the_job",
        "assert",
    ),
]


@pytest.mark.parametrize(("defect", "test", "message"), STRATEGIES)
def test_broken_strategies(site, tmp_path, defect, test, message):
    site.install("third-party", EXPORTER.format(module="third_party"))
    (site.packages / "third_party_part.py").write_text(STRATEGY.format(defect=defect))
    site.modules.add("third_party_part")
    (tmp_path / "here").mkdir()
    options = {"options": {"gradient_clip_val": 0.05}} if "learns" in test else {}
    fails(BrokenStrategySuite, test, message, tmp_path=tmp_path / "here", **options)
