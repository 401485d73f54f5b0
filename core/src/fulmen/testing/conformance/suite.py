"""What all suites share: finding the part, building it by name, pickling it, and small trainings with it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import torch

from fulmen import Checkpoint, ConfigurationError, Module, PluginSet, Trainer
from fulmen.cli import main
from fulmen.errors import did_you_mean, listing
from fulmen.testing.training import Validated, batches, quiet

Test = TypeVar("Test", bound=Callable[..., Any])


def only_if(flag: str, wanted: bool = True) -> Callable[[Test], Test]:
    """Mark a test that applies only where a flag has a value; elsewhere it is skipped, with the flag as the reason."""

    def mark(test: Test) -> Test:
        @wraps(test)
        def checked(self: Suite, *args: Any, **kwargs: Any) -> None:
            if bool(getattr(self, flag)) is not wanted:
                pytest.skip(f"{type(self).__name__}.{flag} is {not wanted}")
            test(self, *args, **kwargs)

        checked.remedy = f"set {flag} = {not wanted} where it does not apply"  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return mark


def unless(flag: str) -> Callable[[Test], Test]:
    """Mark a test that applies only where a flag is off."""
    return only_if(flag, wanted=False)


class Suite:
    """Base of all suites. A subclass says what it tests and what that can do; it cannot drop a test.

    Raises:
        TypeError: A subclass replaces a standard test, or has a flag that does not exist.
    """

    pytestmark = pytest.mark.filterwarnings(r"ignore:\[plugin-broken\]")  # of another package: that of this one is noticed

    kind: ClassVar[str]
    """The kind of part, as in ``registry.logger``: set by the suite."""

    name: str = ""
    """The name that the part is registered under."""

    arguments: ClassVar[dict[str, Any]] = {}
    """Arguments with which the name is used in these tests, as configuration would give them."""

    options: ClassVar[dict[str, Any]] = {}
    """More options for the trainers of these tests."""

    picklable: bool = True
    """Whether the part can be sent to a new process, as strategies that start processes do."""

    def make(self, folder: Path) -> Any:
        """A new part. What it writes goes below ``folder``, which exists and may hold what an earlier one wrote."""
        raise NotImplementedError(f"{type(self).__name__} needs: def make(self, folder)")

    def place(self, part: Any) -> dict[str, Any]:
        """The options of the trainer that take the part."""
        return {self.kind: part}

    # ---- No test is lost

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith(__name__.rpartition(".")[0] + "."):
            return  # a suite of this package
        for name, value in vars(cls).items():
            known = next((vars(base)[name] for base in cls.__mro__[1:] if name in vars(base)), None)
            if name.startswith("test_") and known is not None:
                remedy = getattr(known, "remedy", "give yours another name")
                raise TypeError(f"{cls.__name__}.{name} would replace a standard test; {remedy}")
            if isinstance(value, bool) and known is None and not name.startswith("_"):
                flags = {key for base in cls.__mro__[1:] for key, each in vars(base).items() if isinstance(each, bool)}
                guess = did_you_mean(name, flags)
                raise TypeError(f"{cls.__name__} has no flag {name!r}{guess}; flags are: {listing(sorted(flags))}")

    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Work in an empty folder, out of reach of a project's configuration."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("FULMEN_PLUGINS", raising=False)
        monkeypatch.delenv("FULMEN_PLUGIN_AUTOLOAD", raising=False)

    # ---- Trainings

    def trainer(self, part: Any, **options: Any) -> Trainer:
        """A trainer with the part in its place."""
        placed = {**self.options, **self.place(part)}
        callbacks = [*placed.pop("callbacks", []), *options.pop("callbacks", [])]
        if any(isinstance(callback, Checkpoint) for callback in callbacks):
            placed["enable_checkpointing"] = True
        return quiet(**{"max_epochs": 2, "log_every_n_steps": 4, "callbacks": callbacks, **placed, **options})

    def train(
        self, part: Any, module: Module | None = None, *, data: Any = None, ckpt_path: Any = None, **options: Any
    ) -> Trainer:
        """Train two epochs of eight batches, with validation; the trainer afterwards."""
        trainer, module = self.trainer(part, **options), module or Validated()
        torch.manual_seed(7)
        trainer.fit(module, data or batches(8), batches(2), ckpt_path=ckpt_path)
        return trainer

    def cut_and_resumed(self, folder: Path, at: int = 11, **options: Any) -> tuple[Trainer, Any]:
        """A training that dies after some batch and goes on in a new trainer with a new part; both afterwards."""
        path = folder / "cut.ckpt"
        with pytest.raises(Cut):
            self.train(self.make(folder), callbacks=[CutAfter(at, path)], **options)
        part = self.make(folder)
        return self.train(part, callbacks=[CutAfter(-1, path)], ckpt_path=path, **options), part

    def whole(self, folder: Path, **options: Any) -> tuple[Trainer, Any]:
        """The same training without the cut; the trainer and the part afterwards."""
        part = self.make(folder)
        return self.train(part, callbacks=[CutAfter(-1, folder / "cut.ckpt")], **options), part

    # ---- Found, and built by name

    def test_it_is_registered_with_a_summary(self, tmp_path: Path) -> None:
        """The plugin registers the class that these tests make, and says in one line what it is."""
        provider = PluginSet.discover().provider(self.kind, self.name)
        made = type(self.make(tmp_path))
        assert provider.load() is made, f"registered is {provider.target}, and make() gives a {made.__qualname__}"
        assert 3 <= len(provider.summary) <= 80 and "\n" not in provider.summary, f"summary: {provider.summary!r}"

    def test_the_command_lists_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        """``fulmen plugins`` shows it, and its plugin works."""
        assert main(["plugins", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        found = [each for each in report["providers"] if (each["kind"], each["name"]) == (self.kind, self.name)]
        assert len(found) == 1, f"fulmen plugins lists {len(found)} providers of {self.kind} {self.name!r}"
        (plugin,) = (each for each in report["plugins"] if each["name"] == found[0]["plugin"])
        assert plugin["error"] is None

    def test_finding_it_imports_nothing_heavy(self) -> None:
        """Listing plugins must stay quick: the module of the entry point imports neither torch nor the part."""
        provider = PluginSet.discover().provider(self.kind, self.name)
        ours = provider.distribution == "fulmen"
        unwanted = ["torch"] if ours else ["torch", provider.target.partition(":")[0]]
        code = f"import sys, fulmen.plugins as p; p.PluginSet.discover(); print([m for m in {unwanted!r} if m in sys.modules])"
        only = {"FULMEN_PLUGIN_AUTOLOAD": "0", "FULMEN_PLUGINS": "" if ours else provider.plugin}
        found = new_python("-c", code, **only).strip()
        assert found == "[]", f"looking for plugins imports {found}; import the class in __init__.py when somebody asks for it"

    def test_it_is_built_by_name(self, tmp_path: Path) -> None:
        """A name and arguments from configuration give the same kind of object as :meth:`make`."""
        built = PluginSet.discover().build(self.kind, {"name": self.name, **self.arguments})
        assert type(built) is type(self.make(tmp_path))

    def test_a_wrong_argument_is_an_error_that_lists_the_right_ones(self) -> None:
        """A misspelled option is never ignored."""
        plugins, wrong = PluginSet.discover(), "no_such_argument"
        with pytest.raises((ConfigurationError, TypeError), match=wrong) as caught:
            plugins.build(self.kind, {"name": self.name, **self.arguments, wrong: 1})
        if isinstance(caught.value, ConfigurationError):  # a class with **kwargs says it in its own words
            missing = [key for key in self.arguments if key not in str(caught.value)]
            assert not missing, f"the error does not list {missing}: {caught.value}"

    # ---- New processes

    @only_if("picklable")
    def test_a_new_process_can_train_with_it(self, tmp_path: Path) -> None:
        """Pickled, sent to a fresh Python, unpickled and trained with, as a strategy that spawns processes does."""
        sent = {**self.options, **self.place(self.make(tmp_path))}
        file = tmp_path / "sent.pickle"
        file.write_bytes(pickle.dumps(sent))
        assert "trained " in new_python("-m", f"{__package__}.spawned", "train", str(file))


class Cut(Exception):  # noqa: N818 - it is no error, but what a power cut would do
    """Ends a training where no cleanup was planned."""


class CutAfter(Checkpoint):
    """Saves after some batch of the whole training, as the last thing in it, and ends the training there."""

    def __init__(self, batch: int, path: Path) -> None:
        self.batch, self.path = batch, path

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save and raise."""
        if trainer.progress.batches == self.batch:
            trainer.save_checkpoint(self.path)
            raise Cut

    def folders(self, trainer: Trainer) -> list[Path]:
        """It is asked for by path."""
        return []


def new_python(*arguments: str, **environ: str) -> str:
    """What a fresh Python prints that finds what this one finds, with more environment variables.

    Raises:
        AssertionError: It fails; with what it wrote.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environ}
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def through_a_file(state: Any) -> Any:
    """``state`` as a checkpoint gives it back: written, and read as plain data.

    Raises:
        AssertionError: It is more than plain data.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        return torch.load(buffer, weights_only=True)
    except pickle.UnpicklingError as error:
        pytest.fail(f"the state holds more than plain data: {error}")


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other or (one != one and other != other))


@contextlib.contextmanager
def process_is_left_as_it_was() -> Any:
    """Fail where a block leaves global switches of PyTorch changed."""
    before = switches()
    yield
    changed = {key: (value, switches()[key]) for key, value in before.items() if switches()[key] != value}
    assert not changed, f"left changed (before, after): {changed}"


def switches() -> dict[str, Any]:
    """Global switches of PyTorch that parts may set for the length of a run."""
    return {
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "matmul precision": torch.get_float32_matmul_precision(),
    }
