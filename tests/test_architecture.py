"""What the design promises about the shape of the code and what a step costs, measured. No exemptions."""

from __future__ import annotations

import ast
import cProfile
import inspect
import os
import pstats
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "core" / "src"
FULMEN = SOURCE / "fulmen"


# ---- Arrows


@dataclass(frozen=True)
class Layer:
    """Modules that may import each other and those of the layers above them in :data:`LAYERS`."""

    modules: str
    reason: str

    def has(self, module: str) -> bool:
        """Whether a module, or a package that it is in, is named here."""
        return any(module == name or module.startswith(f"{name}.") for name in self.modules.split())


LAYERS = (
    Layer(
        "batches clock combined durable errors gathering hookspecs known lazy likeness options pickled progress readback rng "
        "samplers screening storage",
        "Tools that know no contract: errors, numbers, files, random state, nested batches; the signatures of the hooks.",
    ),
    Layer("registry project plugins", "Finding parts by name. `fulmen plugins` needs no more than this, and no torch."),
    Layer("contracts", "What we promise. A contract that imported the loop would promise how it is kept."),
    Layer(
        "background hooks meter metric_ranks metrics rank_state schedule state",
        "Where a run is and what it has measured: read by everything that acts.",
    ),
    Layer(
        "checkpoint data grade handover optimizers parts reporting runtime signals source step uneven",
        "One job each on a run. They do not know in which order they are called.",
    ),
    Layer("evaluation lifecycle loop", "The order: set up, then step after step, then tear down."),
    Layer("trainer_names trainer_view trainer", "The facade: typed options to parts to a run to the loop."),
    Layer(
        "fulmen builtin callbacks cli loggers profilers strategies testing",
        "Doors and what comes through them: public names, built-in plugins, the command, the test kit. Nothing needs them.",
    ),
)
"""From the bottom up: who may import whom at run time. A new module needs a place here."""


@dataclass(frozen=True)
class Import:
    """That one module of fulmen imports another, at its top level or inside a function."""

    importer: str
    imported: str
    at_top: bool


def modules_in(source: Path) -> dict[str, Path]:
    """Dotted name to file, for each module of the packages in a source folder; a package goes by its own name."""
    files = sorted(source.rglob("*.py"))
    return {".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports_of(module: str, path: Path, known: set[str]) -> Iterator[Import]:
    """The imports of modules in ``known`` that are executed; those for type checkers only are not."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, at_top: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.orelse:
                yield from visit(child, at_top)
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in names_in(node, package):
                target = name if name in known else name.rpartition(".")[0]
                if target in known and target != module:
                    yield Import(module, target, at_top)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


def names_in(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    """The dotted names that an import statement may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    parents = package.split(".")
    base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])]) if node.level else node.module
    return [f"{base}.{alias.name}" for alias in node.names]


MODULES = modules_in(SOURCE)
IMPORTS = [found for name, path in MODULES.items() for found in imports_of(name, path, set(MODULES))]


def layer_of(module: str) -> int | None:
    """The index in :data:`LAYERS`, or ``None``."""
    short = module.removeprefix("fulmen.")
    return next((index for index, layer in enumerate(LAYERS) if layer.has(short)), None)


def test_every_module_has_one_layer():
    homeless = [name for name in MODULES if layer_of(name) is None]
    assert not homeless, f"{homeless} have no place in LAYERS: which modules may they import, and why?"
    stale = {name for layer in LAYERS for name in layer.modules.split()} - {name.removeprefix("fulmen.") for name in MODULES}
    assert not stale, f"LAYERS names modules that do not exist: {stale}"


def test_imports_point_downwards():
    wrong = [
        f"{found.importer} imports {found.imported}"
        for found in IMPORTS
        if (layer_of(found.importer) or 0) < (layer_of(found.imported) or 0)
    ]
    assert not wrong, "imports against the arrows of LAYERS:\n" + "\n".join(wrong)


def test_nobody_imports_the_trainer_but_the_public_door():
    importers = {found.importer for found in IMPORTS if found.imported == "fulmen.trainer"}
    assert importers <= {"fulmen"}


def test_no_module_imports_itself_through_others():
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for found in IMPORTS:
        if found.at_top:
            graph[found.importer].add(found.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_imports_are_seen_as_they_are(tmp_path):
    """The checks above rest on :func:`imports_of`; here it reads a file that has every form."""
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "b.py"
    path.write_text(
        "import a.top\nfrom a import sub\nfrom a.mod import name\nfrom . import near\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import a.typing_only\nelse:\n    import a.other\n"
        "def f():\n    from a.lazy import x\n    class C:\n        from a.deep import y\n"
    )
    known = {f"a.{name}" for name in ["top", "sub", "mod", "near", "typing_only", "other", "lazy", "deep"]}
    found = {(each.imported, each.at_top) for each in imports_of("a.b", path, known)}
    at_top = {("a.top", True), ("a.sub", True), ("a.mod", True), ("a.near", True), ("a.other", True)}
    assert found == at_top | {("a.lazy", False), ("a.deep", False)}


# ---- Size


SOURCES = [
    path
    for folder in (SOURCE, *sorted((ROOT / "packages").glob("*/src")), ROOT / "benchmarks", ROOT / "examples")
    for path in sorted(folder.rglob("*.py"))
]


def test_no_function_is_longer_than_a_screen():
    """Sixty lines, docstring and signature included, constructors too."""
    too_long = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 60:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert SOURCES
    assert not too_long, "\n".join(too_long)


def test_no_file_is_longer_than_500_lines():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not {path: length for path, length in lengths.items() if length > 500}


# ---- Frames between the user's call and the user's step


def framework_frames() -> list[str]:
    """The functions of fulmen on the stack, innermost first."""
    frames = [(Path(frame.filename), frame.function) for frame in inspect.stack(0)]
    return [f"{path.stem}.{function}" for path, function in frames if FULMEN in path.parents]


def regression(**methods: Callable[..., Any]) -> Any:
    """A linear regression of 16 numbers on 1, as a module; ``methods`` replace its methods."""
    import torch

    from fulmen import Module

    class Regression(Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(16, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            return torch.nn.functional.mse_loss(self.layer(x), y)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return type("Regression", (Regression,), methods)()


def prepared_batches(count: int) -> list[Any]:
    """Batches as a list, so that what is counted or measured is the loop and not the loading."""
    import torch

    return [(torch.randn(8, 16), torch.randn(8, 1)) for _ in range(count)]


QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.mark.parametrize("defaults", [True, False], ids=["defaults", "quiet"])
def test_at_most_five_frames_between_fit_and_training_step(tmp_path, monkeypatch, record_property, defaults):
    from fulmen import Trainer

    monkeypatch.chdir(tmp_path)
    seen: list[list[str]] = []

    def training_step(self, batch, batch_idx):
        seen.append(framework_frames())
        return super(type(self), self).training_step(batch, batch_idx)

    trainer = Trainer(max_steps=4, accumulate_grad_batches=2, **({} if defaults else QUIET))
    trainer.fit(regression(training_step=training_step), prepared_batches(8))
    assert len(seen) == 8
    record_property("frames", f"{len(seen[0])} between fit and training_step: {' <- '.join(seen[0])} (at most 5)")
    assert all(len(frames) <= 5 for frames in seen), seen
    assert seen[0][-1] == "trainer.fit", "the outermost frame of fulmen is what the user called"


# ---- Weight of imports


def modules_after(statement: str) -> set[str]:
    """The modules that a new interpreter has loaded after ``statement``."""
    code = f"{statement}\nimport sys\nprint('loaded:', *sys.modules)"
    return set(run_python("-c", code).rpartition("loaded:")[2].split())


def run_python(*arguments: str) -> str:
    """The output of a new interpreter, without what coverage adds to it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = "torch", "torch._dynamo", "torch._inductor", "scipy", "sklearn", "pandas", "tensorboard", "matplotlib", "torchmetrics"


def families(modules: set[str]) -> set[str]:
    """The heavy libraries among modules, with torch's slow parts as libraries of their own."""
    return {name for name in HEAVY if any(module == name or module.startswith(f"{name}.") for module in modules)}


def test_importing_fulmen_does_not_import_torch():
    assert families(modules_after("import fulmen")) == set()


def test_listing_plugins_does_not_import_torch():
    assert families(modules_after("from fulmen.plugins import PluginSet; PluginSet.discover()")) == set()
    command = "from fulmen.cli import main\ntry:\n    main(['plugins'])\nexcept SystemExit as done:\n    assert not done.code"
    assert "csv" in run_python("-c", command)
    assert families(modules_after(command)) == set()


def test_trainer_and_module_add_few_modules_to_torch(record_property):
    torch = modules_after("import torch")
    ours = modules_after("from fulmen import Trainer, Module") - torch
    record_property("from fulmen import Trainer, Module", f"{len(ours)} modules beyond import torch (at most 80)")
    assert len(ours) <= 80, sorted(ours)
    assert families(ours) <= families(torch) == {"torch"}


# ---- Calls per step


def calls_per_step(train: Callable[[list[Any]], None]) -> float:
    """Function calls for one step, as cProfile counts them: what 500 more steps add."""
    counts = []
    for steps in (100, 100, 600):  # the first run also pays what happens once in a process
        profile, batches = cProfile.Profile(), prepared_batches(steps)
        profile.runcall(train, batches)
        counts.append(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]
    return (counts[2] - counts[1]) / 500


def by_hand(batches: list[Any]) -> None:
    """The loop that everyone writes."""
    import torch

    model = torch.nn.Linear(16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for x, y in batches:
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def quietly(batches: list[Any]) -> None:
    """The same with fulmen, which keeps and shows nothing."""
    from fulmen import Trainer

    Trainer(max_epochs=1, **QUIET).fit(regression(), batches)


def with_defaults(batches: list[Any]) -> None:
    """The same with one value logged, CSV files, the progress bar and the recovery checkpoint."""
    from fulmen import Trainer

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = super(type(self), self).training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss

    Trainer(max_epochs=1).fit(regression(training_step=training_step), batches)


@pytest.mark.parametrize(("train", "most"), [(quietly, 1.15), (with_defaults, 1.4)])
def test_a_step_costs_few_calls(tmp_path, monkeypatch, record_property, train, most):
    monkeypatch.chdir(tmp_path)
    hand, ours = calls_per_step(by_hand), calls_per_step(train)
    text = f"{hand:.1f} by hand, {ours:.1f} {train.__name__}: {ours / hand:.3f} x (at most {most})"
    record_property("calls per step", text)
    assert ours <= most * hand


# ---- The repository


def tracked_texts() -> dict[str, str]:
    """The text files that git tracks or would track, by their path."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    raw = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in paths if path.is_file()}
    return {name: content.decode("utf-8", "replace") for name, content in raw.items() if b"\0" not in content}


MACHINE = re.compile(r"(?<![\w./~-])(?:/(?:home|root|work|opt|Users|mnt)/[\w.-]+|[A-Z]:\\\\?Users\b)")
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|\bgh[pousr]_\w{30,}|\bhf_\w{30,}|\bsk-\w{20,}|\bxox[abp]-\w|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def test_no_file_names_a_machine_or_holds_a_secret():
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout: what is tracked is not known")
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in tracked_texts().items()
        if name != "LICENSE"
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE.search(line) or SECRET.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("line", ["see /" + "home/ada/x", "-f '/" + "opt/wheels'", "AKIA" + "A" * 16, "gh" + "p_" + "a" * 36])
def test_paths_and_secrets_are_seen(line):
    assert MACHINE.search(line) or SECRET.search(line)


@pytest.mark.parametrize("line", ["https://example.org/home/ada", "packages/opt/x", "#!/usr/bin/env bash", "~/work/x"])
def test_other_text_is_left_alone(line):
    assert [MACHINE.search(line), SECRET.search(line)] == [None, None]


def test_the_tested_torch_is_said_once():
    """`uv sync` takes it from pyproject.toml, everything else from constraints.txt."""
    stated = re.findall(r'"torch==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert stated == re.findall(r"(?m)^torch==([\d.]+)$", (ROOT / "constraints.txt").read_text())
