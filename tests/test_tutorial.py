"""The tutorial of docs/plugins.md, done as it is written: each command, in real environments, with real wheels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
SECTION = TEXT.partition("## Publish a plugin in fifteen minutes\n")[2].partition("\n## ")[0]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Environment:
    """An empty virtual environment with the wheel of the core, in which commands are run without a network.

    torch is too large to install anew: what is installed here can be imported there too, except anything of fulmen. A link
    for each thing does that, because neither the parent's ``.pth`` files nor its distributions of fulmen may be seen.
    """

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        borrowed = folder / "borrowed"
        venv.create(folder, with_pip=True, symlinks=True)
        borrowed.mkdir()
        for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(site).iterdir():
                if "fulmen" not in entry.name.lower() and not entry.name.startswith(("pip", "__editable__", "_virtualenv")):
                    (borrowed / entry.name).symlink_to(entry)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "borrowed.pth").write_text(str(borrowed))
        (folder / "bin" / "pytest").write_text('#!/bin/sh\nexec python -m pytest "$@"\n')  # commands are not lent
        (folder / "bin" / "pytest").chmod(0o755)
        self.run(folder, f"pip install --no-deps {wheel}")

    def run(self, cwd: Path, commands: str) -> str:
        """What the commands print, on either stream. They must succeed."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        pip = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        ours = {"PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **pip}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FULMEN", "PIP", "COV"))}
        command = ["bash", "-euo", "pipefail", "-c", commands]
        done = subprocess.run(
            command, cwd=cwd, env={**kept, **ours}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout[-6000:]}"
        return done.stdout


def blocks(heading: str) -> list[tuple[str, str, str]]:
    """The blocks below a heading: language, the text between it and the block before, content."""
    text, found, end = SECTION.partition(f"### {heading}\n")[2].partition("\n### ")[0], [], 0
    for match in BLOCK.finditer(text):
        found.append((match[1], text[end : match.start()], match[2]))
        end = match.end()
    return found


def do(environment: Environment, folder: Path, heading: str) -> str:
    """Everything below a heading: commands are run, files are written, and texts must be in what the last command printed."""
    output = everything = ""
    for language, before, content in blocks(heading):
        if language == "bash":
            output = environment.run(folder, content)
            everything += output
        elif language == "text":
            flat = " ".join(output.split())
            missing = [line for line in content.splitlines() if " ".join(line.split()) not in flat]
            assert not missing, f"{missing} is not in:\n{output}"
        else:
            names = re.findall(r"`([\w.]+\.(?:toml|py))`", before)
            (folder / (names[-1] if names else "pyproject.toml")).write_text(content, encoding="utf-8")
    return everything


@pytest.fixture(scope="module")
def core_wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="hatchling builds the wheels")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT / "core", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_tutorial_works_as_it_is_written(tmp_path, core_wheel):
    author, user = (Environment(tmp_path / name, core_wheel) for name in ("author", "user"))
    folder = tmp_path / "work"
    folder.mkdir()

    assert re.search(r"\d+ passed", do(author, folder, "Write it"))
    do(author, folder, "Publish it")
    (wheel,) = (folder / "dist").iterdir()
    assert wheel.name == "fulmen_jsonl-0.1.0-py3-none-any.whl"

    printed = do(user, folder, "Use it")
    origin = json.loads(user.run(tmp_path, "fulmen plugins --json"))["plugins"]
    assert [(each["name"], each["distribution"]) for each in origin] == [("builtin", "fulmen"), ("jsonl", "fulmen-jsonl")]
    where = user.run(tmp_path, "python -c 'import fulmen, fulmen_jsonl; print(fulmen.__file__, fulmen_jsonl.__file__)'").split()
    assert [Path(path).is_relative_to(tmp_path / "user") for path in where] == [True, True], "not the wheels were used"
    rows = [json.loads(line) for line in (folder / "records" / "jsonl" / "0.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train_loss" in row] == [1, 3]
    assert all(row["train_loss"] == float(f"{row['train_loss']:.3g}") for row in rows if "train_loss" in row)
    assert rows[0]["train_loss"] != round(rows[0]["train_loss"], 1)
    assert "max_epochs=1 reached" in printed or "train_loss" in printed
