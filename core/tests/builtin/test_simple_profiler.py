from __future__ import annotations

import pickle
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.builtin.simple_profiler import SimpleProfiler
from fulmen.contracts.module import Module
from fulmen.errors import ConfigurationError
from fulmen.trainer import Trainer


class Model(Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).square().mean()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.layer(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(profiler: Any) -> Trainer:
    trainer = Trainer(
        profiler=profiler, max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    data = DataLoader[Any](torch.ones(6, 4), batch_size=2)  # type: ignore[arg-type]
    model = Model()
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    return trainer


def test_actions_of_a_run_are_counted_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = run("simple")
    assert isinstance(trainer.profiler, SimpleProfiler)
    assert {name: trainer.profiler.actions[name].calls for name in ("training_step", "optimizer_step", "test_step")} == {
        "training_step": 6, "optimizer_step": 6, "test_step": 3,
    }  # fmt: skip
    after_fit, after_test = re.split(r"^profile of .* s$", capsys.readouterr().err, flags=re.MULTILINE)[1:]
    assert re.search(r"^training_step +6 +\d+\.\d{3} +\d+\.\d{3} +\d+\.\d%$", after_fit, re.MULTILINE)
    assert "test_step" not in after_fit and re.search(r"^test_step +3 ", after_test, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"dirpath": "a/b", "filename": "p.txt"}, "a/b/p.txt"),
        ({"dirpath": "a"}, "a/profile.txt"),
        ({"filename": "p.txt"}, "p.txt"),
    ],
)
def test_the_table_can_go_to_a_file(
    arguments: Any, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(SimpleProfiler(**arguments))
    text = (tmp_path / path).read_text()
    assert text.count("profile of") == 1 and "training_step" in text and "test_step" in text
    assert capsys.readouterr().err == ""


def test_durations_and_order() -> None:
    profiler = SimpleProfiler()
    for seconds in (0.01, 0.03):
        with profiler.profile("sleep"):
            time.sleep(seconds)
    with profiler.profile("short"):
        pass
    lines = profiler.summary().splitlines()
    assert lines[1].split() == ["action", "calls", "mean", "ms", "total", "s", "share"]
    assert [line.split()[0] for line in lines[3:]] == ["sleep", "short"]
    assert profiler.actions["sleep"].seconds >= 0.04
    calls, mean, total, share = lines[3].split()[1:]
    assert calls == "2" and float(mean) >= 20 and float(total) >= 0.04 and 0 < float(share.rstrip("%")) <= 100


def test_an_action_inside_itself_and_one_that_has_not_ended() -> None:
    profiler = SimpleProfiler()
    with profiler.profile("outer"), profiler.profile("again"), profiler.profile("again"):
        assert profiler.actions == {}
    actions = profiler.actions
    assert {name: action.calls for name, action in actions.items()} == {"again": 2, "outer": 1}
    assert 0 < actions["again"].seconds <= 2 * actions["outer"].seconds


def test_a_failed_action_ends() -> None:
    profiler = SimpleProfiler()
    with pytest.raises(ZeroDivisionError):
        profiler.wrap("division", lambda: 1 / 0)()
    assert profiler.actions["division"].calls == 1


def test_threads_do_not_mix_their_actions() -> None:
    profiler, barrier = SimpleProfiler(), threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        for _ in range(500):
            with profiler.profile("work"):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert profiler.actions["work"].calls == 2000


def test_stop_without_start() -> None:
    with pytest.raises(ConfigurationError) as caught:
        SimpleProfiler().stop("x")
    assert str(caught.value) == "profiler.stop('x') without profiler.start('x') before it in this thread"


def test_nothing_measured_is_an_empty_table() -> None:
    assert SimpleProfiler().summary() == (
        "profile of 0.000 s\naction  calls  mean ms  total s  share\n------  -----  -------  -------  -----"
    )


def test_a_profiler_travels_to_another_process() -> None:
    profiler = SimpleProfiler()
    with profiler.profile("x"):
        pass
    assert pickle.loads(pickle.dumps(profiler)).actions["x"].calls == 1
