"""The sessions of the repository; ``nox -l`` lists them, CONTRIBUTING.md says when to use which.

Each session makes an environment of its own, with uv where that is installed and with venv and pip where it is not.
``nox --no-venv -s NAME`` works in the virtual environment that is active. Packages are found by their ``pyproject.toml``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import nox
from nox.virtualenv import PassthroughEnv

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]

ROOT = Path(__file__).parent
PACKAGES = sorted(path.parent for path in (ROOT / "packages").glob("*/pyproject.toml"))
DISTRIBUTIONS = [ROOT / "core", *PACKAGES]
CONSTRAINTS = os.environ.get("FULMEN_CONSTRAINTS", "constraints.txt")  # tox -e lowest sets another
CHECKED = ["core", "packages", "tests", "benchmarks", "examples", "conftest.py", "noxfile.py"]


def bridge_pip_to_uv() -> None:
    """Give uv the ``find-links`` of pip's configuration, which it does not read, unless uv has its own.

    A machine that keeps its build of torch in a folder says so to pip; without this uv would fetch another one.
    """
    if "UV_FIND_LINKS" in os.environ:
        return
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    settings = (line.partition("=") for line in listed.splitlines())
    links = [value.strip().strip("'") for key, _, value in settings if key.rpartition(".")[2] == "find-links"]
    if links:
        os.environ["UV_FIND_LINKS"] = ",".join(dict.fromkeys(" ".join(links).split()))


bridge_pip_to_uv()


def install(session: nox.Session, *requirements: str, groups: tuple[str, ...] = ()) -> None:
    """Install in the tested versions: requirements, and dependency groups of the root."""
    wanted = [*requirements, *nox.project.dependency_groups(nox.project.load_toml(ROOT / "pyproject.toml"), *groups)]
    if isinstance(session.virtualenv, PassthroughEnv):
        if "VIRTUAL_ENV" not in os.environ:
            session.error("--no-venv installs into the virtual environment that is active, and none is")
        session.run_install("python", "-m", "pip", "install", "-c", CONSTRAINTS, *wanted)
    else:
        session.install("-c", CONSTRAINTS, *wanted)


def install_fulmen(
    session: nox.Session,
    distributions: list[Path],
    *,
    tested: Iterable[Path] = (),
    extras: str = "",
    groups: tuple[str, ...] = (),
) -> None:
    """Install distributions as editable, the core with ``extras``, and what the tests of those in ``tested`` need."""
    install(session, "torch")  # before anything that depends on torch and would choose another build
    editable = [f"./{path.relative_to(ROOT).as_posix()}{extras if path.name == 'core' else ''}" for path in distributions]
    needed = [requirement for path in tested for requirement in test_group(path)]
    install(session, *(argument for path in editable for argument in ("-e", path)), *needed, groups=groups)


def test_group(distribution: Path) -> list[str]:
    """What the tests of one distribution need: the dependency group ``test`` of its ``pyproject.toml``."""
    project = nox.project.load_toml(distribution / "pyproject.toml")
    return list(nox.project.dependency_groups(project, "test")) if "test" in project.get("dependency-groups", {}) else []


def run_pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest so that the processes which tests start are quick."""
    # uv leaves compiling to the first import. Where bytecode is not written, each process compiles torch anew: 1.5 s.
    # One thread for each worker: two workers with all cores each are slower than two with one.
    session.run("python", "-m", "pytest", *arguments, env={"PYTHONDONTWRITEBYTECODE": None, "OMP_NUM_THREADS": "1"})


@nox.session
def quickstart(session: nox.Session) -> None:
    """Train a classifier of handwritten digits: the first run of a newcomer. Arguments go to examples/digits.py."""
    install_fulmen(session, [ROOT / "core"], extras="[progress]", groups=("example",))
    session.run("python", "examples/digits.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests, on as many processes as there are cores. Arguments replace that: ``-- core/tests -k resume``."""
    install_fulmen(session, DISTRIBUTIONS, tested=DISTRIBUTIONS, groups=("pytest", "example", "neighbours"))
    run_pytest(session, *(session.posargs or ["-n", "auto"]))


@nox.session
def coverage(session: nox.Session) -> None:
    """Run all tests and show which lines they do not reach. Tracing each line makes them twice as slow before Python 3.12."""
    install_fulmen(session, DISTRIBUTIONS, tested=DISTRIBUTIONS, groups=("pytest", "example", "neighbours"))
    traced = (f"--cov={import_name(path)}" for path in DISTRIBUTIONS)
    run_pytest(session, "-n", "auto", "--cov-report=term:skip-covered", *traced, *session.posargs)


@nox.session
def nightly(session: nox.Session) -> None:
    """The tests that take long: hundreds of killed runs, every cut of every job, the fuzzer."""
    install_fulmen(session, DISTRIBUTIONS, tested=DISTRIBUTIONS, groups=("pytest", "example", "neighbours"))
    run_pytest(session, "-m", "nightly", *(session.posargs or ["-n", "auto", "tests"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff. ``-- --fix`` repairs what can be repaired."""
    install(session, groups=("lint",))
    paths = [path for path in CHECKED if (ROOT / path).exists()]
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *session.posargs, *paths)
    session.run("ruff", "format", *([] if fix else ["--check"]), *paths)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of all sources with mypy, strictly."""
    install_fulmen(session, DISTRIBUTIONS, tested=DISTRIBUTIONS, groups=("types",))
    sources = [f"{path.relative_to(ROOT).as_posix()}/src" for path in DISTRIBUTIONS]
    session.run("mypy", *session.posargs, *sources)


@nox.session
def docs(session: nox.Session) -> None:
    """Run every code block of the README, the docs and the docstrings."""
    install_fulmen(session, DISTRIBUTIONS, tested=DISTRIBUTIONS, groups=("pytest", "example"))
    run_pytest(session, "tests/test_docs.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the step against a hand-written loop and other frameworks. Arguments choose benchmarks by name."""
    install_fulmen(session, DISTRIBUTIONS, groups=("bench",))
    run_benchmarks(session)


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the tests that need a GPU, and the benchmarks on it."""
    install_fulmen(session, DISTRIBUTIONS, tested=DISTRIBUTIONS, groups=("pytest", "bench"))
    session.run("python", "-c", "import torch; assert torch.cuda.is_available(), 'torch finds no GPU here'")
    run_pytest(session, "-m", "gpu", *session.posargs)
    run_benchmarks(session)


@nox.session
def xla(session: nox.Session) -> None:
    """Test fulmen-xla with torch_xla on the processor. Its torch is another one, with CUDA: 4 GB to fetch, 7 GB on disk."""
    session.install("torch==2.9.*", "torch_xla==2.9.*", "numpy")  # not the constraints: they pin another torch
    session.install("-e", "./core", "-e", "./packages/fulmen-xla", "pytest>=9", "scikit-learn")
    env = {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": None}
    session.run("python", "-m", "pytest", *(session.posargs or ["packages/fulmen-xla"]), env=env)
    session.run("python", "examples/xla_digits.py", "--quick", "--folder", session.create_tmp(), env=env)


def run_benchmarks(session: nox.Session) -> None:
    """Run each file of benchmarks/ in a process of its own."""
    found = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if not path.name.startswith("_"))
    for path in found:
        if not session.posargs or path.stem in session.posargs:
            session.run("python", str(path.relative_to(ROOT)), silent=False)


@nox.session(reuse_venv=False)
@nox.parametrize("package", [nox.param(path, id=path.name) for path in DISTRIBUTIONS])
def alone(session: nox.Session, package: Path) -> None:
    """Test one package outside the repository, in a fresh environment with nothing but its wheel and that of the core."""
    built = [str(ROOT / "core"), *({str(package)} - {str(ROOT / "core")})]
    with tempfile.TemporaryDirectory() as folder:
        wheels, tests = Path(folder, "wheels"), Path(folder, "tests")
        session.run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), *built, external=True)
        shutil.copytree(package / "tests", tests)
        install(session, "torch")
        install(session, *map(str, sorted(wheels.iterdir())), *test_group(package), groups=("pytest",))
        session.chdir(folder)
        session.run("python", "-c", f"import {import_name(package)}")
        session.run("fulmen", "plugins")
        strict = ("--strict-markers", "--import-mode=importlib", "-p", "fulmen.testing.pytest_plugin", "-W", "error")
        strict += ("-W", "ignore:Failed to initialize NumPy")  # torch's own, where no package needs NumPy
        run_pytest(session, *strict, "tests", *session.posargs)
        session.chdir(ROOT)


def import_name(distribution: Path) -> str:
    """The name under which a distribution is imported: that of the one folder in its ``src``."""
    (source,) = (path for path in (distribution / "src").iterdir() if (path / "__init__.py").exists())
    return source.name


@nox.session
def constraints(session: nox.Session) -> None:
    """Write constraints.txt for all supported Pythons. It keeps versions, unless ``-- --upgrade`` or ``-- -P NAME``."""
    session.install("uv")
    projects = [f"{path.relative_to(ROOT).as_posix()}/pyproject.toml" for path in DISTRIBUTIONS]
    groups = ["dev", *(f"{path}:test" for path in projects)]
    output = ROOT / "constraints.txt"
    session.run(
        *("uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.10", "--no-header", "--no-annotate"),
        *("--all-extras", *projects, *(f"--group={group}" for group in groups), "-o", output.name, *session.posargs),
        env={"UV_FIND_LINKS": None},  # versions of the public index, not of one machine
    )
    ours = ("#", "-e ", "cuda-", "nvidia-", "triton==")  # ourselves, and what torch pins itself
    lines = [line for line in output.read_text().splitlines(keepends=True) if not line.startswith(ours)]
    output.write_text("".join(["# The tested versions, for pip and uv. Made by `nox -s constraints`.\n", *lines]))


@nox.session
def changelog(session: nox.Session) -> None:
    """Show the notes of the next release. ``-- --version 1.2.0 --yes`` writes them to CHANGELOG.md."""
    install(session, groups=("changelog",))
    session.run("towncrier", "build", *(session.posargs or ["--draft", "--version", "next"]))
