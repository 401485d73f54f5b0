"""Trainings whose event files are read back."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import fulmen_tensorboard
import pytest
import torch
from eventfiles import events, read, scalars
from tensorboard.plugins.hparams import plugin_data_pb2

from fulmen import Callback, ConfigurationError, FulmenWarning
from fulmen.loggers import TensorBoardLogger
from fulmen.testing import FailingModule, Failure, RecordingLogger, Validated, batches, quiet


def fit(logger, module=None, ckpt_path=None, **options):
    trainer = quiet(**{"max_epochs": 2, "log_every_n_steps": 1, "logger": logger, **options})
    trainer.fit(module or Validated(), batches(8), batches(2), ckpt_path=ckpt_path)
    return trainer


def files(folder, word="tfevents") -> list[str]:
    return sorted(path.name for path in Path(folder).rglob(f"*{word}*"))


def session(folder, part):
    """The record for the HPARAMS page that is called ``part``; ``None``: there is none."""
    found = read(folder).summary_metadata.get(f"_hparams_/{part}")
    return found and getattr(plugin_data_pb2.HParamsPluginData.FromString(found.plugin_data.content), part)


# ---- What arrives


def test_a_training_leaves_metrics_parameters_and_options():
    module, logger = Validated(), TensorBoardLogger("logs", name="digits")
    fit(logger, module)
    folder = Path("logs/digits/version_0")
    assert (logger.name, logger.version, logger.save_dir, logger.log_dir) == ("digits", 0, "logs", str(folder))
    assert scalars(folder, "train_loss_step") == [(step, pytest.approx(loss)) for step, loss in enumerate(module.losses)]
    assert [step for step, _ in scalars(folder, "val_loss")] == [7, 15]
    assert {(step, epoch) for step, epoch in scalars(folder, "epoch")} == {(step, step // 8) for step in range(16)}
    assert json.loads((folder / "hparams.yaml").read_text()) == {"lr": 0.1}
    assert json.loads((folder / "config.json").read_text())["options"]["max_epochs"] == 2
    assert len(files(folder)) == 1


def test_the_package_has_both_names():
    assert fulmen_tensorboard.TensorBoardLogger is TensorBoardLogger
    assert fulmen_tensorboard.HistogramMonitor.__name__ == "HistogramMonitor"


def test_by_name_it_writes_under_the_root_folder(tmp_path):
    trainer = fit("tensorboard?prefix=a", default_root_dir=tmp_path / "root", enable_checkpointing=True)
    folder = tmp_path / "root" / "fulmen_logs" / "version_0"
    assert Path(trainer.log_dir) == folder
    assert (len(scalars(folder, "a-train_loss_step")), len(scalars(folder, "epoch"))) == (16, 20)
    assert [path.name for path in Path(folder, "checkpoints").iterdir()] == ["epoch=1-step=16.ckpt"]


def test_the_placeholder_has_the_prefix_of_what_replaces_it():
    logger = TensorBoardLogger("logs", version=0, prefix="run")
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"hp_metric": 0.5}, 3)
    logger.log_hyperparams({"lr": 0.1}, {"acc": 0.25}, 4)
    logger.finalize("success")
    assert scalars(logger.log_dir, "run-hp_metric") == [(0, -1.0), (3, 0.5)]
    assert scalars(logger.log_dir, "run-acc") == [(4, 0.25)]
    assert "hp_metric" not in read(logger.log_dir).Tags()["scalars"]


def test_a_mapping_of_values_is_a_scalar_for_each():
    logger = TensorBoardLogger("logs", version=0, prefix="run")
    logger.log_metrics({"loss": {"train": 1.0, "val": 2.0}}, 3)
    logger.finalize("success")
    assert scalars(logger.log_dir, "run-loss/train") + scalars(logger.log_dir, "run-loss/val") == [(3, 1.0), (3, 2.0)]


@pytest.mark.parametrize("name", [None, ""])
def test_without_a_name_there_is_one_level_less(name):
    logger = TensorBoardLogger("logs", name=name, version="mine")
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert (logger.name, logger.root_dir) == (None, "logs")
    assert scalars("logs/mine", "a") == [(0, 1.0)]


def test_versions_count_on_and_given_ones_are_continued():
    for _ in range(2):
        fit(TensorBoardLogger("logs"), max_epochs=1)
    first = TensorBoardLogger("logs", version=0)
    first.log_metrics({"more": 1.0}, 99)
    first.finalize("success")
    assert scalars("logs/fulmen_logs/version_0", "more") == [(99, 1.0)]
    assert len(scalars("logs/fulmen_logs/version_0", "train_loss_step")) == 8
    assert sorted(os.listdir("logs/fulmen_logs")) == ["version_0", "version_1"]


def test_a_number_that_another_process_took_is_left_to_it():
    first, second = TensorBoardLogger(), TensorBoardLogger()
    assert (first.version, second.version) == (0, 0)
    for logger in (first, second):
        logger.log_metrics({"a": 1.0}, 0)
        logger.finalize("success")
    assert (first.version, second.version) == (0, 1)


def test_a_sub_dir_holds_the_events_and_nothing_else():
    logger = TensorBoardLogger("logs", sub_dir="train", filename_suffix=".gpu0")
    trainer = fit(logger, enable_checkpointing=True)
    folder = Path("logs/fulmen_logs/version_0")
    assert len(scalars(folder / "train", "val_loss")) == 2
    assert [name.endswith(".gpu0") for name in files(folder)] == [True]
    assert sorted(os.listdir(folder)) == ["checkpoints", "config.json", "hparams.yaml", "train"]
    assert trainer.log_dir == str(folder)


def test_values_that_are_no_numbers_of_this_world():
    logger = TensorBoardLogger()
    logger.log_metrics({"nan": math.nan, "inf": -math.inf, "big": 1e300, "tensor": torch.tensor(2.5)}, 3)
    logger.finalize("success")
    assert math.isnan(scalars(logger.log_dir, "nan")[0][1])
    assert [scalars(logger.log_dir, name) for name in ("inf", "big", "tensor")] == [
        [(3, -math.inf)],
        [(3, math.inf)],
        [(3, 2.5)],
    ]


def test_fast_dev_run_writes_nothing(tmp_path):
    fit(TensorBoardLogger(log_graph=True), fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


# ---- When it is written


def test_what_waits_is_written_when_it_is_much():
    logger = TensorBoardLogger(max_queue=3, flush_secs=1000)
    seen = []
    for step in range(9):
        logger.log_metrics({"a": 1.0}, step)
        seen.append(len(scalars(logger.log_dir, "a")) if read(logger.log_dir).Tags()["scalars"] else 0)
    logger.finalize("success")
    assert seen == [0, 0, 0, 4, 4, 4, 4, 8, 8]
    assert len(scalars(logger.log_dir, "a")) == 9


def test_what_waits_is_written_when_it_is_old():
    logger = TensorBoardLogger(max_queue=1000, flush_secs=0)
    logger.log_metrics({"a": 1.0}, 0)
    assert scalars(logger.log_dir, "a") == [(0, 1.0)]
    logger.finalize("success")


def test_rows_wait_until_they_are_old():
    logger = TensorBoardLogger(flush_secs=1000)
    logger.log_metrics({"a": 1.0}, 0)
    assert read(logger.log_dir).Tags()["scalars"] == []
    logger.save()
    assert scalars(logger.log_dir, "a") == [(0, 1.0)]
    logger.finalize("success")


def test_what_is_logged_by_hand_after_the_end_arrives_when_the_process_ends(tmp_path):
    code = "from fulmen.loggers import TensorBoardLogger as T; l = T('logs'); l.log_metrics({'a': 1.0}, 4)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert scalars("logs/fulmen_logs/version_0", "a") == [(4, 1.0)]


def test_rows_that_a_full_disk_refused_are_written_when_there_is_room_again():
    from fulmen.testing.conformance.measure import full_disk

    logger = TensorBoardLogger(max_queue=1)
    logger.log_metrics({"a": 0.0}, 0)
    with full_disk():
        with pytest.raises(OSError, match="File too large"):
            logger.log_metrics({"a": 1.0}, 1)
        with pytest.raises(OSError, match="File too large"):
            logger.finalize("success")
    logger.log_metrics({"a": 2.0}, 2)
    logger.finalize("success")
    assert scalars(logger.log_dir, "a") == [(0, 0.0), (1, 1.0), (2, 2.0)]


# ---- How a run ends


ENDS = {"success": 1, "failed": 2, "interrupted": 0}


@pytest.mark.parametrize(("status", "expected"), ENDS.items())
def test_the_page_says_how_a_run_ended(status, expected):
    logger = TensorBoardLogger()
    logger.log_hyperparams({"lr": 0.1})
    logger.finalize(status)
    assert session(logger.log_dir, "session_end_info").status == expected


def test_a_training_that_fails_is_closed_with_all_its_rows():
    logger, recorder = TensorBoardLogger(), RecordingLogger()
    with pytest.raises(Failure):
        fit([logger, recorder], FailingModule(at=5))
    assert len(scalars(logger.log_dir, "epoch")) == len(recorder.rows) == 5
    assert session(logger.log_dir, "session_end_info").status == ENDS["failed"]


SIGNALLED = """
import os, sys
from fulmen import Callback
from fulmen.loggers import TensorBoardLogger
from fulmen.testing import Validated, batches, quiet

class Signal(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 4:
            os.kill(os.getpid(), int(sys.argv[1]))

trainer = quiet(max_epochs=2, log_every_n_steps=1, logger=TensorBoardLogger(), callbacks=[Signal()])
trainer.fit(Validated(), batches(8), batches(2))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_all_rows(number):
    done = subprocess.run([sys.executable, "-c", SIGNALLED, str(int(number))], timeout=120)
    assert done.returncode == {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 0}[number]
    folder = "fulmen_logs/version_0"
    assert [step for step, _ in scalars(folder, "train_loss_step")] == [0, 1, 2, 3, 4]
    assert session(folder, "session_end_info").status == ENDS["interrupted"]


def test_of_two_fits_the_page_shows_how_the_second_ended():
    logger = TensorBoardLogger()
    fit(logger)
    with pytest.raises(Failure):
        fit(logger, callbacks=[Stop(-1, 3)])
    assert session(logger.log_dir, "session_end_info").status == ENDS["failed"]
    assert len(files(logger.log_dir)) == 2


# ---- Hyper-parameters


def test_parameters_of_any_kind():
    logger = TensorBoardLogger()
    logger.log_hyperparams({"lr": 1e-5, "net": {"sizes": [64, 10], "act": torch.nn.ReLU}, "fast": True, "none": None, "é": "ü"})
    logger.finalize("success")
    found = session(logger.log_dir, "session_start_info").hparams
    texts = {"net/sizes": "[64, 10]", "net/act": "torch.nn.modules.activation.ReLU", "none": "None", "é": "ü"}
    assert {name: found[name].string_value for name in texts} == texts
    assert (found["lr"].number_value, found["fast"].bool_value) == (1e-5, True)
    assert json.loads(Path(logger.log_dir, "hparams.yaml").read_text())["net"]["sizes"] == [64, 10]


@pytest.mark.parametrize(("default_hp_metric", "expected"), [(True, [(0, -1.0)]), (False, None)])
def test_the_placeholder_of_a_metric(default_hp_metric, expected):
    logger = TensorBoardLogger(default_hp_metric=default_hp_metric)
    fit(logger)
    found = scalars(logger.log_dir, "hp_metric") if "hp_metric" in read(logger.log_dir).Tags()["scalars"] else None
    assert found == expected
    assert len(files(logger.log_dir)) == 1  # and no run of its own


def test_metrics_that_come_with_parameters_take_the_place_of_the_placeholder():
    logger = TensorBoardLogger()
    logger.log_hyperparams({"lr": 0.1}, {"accuracy": 0.75}, step=4)
    logger.finalize("success")
    assert scalars(logger.log_dir, "accuracy") == [(4, 0.75)]
    assert read(logger.log_dir).Tags()["scalars"] == ["accuracy"]


def test_other_parameters_in_a_later_fit_are_in_the_file_with_a_warning():
    logger = TensorBoardLogger()
    fit(logger)
    with pytest.warns(FulmenWarning) as caught:
        fit(logger, Validated(lr=0.5))
    path = Path(logger.log_dir, "hparams.yaml")
    assert str(caught[0].message) == (
        f"[tensorboard-hparams] TensorBoard shows the first hyper-parameters of a run; the newest are in {path}"
    )
    assert json.loads(path.read_text()) == {"lr": 0.5}
    assert session(logger.log_dir, "session_start_info").hparams["lr"].number_value == 0.1


# ---- Graph


class Drawn(Validated):
    def __init__(self, example):
        super().__init__()
        self.example_input_array = example


class ByName(Drawn):
    def forward(self, scale, x):
        return self.net(x) * scale


@pytest.mark.parametrize(
    "module",
    [
        lambda: Drawn(torch.ones(2, 3)),
        lambda: Drawn((torch.ones(2, 3),)),
        lambda: ByName({"x": torch.ones(2, 3), "scale": torch.ones(1)}),
    ],
)
def test_the_graph_of_a_training(module):
    module, logger = module(), TensorBoardLogger(log_graph=True)
    state, random = {name: value.clone() for name, value in module.state_dict().items()}, torch.get_rng_state()
    logger.log_graph(module)
    assert module.net.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in state.items())
    fit(logger, module)
    names = [node.op for node in read(logger.log_dir).Graph().node]
    assert "aten::linear" in names and "aten::tanh" in names
    path = next(Path(logger.log_dir).glob("*tfevents*"))
    assert sum(bool(event.graph_def) for event in events(path)) == 1


def test_no_graph_without_being_asked():
    logger = TensorBoardLogger()
    fit(logger, Drawn(torch.ones(2, 3)))
    assert read(logger.log_dir).Tags()["graph"] is False


def test_a_graph_without_an_example_is_a_warning():
    with pytest.warns(FulmenWarning) as caught:
        fit(TensorBoardLogger(log_graph=True))
    assert str(caught[0].message) == (
        "[tensorboard-no-graph] log_graph=True, and Validated has no example_input_array: no graph is written. "
        "Set self.example_input_array in its __init__"
    )


def test_a_graph_that_cannot_be_traced_stops_no_training():
    with pytest.warns(FulmenWarning, match=r"\[logger-failed\] TensorBoardLogger: RuntimeError"):
        trainer = fit(TensorBoardLogger(log_graph=True), Drawn(torch.ones(2, 7)))
    assert trainer.global_step == 16


# ---- Images and the like


def test_images_figures_sounds_texts_and_distributions():
    from matplotlib.figure import Figure

    logger = TensorBoardLogger()
    logger.log_metrics({"a": 1.0}, 7)
    logger.log_image("one", torch.rand(3, 8, 6))
    logger.log_image("other", torch.randint(0, 255, (8, 6), dtype=torch.uint8), step=2, dataformats="HW")
    logger.log_image("many", torch.rand(4, 3, 8, 8), dataformats="NCHW")
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([1, 2])
    logger.log_figure("figure", figure)
    logger.log_audio("sound", torch.zeros(1, 100), sample_rate=8000)
    logger.log_text("words", "**hello**")
    logger.log_histogram("values", torch.arange(10.0))
    logger.experiment.add_scalar("by hand", 2.0, 8)
    logger.finalize("success")
    found = read(logger.log_dir)
    sizes = {name: [(each.step, each.width, each.height) for each in found.Images(name)] for name in found.Tags()["images"]}
    assert sizes == {"one": [(7, 6, 8)], "other": [(2, 6, 8)], "many": [(7, 32, 8)], "figure": [(7, 100, 50)]}
    (sound,) = found.Audio("sound")
    assert (sound.step, sound.sample_rate, sound.length_frames) == (7, 8000.0, 100)
    (words,) = found.Tensors("words/text_summary")
    assert (words.step, words.tensor_proto.string_val) == (7, [b"**hello**"])
    (values,) = found.Histograms("values")
    assert (values.step, values.histogram_value.num, values.histogram_value.max) == (7, 10.0, 9.0)
    assert scalars(logger.log_dir, "by hand") == [(8, 2.0)]


def test_a_figure_may_stay_open():
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    logger = TensorBoardLogger()
    try:
        logger.log_figure("kept", plt.figure(num=1), close=False)
        logger.log_figure("closed", plt.figure(num=2))
        assert plt.get_fignums() == [1]
    finally:
        plt.close("all")
        logger.finalize("success")


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_other_ranks_write_nothing(variable, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, "1")
    logger = TensorBoardLogger()
    logger.log_image("one", torch.rand(3, 8, 6))
    logger.log_text("words", "hello")
    logger.experiment.add_scalar("a", 1.0, 0)
    logger.save()
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


RANKS = """
import os, sys, torch.distributed as dist
from fulmen.loggers import TensorBoardLogger
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
logger = TensorBoardLogger(f"logs{rank}")
logger.log_text("words", "hello")
logger.finalize("success")
dist.barrier()
dist.destroy_process_group()
"""


def test_of_several_processes_one_writes(tmp_path):
    ranks = [subprocess.Popen([sys.executable, "-c", RANKS, str(rank), str(tmp_path / "meet")]) for rank in range(2)]
    try:
        assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    assert (len(files(tmp_path / "logs0")), files(tmp_path / "logs1")) == (1, [])


# ---- Resume


class Stop(Callback):
    """Saves after some batch, and fails some batches later."""

    def __init__(self, save, fail, runs_last=True):
        self.save, self.fail, self.runs_last = save, fail, runs_last

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == self.save:
            trainer.save_checkpoint("cut.ckpt")
        if trainer.progress.batches == self.fail:
            raise Failure


def cut(runs_last=True, **options):
    with pytest.raises(Failure):
        fit(TensorBoardLogger("logs", **options), Drawn(torch.ones(2, 3)), callbacks=[Stop(11, 14, runs_last)])


@pytest.mark.parametrize("runs_last", [False, True])
def test_a_run_that_continues_has_each_row_once(runs_last):
    torch.manual_seed(1)
    recorder = RecordingLogger()
    fit([TensorBoardLogger("whole"), recorder])
    torch.manual_seed(1)
    cut(runs_last, log_graph=True)
    logger = TensorBoardLogger("logs", log_graph=True)
    fit(logger, Drawn(torch.ones(2, 3)), ckpt_path="cut.ckpt")
    folder = "logs/fulmen_logs/version_0"
    assert logger.log_dir == folder
    for tag in ("train_loss_step", "train_loss_epoch", "val_loss", "epoch"):
        assert scalars(folder, tag) == scalars("whole/fulmen_logs/version_0", tag)
    assert len(scalars(folder, "train_loss_step")) == 16
    assert scalars(folder, "hp_metric") == [(0, -1.0)]
    assert session(folder, "session_end_info").status == ENDS["success"]
    found = [event for name in files(folder) for event in events(Path(folder, name))]
    assert sum(bool(event.graph_def) for event in found) == 1
    starts = [event.step for event in found if event.WhichOneof("what") == "session_log"]
    assert starts == [0, 10 + runs_last]  # a TensorBoard that has read the rows from there on forgets them


def test_what_is_cut_off_is_kept_in_a_file_of_its_own():
    cut()
    fit(TensorBoardLogger("logs"), Drawn(torch.ones(2, 3)), ckpt_path="cut.ckpt")
    (name,) = files("logs", "discarded")
    steps = [event.step for event in events(Path("logs/fulmen_logs/version_0", name)) if event.HasField("summary")]
    assert steps == [11, 12, 13, 0]  # 0: how the run ended
    cut_again = TensorBoardLogger("logs")
    fit(cut_again, Drawn(torch.ones(2, 3)), ckpt_path="cut.ckpt")
    assert len(files("logs", "discarded")) == 2
    assert len(scalars(cut_again.log_dir, "train_loss_step")) == 16


def test_a_checkpoint_that_is_saved_after_the_end_is_one_of_a_run_that_has_not_ended():
    trainer = fit(TensorBoardLogger("logs"))
    trainer.save_checkpoint("end.ckpt")
    with pytest.raises(Failure):
        fit(TensorBoardLogger("logs"), max_epochs=4, ckpt_path="end.ckpt", callbacks=[Stop(-1, 20)])
    assert session("logs/fulmen_logs/version_0", "session_end_info").status == ENDS["failed"]
    assert len(scalars("logs/fulmen_logs/version_0", "train_loss_step")) == 20


def test_another_version_starts_a_record_of_its_own():
    cut()
    logger = TensorBoardLogger("logs", version="other")
    fit(logger, Drawn(torch.ones(2, 3)), ckpt_path="cut.ckpt")
    assert [step for step, _ in scalars(logger.log_dir, "train_loss_step")] == [11, 12, 13, 14, 15]
    assert [step for step, _ in scalars("logs/fulmen_logs/version_0", "train_loss_step")] == list(range(14))


def test_a_folder_that_is_gone_is_a_warning():
    cut()
    with pytest.warns(FulmenWarning) as caught:
        fit(TensorBoardLogger("new"), Drawn(torch.ones(2, 3)), ckpt_path="cut.ckpt")
    assert str(caught[0].message) == (
        f"[tensorboard-moved] the checkpoint continues the event files in {Path('new/fulmen_logs/version_0')}, which does not "
        f"exist; they go on in {Path('new/fulmen_logs/version_0')}, without the earlier rows. To continue them, give the "
        "logger the save_dir and name it had"
    )
    assert len(scalars("new/fulmen_logs/version_0", "train_loss_step")) == 5


def test_a_folder_of_another_run_is_left_alone():
    cut()
    fit(TensorBoardLogger("other"))
    with pytest.warns(FulmenWarning, match="which holds another run"):
        fit(TensorBoardLogger("other"), Drawn(torch.ones(2, 3)), ckpt_path="cut.ckpt")
    assert len(scalars("other/fulmen_logs/version_0", "train_loss_step")) == 16
    assert len(scalars("other/fulmen_logs/version_1", "train_loss_step")) == 5


def test_an_experiment_of_another_name_is_left_alone():
    cut()
    Path("logs/other/version_0").mkdir(parents=True)
    with pytest.warns(FulmenWarning, match="an experiment of another name than 'fulmen_logs'"):
        fit(TensorBoardLogger("logs", name="other"), Drawn(torch.ones(2, 3)), ckpt_path="cut.ckpt")


def test_event_files_that_are_gone_are_a_warning():
    cut()
    for path in Path("logs").rglob("*tfevents*"):
        path.unlink()
    with pytest.warns(FulmenWarning, match=r"\[tensorboard-missing\] rows of this run are gone: events\.out\.tfevents"):
        fit(TensorBoardLogger("logs"), Drawn(torch.ones(2, 3)), ckpt_path="cut.ckpt")
    assert len(scalars("logs/fulmen_logs/version_0", "train_loss_step")) == 5


def test_runs_inside_the_run_are_cut_back_too():
    logger = TensorBoardLogger("logs")
    logger.experiment.add_scalars("pair", {"a": 1.0, "b": 2.0}, 0)
    logger.log_metrics({"x": 1.0}, 0)
    state = logger.state_dict()
    logger.experiment.add_scalars("pair", {"a": 3.0, "b": 4.0}, 1)
    logger.finalize("failed")
    again = TensorBoardLogger("logs")
    again.load_state_dict(state)
    again.experiment.add_scalars("pair", {"a": 5.0, "b": 6.0}, 1)
    again.finalize("success")
    assert scalars(f"{again.log_dir}/pair_a", "pair") == [(0, 1.0), (1, 5.0)]


def test_it_can_be_sent_while_it_is_open():
    logger = TensorBoardLogger("logs")
    logger.log_metrics({"a": 1.0}, 0)
    other = pickle.loads(pickle.dumps(logger))
    other.log_metrics({"a": 2.0}, 1)
    for each in (logger, other):
        each.finalize("success")
    assert scalars(logger.log_dir, "a") == [(0, 1.0), (1, 2.0)]


# ---- Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"save_dir": "s3://bucket/logs"},
            "TensorBoardLogger cannot write to save_dir='s3://bucket/logs': event files need a local disk. Give it a local "
            "folder, as in Trainer(logger=TensorBoardLogger('logs')), and copy that folder when the run is over",
        ),
        ({"version": -1}, "version=-1 is not allowed; allowed: a number from 0, the name of a folder, or None"),
        ({"version": ""}, "version='' is not allowed; allowed: a number from 0, the name of a folder, or None"),
        ({"max_queue": 0}, "max_queue=0 is not allowed; allowed: a whole number from 1"),
        ({"flush_secs": -1}, "flush_secs=-1 is not allowed; allowed: seconds from 0"),
    ],
)
def test_arguments_that_cannot_work(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        TensorBoardLogger(**arguments)
    assert str(caught.value) == message
