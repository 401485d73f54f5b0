from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.builtin.console import Activity, Bars, ConsoleProgress, Lines, in_notebook, make_display, metrics_text
from fulmen.builtin.single_device import SingleDevice
from fulmen.contracts.callback import Callback
from fulmen.contracts.module import Module
from fulmen.errors import ConfigurationError, FulmenWarning
from fulmen.hooks import overrides
from fulmen.trainer import Trainer

pty = pytest.importorskip("pty", reason="needs pseudo-terminals")
tqdm = pytest.importorskip("tqdm", reason="draws the bars")


class Model(Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).square().mean()
        self.log("train_loss", loss * 0 + 0.125, prog_bar=True)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", 0.25, prog_bar=True)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.layer(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Validated(Model):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 0.5, prog_bar=True)


def loader(batches: int = 8) -> DataLoader[Any]:
    return DataLoader(torch.ones(2 * batches, 4), batch_size=2)  # type: ignore[arg-type]


def make_trainer(bar: ConsoleProgress | None = None, *callbacks: Callback, **options: Any) -> Trainer:
    found = [*([bar] if bar is not None else []), *callbacks]
    settings = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "enable_model_summary": False, **options}
    return Trainer(callbacks=found, **settings)


# ---- Terminals and pipes


class Reader:
    """Reads the other end of a descriptor until it is closed."""

    def __init__(self, descriptor: int) -> None:
        self.raw = b""
        self._descriptor = descriptor
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._descriptor, 65536)
            except OSError:  # how a terminal ends on Linux
                return
            if not data:
                return
            self.raw += data

    def text(self) -> str:
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()
        return self.raw.decode()


def screens(text: str) -> list[list[str]]:
    """What a terminal shows, each time the cursor comes back up, and at the end."""
    lines, row, column, found = [""], 0, 0, []
    for token in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+|\x1b.", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\x1b[A":
            found.append([line.rstrip() for line in lines])
            row -= 1
        else:
            assert "\x1b" not in token, token
            lines[row] = lines[row].ljust(column)[:column] + token + lines[row][column + len(token) :]
            column += len(token)
    return [*found, [line.rstrip() for line in lines]]


def final(text: str) -> list[str]:
    return [line for line in screens(text)[-1] if line]


class Output:
    """Stands for stdout and stderr, as one terminal or pipe."""

    def __init__(self, terminal: bool, read: bool = True) -> None:
        ours, theirs = pty.openpty() if terminal else os.pipe()
        if terminal:
            import fcntl
            import struct
            import termios

            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.ours, self.file = ours, open(theirs, "w", buffering=1)  # noqa: SIM115 - closed by text()
        self.reader = Reader(ours) if read else None

    def begin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Called in the test itself: pytest sets its own streams after the fixtures."""
        monkeypatch.setattr(sys, "stderr", self.file)
        monkeypatch.setattr(sys, "stdout", self.file)
        monkeypatch.setenv("TERM", "xterm")

    def text(self) -> str:
        self.file.close()
        assert self.reader is not None
        return self.reader.text()


@pytest.fixture
def terminal() -> Iterator[Output]:
    output = Output(terminal=True)
    yield output
    output.text()


@pytest.fixture
def pipe() -> Iterator[Output]:
    output = Output(terminal=False)
    yield output
    output.text()


# ---- On a terminal


def test_a_terminal_shows_one_bar_that_stays_at_the_end(terminal: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)
    make_trainer(ConsoleProgress(refresh_seconds=1e-9)).fit(Validated(), loader(), loader(3))
    text = terminal.text()
    (line,) = final(text)
    assert re.fullmatch(r"Epoch 2/2: 100%\|█+\| 8/8 \[00:00<00:00, [\d.]+batch/s, train_loss=0.125, val_loss=0.5\]", line)
    assert len(line) <= 100
    assert text.endswith("\n")
    drawn = "\n".join("\n".join(screen) for screen in screens(text))
    assert "Epoch 1/2:" in text and "Sanity check" in text and "Validation:" in drawn


def test_a_validation_has_a_bar_below_the_epoch(terminal: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)
    make_trainer(ConsoleProgress(refresh_seconds=1e-9)).fit(Validated(), loader(), loader(3))
    pairs = [(above, below) for screen in screens(terminal.text()) for above, below in pairwise(screen)]
    assert any(a.startswith("Epoch 2/2: 100%") and re.search(r"^Validation:  67%.* 2/3 ", b) for a, b in pairs)


def test_the_bar_moves_with_the_batches(terminal: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)
    make_trainer(ConsoleProgress(refresh_seconds=1e-9), max_epochs=1).fit(Model(), loader())
    text = terminal.text()
    assert [int(n) for n in re.findall(r"\| (\d)/8 \[", text)] == sorted(int(n) for n in re.findall(r"\| (\d)/8 \[", text))
    assert {int(n) for n in re.findall(r"\| (\d)/8 \[", text)} == set(range(9))


def test_nothing_is_drawn_between_two_redraws_by_time(terminal: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)
    make_trainer(ConsoleProgress(refresh_seconds=1000), max_epochs=1).fit(Model(), loader(100))
    assert set(re.findall(r" (\d+)/100 \[", terminal.text())) == {"0", "100"}


def test_no_hook_is_called_per_batch() -> None:
    names = [name for name in dir(Callback) if any(part in name for part in ("batch", "before", "after"))]
    assert len(names) > 10
    assert not any(overrides(ConsoleProgress(), name, Callback) for name in names)


def test_print_writes_above_the_bar(terminal: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)

    class Talks(Callback):
        def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
            trainer.print("epoch", trainer.current_epoch)

        def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 4:
                trainer.print("in the middle")

    make_trainer(ConsoleProgress(), Talks()).fit(Model(), loader())
    *above, bar = final(terminal.text())
    assert above == ["epoch 0", "in the middle", "epoch 1", "in the middle"]
    assert bar.startswith("Epoch 2/2: 100%")


def test_leave_keeps_the_bar_of_each_epoch(terminal: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)
    make_trainer(ConsoleProgress(leave=True), max_epochs=3).fit(Validated(), loader(), loader(2))
    lines = final(terminal.text())
    assert [line.split(":")[0] for line in lines] == ["Epoch 1/3", "Epoch 2/3", "Epoch 3/3"]
    assert all("100%" in line and "8/8" in line and "val_loss=0.5" in line for line in lines)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_stages_have_a_bar_of_their_own(terminal: Output, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)
    arguments = {} if stage == "predict" else {"verbose": False}
    getattr(make_trainer(ConsoleProgress()), stage)(Validated(), loader(5), **arguments)
    (line,) = final(terminal.text())
    title, metric = {
        "validate": ("Validation", ", val_loss=0.5"), "test": ("Test", ", test_loss=0.25"), "predict": ("Prediction", ""),
    }[stage]  # fmt: skip
    assert re.fullmatch(rf"{title}: 100%\|█+\| 5/5 \[00:00<00:00, [\d.]+batch/s{metric}\]", line)


def test_a_loader_without_length_has_no_percentage(terminal: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)

    class Endless:
        def __iter__(self) -> Iterator[Any]:
            return iter(torch.ones(5, 2, 4))

    make_trainer(ConsoleProgress(), max_epochs=-1, max_steps=10).fit(Model(), Endless())
    (line,) = final(terminal.text())
    assert re.fullmatch(r"Epoch 2: 5batch \[00:00, [\d.]+batch/s, train_loss=0.125\]", line)


def test_an_exception_leaves_the_bar_where_it_was(terminal: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)

    class Fails(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 5:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    with pytest.raises(ZeroDivisionError):
        make_trainer(ConsoleProgress(refresh_seconds=1000)).fit(Fails(), loader())
    print("Traceback")
    bar, after = final(terminal.text())
    assert re.search(r"^Epoch 1/2:.* 5/8 ", bar) and after == "Traceback"


def test_an_exception_in_a_validation_leaves_the_epoch(terminal: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)

    class Fails(Model):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make_trainer(ConsoleProgress(), num_sanity_val_steps=0).fit(Fails(), loader(), loader(2))
    print("Traceback")
    bar, after = final(terminal.text())
    assert re.search(r"^Epoch 1/2: 100%.* 8/8 ", bar) and after == "Traceback"


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_the_screen_in_order(terminal: Output, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)

    class Interrupted(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 5:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            return super().training_step(batch, batch_idx)

    trainer = make_trainer(ConsoleProgress(refresh_seconds=1000))
    if times == 2:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(Interrupted(), loader())
    else:
        trainer.fit(Interrupted(), loader())
    print("$ ")
    bar, after = final(terminal.text())
    assert re.search(rf"^Epoch 1/2:.* {6 if times == 1 else 5}/8 ", bar) and after == "$"


def test_a_terminal_that_goes_away_does_not_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Output(terminal=True, read=False)
    terminal.begin(monkeypatch)

    class Hangup(Callback):
        def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
            if trainer.current_epoch == 1:
                os.close(terminal.ours)

    trainer = make_trainer(ConsoleProgress(refresh_seconds=1000), Hangup(), max_epochs=3)
    with pytest.warns(FulmenWarning) as caught:
        trainer.fit(Model(), loader())
    assert [str(warning.message) for warning in caught] == [
        "[progress-lost] progress cannot be shown any more: [Errno 5] Input/output error. The run goes on"
    ]
    assert trainer.current_epoch == 3
    with contextlib.suppress(OSError):  # what could not be written is still in its buffer
        terminal.file.close()


def test_the_same_bar_serves_several_runs(terminal: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)
    trainer = make_trainer(ConsoleProgress())
    model = Model()
    trainer.fit(model, loader())
    trainer.test(model, loader(3), verbose=False)
    assert [line.split(":")[0] for line in final(terminal.text())] == ["Epoch 2/2", "Test"]


def test_a_bar_of_the_user_keeps_its_place(terminal: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)
    for _ in tqdm.tqdm(range(2), desc="folds", mininterval=0):
        make_trainer(ConsoleProgress(refresh_seconds=1e-9), max_epochs=1).fit(Model(), loader(4))
    found = screens(terminal.text())
    assert any("folds:" in a and "Epoch 1/1:" in b for screen in found for a, b in pairwise(screen))
    assert any(line.startswith("folds: 100%") for line in found[-1])


# ---- Elsewhere


def test_a_pipe_gets_plain_lines(pipe: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.begin(monkeypatch)
    trainer = make_trainer(ConsoleProgress(refresh_seconds=1e-9))
    model = Validated()
    trainer.fit(model, loader(), loader(3))
    trainer.test(model, loader(4), verbose=False)
    trainer.predict(model, loader(2))
    text = pipe.text()
    assert "\r" not in text and "\x1b" not in text
    took = r"in \d\.\d s, [\d.]+ batches/s"
    expected = [
        rf"Validation: 3 batches {took}, train_loss=0.125, val_loss=0.5",
        rf"Epoch 1/2: 8 batches {took}, train_loss=0.125, val_loss=0.5",
        rf"Validation: 3 batches {took}, train_loss=0.125, val_loss=0.5",
        rf"Epoch 2/2: 8 batches {took}, train_loss=0.125, val_loss=0.5",
        rf"Test: 4 batches {took}, test_loss=0.25",
        rf"Prediction: 2 batches {took}",
    ]
    lines = text.splitlines()
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_pipe_gets_the_position_by_time(pipe: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.begin(monkeypatch)
    assert Lines.seconds == 10.0
    monkeypatch.setattr(Lines, "seconds", 1e-9)
    make_trainer(ConsoleProgress(), max_epochs=1).fit(Model(), loader(4))
    *positions, last = pipe.text().splitlines()
    assert [re.sub(r", [\d.]+ batches/s", "", line) for line in positions] == [
        f"Epoch 1/1: {n}/4 batches ({25 * n}%), train_loss=0.125" for n in range(1, 5)
    ]
    assert last.startswith("Epoch 1/1: 4 batches in")


def test_a_training_that_is_cut_says_where(pipe: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.begin(monkeypatch)

    class Stops(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                signal.raise_signal(signal.SIGINT)

    make_trainer(ConsoleProgress(), Stops()).fit(Model(), loader())
    lines = pipe.text().splitlines()
    assert re.search(r"^Epoch 1/2: 3 of 8 batches in ", lines[0]) and len(lines) == 1


def test_a_failure_says_where(pipe: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.begin(monkeypatch)

    class Fails(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 2:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    with pytest.raises(ZeroDivisionError):
        make_trainer(ConsoleProgress()).fit(Fails(), loader())
    assert re.search(r"^Epoch 1/2: 2/8 batches \(25%\)", pipe.text())


def test_a_resumed_epoch_counts_on_at_its_own_rate(pipe: Output, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.begin(monkeypatch)

    class Saves(Callback):
        def on_train_stop(self, trainer: Trainer, module: Module) -> None:
            trainer.save_checkpoint(tmp_path / "cut.ckpt")

    make_trainer(ConsoleProgress(), Saves(), max_steps=3).fit(Model(), loader())
    make_trainer(ConsoleProgress(), max_epochs=1).fit(Model(), loader(), ckpt_path=tmp_path / "cut.ckpt")
    first, *_, second = pipe.text().splitlines()
    assert re.search(r"^Epoch 1/2: 3 of 8 batches in ", first)
    assert re.search(r"^Epoch 1/1: 8 batches in ", second)
    resumed = Activity("Epoch 1/1", "train", position=8, first=3, seconds_in_all=2.0)
    assert resumed.rate == 2.5


def test_lines_where_tqdm_is_not_installed(terminal: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    make_trainer(ConsoleProgress(), max_epochs=1).fit(Model(), loader())
    text = terminal.text()
    assert re.fullmatch(r"Epoch 1/1: 8 batches in \d\.\d s, [\d.]+ batches/s, train_loss=0.125\r\n", text)


def test_lines_on_a_dumb_terminal(terminal: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)
    assert isinstance(make_display(leave=False), Bars)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(leave=False), Lines)


def test_nothing_without_stderr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    make_trainer(ConsoleProgress(), max_epochs=1).fit(Model(), loader())
    assert capfd.readouterr() == ("", "")


class SecondRank(SingleDevice):
    """This process as rank 1."""

    global_rank = 1


def test_other_ranks_show_nothing(terminal: Output, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.begin(monkeypatch)
    bar = ConsoleProgress(refresh_seconds=1e-9)
    trainer = make_trainer(
        bar, strategy=SecondRank(), logger=True, enable_model_summary=True, default_root_dir=tmp_path, log_every_n_steps=1
    )
    trainer.fit(Validated(), loader(), loader(2))
    assert terminal.text() == "" and list(tmp_path.iterdir()) == []


def test_print_without_a_run_is_print(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleProgress().print("hello")
    assert capsys.readouterr().out == "hello\n"


IMPORTS = """
import sys
import torch
before = set(sys.modules)  # with tqdm's core, which torch imports where it is installed
from fulmen.builtin.console import ConsoleProgress, make_display
ConsoleProgress()
make_display(False)
assert not {name for name in set(sys.modules) - before if name.partition(".")[0] in ("tqdm", "IPython", "ipywidgets")}
"""


def test_tqdm_is_imported_only_where_it_is_used() -> None:
    result = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_this_is_no_notebook() -> None:
    assert in_notebook() is False


def test_refresh_seconds_must_be_positive() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ConsoleProgress(refresh_seconds=0)
    assert str(caught.value) == "refresh_seconds=0 must be positive"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.123"), (1.0, "1"), (999.4, "999"), (1234.5, "1234"), (1e-05, "1e-05"), (2e9, "2e+09"), (float("nan"), "nan"),
     (float("-inf"), "-inf"), (-1500.0, "-1500")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert metrics_text({"a": value}) == f"a={text}"


def test_slow_batches_are_told_in_seconds() -> None:
    slow = Activity("Test", "test", position=2, total=None, seconds_in_all=5.0)
    assert Lines().line(slow, {}) == "Test: 2 batches in 5.0 s, 2.5 s/batch"
