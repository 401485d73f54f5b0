"""Documentation that is run: a block that does not work, a name or a link that is gone, fails here."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
FOLDERS = ("docs", "core", "packages/*", "examples", "benchmarks", "changelog")
DOCUMENTS = [path for pattern in ("*.md", *(f"{each}/**/*.md" for each in FOLDERS)) for path in sorted(ROOT.glob(pattern))]
SOURCES = [ROOT / "core" / "src", *sorted(ROOT.glob("packages/*/src"))]
MODULES = [
    ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
    for source in SOURCES
    for path in sorted(source.rglob("*.py"))
    if path.name != "__main__.py"
]


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """The code blocks of a document in one language, each with the number of its first line."""
    text = path.read_text(encoding="utf-8")
    found = [(text.count("\n", 0, match.start()) + 2, match) for match in FENCE.finditer(text) if match[2] == language]
    return [(line, re.sub(rf"(?m)^{match[1]}", "", match[3])) for line, match in found]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def run_python(path: Path) -> None:
    """All blocks of a document, one after the other, in one namespace: as a reader would type them.

    A block that guards its main program is a script, and run as one: it may start itself again.
    """
    if any('__name__ == "__main__"' in code for _, code in blocks(path, "python")):
        return run_script("\n".join(code for _, code in blocks(path, "python")))
    namespace = {"__name__": "__main__"}
    for line, code in blocks(path, "python"):
        exec(compile("\n" * (line - 1) + code, name(path), "exec"), namespace)


def run_script(code: str) -> None:
    """A program in a process of its own."""
    Path("script.py").write_text(code, encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    done = subprocess.run([sys.executable, "script.py"], env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run_pycon(path: Path) -> None:
    """Sessions with a prompt, which show what is printed."""
    text = "\n".join(code for _, code in blocks(path, "pycon"))
    test = doctest.DocTestParser().get_doctest(text, {}, name(path), str(path), 0)
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert results.attempted
    assert not results.failed


def run_toml(path: Path) -> None:
    """Configuration, which must at least be readable."""
    for _, code in blocks(path, "toml"):
        assert tomllib.loads(code)


LANGUAGES = {"python": run_python, "pycon": run_pycon, "toml": run_toml}


@pytest.mark.filterwarnings(r"ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")  # Comet's own
@pytest.mark.parametrize(
    ("path", "language"), [(name(path), each) for path in DOCUMENTS for each in LANGUAGES if blocks(path, each)]
)
def test_code_in_documents_works(path, language, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LANGUAGES[language](ROOT / path)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_show_what_is_printed(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def sessions() -> set[str]:
    """The names of the sessions in ``noxfile.py``."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return {node.name for node in functions if any("nox.session" in ast.unparse(each) for each in node.decorator_list)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_sessions_and_files_that_are_named_exist(path):
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r'\bnox (?:-R )?(?:--no-venv )?-s "?([a-z]\w*)', text))
    assert named <= sessions()
    links = re.findall(r"\]\((?!\w+:)([^)#\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_documents_are_found():
    assert {"README.md", "CONTRIBUTING.md"} <= {name(path) for path in DOCUMENTS}
    assert "fulmen.registry" in MODULES


def test_the_table_of_contracts_is_true():
    """docs/plugins.md lists what each kind of part implements, as the contracts have it."""
    from fulmen.contracts.callback import Callback
    from fulmen.registry import CONTRACTS, import_target

    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8").partition("### What a class of each kind implements")[2]
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")][1 : len(CONTRACTS) + 1]
    assert [kind.strip() for kind, *_ in lines] == list(CONTRACTS)
    for kind, *cells in lines:
        contract = import_target(CONTRACTS[kind.strip()])
        bases = [base for base in contract.__mro__ if base.__module__.startswith("fulmen.contracts")]
        if issubclass(contract, Callback) and contract is not Callback:
            bases.remove(Callback)  # "what a callback may"
        public = {name for base in bases for name in vars(base) if not name.startswith(("_", "on_"))}
        must = {name for name in public if getattr(getattr(contract, name, None), "__isabstractmethod__", False)}
        listed = [{*re.findall(r"`(\w+)`", cell)} for cell in cells]
        assert listed == [{contract.__name__}, must, public - must], kind
