"""Packages that ``fulmen plugin new`` writes work at once, and pass the suite of their kind in a process of their own."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fulmen.cli import main, new
from fulmen.registry import CONTRACTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def write(folder, name, kind):
    assert main(["plugin", "new", name, "--kind", kind, "--folder", str(folder)]) == 0
    return folder / f"fulmen-{name}"


def install(package: Path, site: Path) -> None:
    """As pip does it for an editable package: a path, and what the distribution says about itself."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    entries = "".join(f"{name} = {target}\n" for name, target in project["entry-points"]["fulmen"].items())
    (info / "entry_points.txt").write_text(f"[fulmen]\n{entries}")
    for folder in (package / "src").iterdir():
        shutil.copytree(folder, site / folder.name)


def run(package: Path, *command: str) -> str:
    path = os.pathsep.join([str(package.parent / "site"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=package, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("kind", new.SUMMARIES)
def test_a_new_package_passes_its_suite_at_once(tmp_path, kind):
    package = write(tmp_path, f"two-{kind}", kind)
    install(package, tmp_path / "site")
    assert f"two-{kind}" in run(package, "-m", "fulmen.cli", "plugins", "--kind", kind)
    output = run(package, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs")
    passed = int(re.search(r"(\d+) passed", output)[1])
    assert passed >= 8, output
    assert "failed" not in output


@pytest.fixture(scope="module")
def types_cache(tmp_path_factory):
    """mypy reads torch once, not once per package."""
    return str(tmp_path_factory.mktemp("mypy"))


@pytest.mark.parametrize("name", ["a", "quite-a-long-name-for-a-plugin"])
@pytest.mark.parametrize("kind", new.SUMMARIES)
def test_a_new_package_is_clean(tmp_path, types_cache, name, kind):
    """For ruff and mypy, with short and long names."""
    for tool in ("ruff", "mypy"):
        pytest.importorskip(tool, reason=f"{tool} is not installed")
    package = write(tmp_path, name, kind)
    run(package, "-m", "ruff", "check", "--no-cache", ".")
    run(package, "-m", "ruff", "format", "--no-cache", "--check", ".")
    if name == "a":  # mypy takes its time, and a longer name has the same types
        run(package, "-m", "mypy", "--cache-dir", types_cache, "src", "tests")


def test_what_is_written(tmp_path, capsys):
    package = write(tmp_path, "my-logger", "logger")
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "pyproject.toml",
        "src/fulmen_my_logger/__init__.py",
        "src/fulmen_my_logger/logger.py",
        "src/fulmen_my_logger/plugin.py",
        "src/fulmen_my_logger/py.typed",
        "tests/test_conformance.py",
    }
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["name"] == "fulmen-my-logger"
    assert project["entry-points"] == {"fulmen": {"my-logger": "fulmen_my_logger.plugin"}}
    tree = ast.parse((package / "src/fulmen_my_logger/logger.py").read_text())
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == ["MyLogger"]
    assert len((package / "tests/test_conformance.py").read_text().splitlines()) <= 30
    assert capsys.readouterr().out == (
        f'wrote {package}; next:\n\n    cd {package}\n    pip install -e . "fulmen[testing]"\n'
        "    fulmen plugins why my-logger\n    pytest\n"
    )


def test_every_kind_that_the_trainer_takes_has_a_template():
    assert set(new.SUMMARIES) == set(CONTRACTS) - {"progress"}


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("fulmen-x", "'fulmen-x': leave 'fulmen-' out, which the package's name gets anyway: 'x'"),
        *(
            (
                name,
                f"{name!r} is no name for a plugin; it consists of lower-case letters, digits and single dashes, "
                "starting with a letter, such as 'jsonl' or 'my-logger'",
            )
            for name in ("Big", "under_score", "1st", "a--b", "end-", "../x", "ä", "")
        ),
        ("csv", None),
        ("wandb", "logger 'wandb' is in the package fulmen-wandb; choose another name"),
    ],
)
def test_names_that_cannot_be(tmp_path, capsys, name, error):
    assert main(["plugin", "new", name, "--kind", "logger", "--folder", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    if error is None:
        assert re.fullmatch(r"fulmen: logger 'csv' is provided by fulmen [\w.]+; choose another name\n", said)
    else:
        assert said == f"fulmen: {error}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path, capsys):
    package = tmp_path / "fulmen-mine"
    package.mkdir()
    (package / "precious").write_text("x")
    assert main(["plugin", "new", "mine", "--kind", "logger", "--folder", str(tmp_path)]) == 1
    expected = f"fulmen: {package} exists already, and nothing in it was changed; choose another name or --folder\n"
    assert capsys.readouterr().err == expected
    assert [path.name for path in package.iterdir()] == ["precious"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["plugin", "new", "mine", "--kind", "logger", "--folder", str(tmp_path / "file")]) == 1
    assert re.fullmatch(r"fulmen: .*fulmen-mine cannot be written: .*Not a directory.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["plugin"], r"fulmen plugin: the following arguments are required: new NAME; see fulmen plugin --help"),
        (["plugin", "new", "x"], r"fulmen plugin new: the following arguments are required: --kind; see .*"),
        (["plugin", "new", "x", "--kind", "loger"], r"fulmen plugin new: argument --kind: invalid choice: 'loger' .*"),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(capsys, command, error):
    assert main(command) == 2
    assert re.fullmatch(error, capsys.readouterr().err.strip())
