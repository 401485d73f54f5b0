"""Every package is built alike: one that knows its neighbour knows it too. Packages are found, not listed."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fulmen
from fulmen.known import CLASSES, KNOWN

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path for path in (ROOT / "packages").glob("*") if (path / "pyproject.toml").exists())
PUBLIC = (
    *("fulmen.callbacks", "fulmen.contracts", "fulmen.errors", "fulmen.hookspecs"),
    *("fulmen.lazy", "fulmen.loggers", "fulmen.registry", "fulmen.testing"),
)
"""Modules that packages may import beside the names that ``fulmen`` itself exports."""
LONGEST_PLUGIN = 40


def problems(package: Path) -> Iterator[str]:
    """What in a package is not as in all others."""
    short = package.name.removeprefix("fulmen-")
    module = f"fulmen_{short.replace('-', '_')}"
    source = package / "src" / module
    for needed in (f"src/{module}/__init__.py", f"src/{module}/plugin.py", f"src/{module}/py.typed", "README.md", "tests"):
        if not (package / needed).exists():
            yield f"{needed} is missing"
    if not list(package.glob("tests/**/test_*.py")):
        yield "tests/ has no test"
    yield from project_problems(tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8")), package.name, module)
    if (source / "plugin.py").exists():
        yield from plugin_problems(source / "plugin.py")
    yield from heavy_imports(source / "__init__.py", "fulmen.lazy")
    for path in sorted(source.rglob("*.py")):
        yield from import_problems(path, module)
    for path in sorted((package / "tests").rglob("*.py")):
        yield from foreign_tests(path, module, short)


def project_problems(data: dict, name: str, module: str) -> Iterator[str]:
    """What the ``pyproject.toml`` of a package says otherwise than the others."""
    project = data.get("project", {})
    if project.get("name") != name:
        yield f"the distribution is called {project.get('name')!r} and its folder {name!r}"
    targets = project.get("entry-points", {}).get("fulmen", {}).values()
    if list(targets) != [f"{module}.plugin"]:
        yield f"its entry points in the group 'fulmen' are {list(targets)}, and not ['{module}.plugin']"
    core = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for key in ("requires-python", "license"):
        if project.get(key) != core[key]:
            yield f"{key} is {project.get(key)!r}, and in the core {core[key]!r}"
    if not any(requirement.split(">")[0].split("=")[0].strip() == "fulmen" for requirement in project.get("dependencies", [])):
        yield "it does not depend on fulmen"
    if others := [each for each in project.get("dependencies", []) if each.startswith("fulmen-")]:
        yield f"it depends on other packages: {others}"
    if data.get("build-system", {}).get("build-backend") != "hatchling.build":
        yield "it is not built with hatchling"


def plugin_problems(path: Path) -> Iterator[str]:
    """What makes the module heavy that is imported to list plugins."""
    text = path.read_text(encoding="utf-8")
    if (length := len(text.splitlines())) > LONGEST_PLUGIN:
        yield f"plugin.py has {length} lines, more than {LONGEST_PLUGIN}: move what it does elsewhere"
    yield from heavy_imports(path, "fulmen.hookspecs")


def heavy_imports(path: Path, allowed: str) -> Iterator[str]:
    """What a file imports beside the one module that it needs: finding a plugin imports its package too."""
    if heavy := {name for name in imported(path) if not name.startswith((f"{allowed}.", "__future__.", "typing."))}:
        yield f"{path.name} imports {sorted(heavy)}, and not only {allowed}"


def import_problems(path: Path, module: str) -> Iterator[str]:
    """Imports of other packages, and of names of the core that are not public."""
    for name in imported(path, runtime_only=False):
        top, _, rest = name.partition(".")
        if top.startswith("fulmen_") and top != module:
            yield f"{path.name} imports {name}, of another package"
        if top == "fulmen" and rest not in fulmen.__all__ and not any(f"{name}.".startswith(f"{each}.") for each in PUBLIC):
            yield f"{path.name} imports {name}, which is not public"


def foreign_tests(path: Path, module: str, extra: str) -> Iterator[str]:
    """Imports of other packages in a test, which runs where only the core and its own package are installed."""
    for name in imported(path, runtime_only=False):
        top, _, rest = name.partition(".")
        owner = CLASSES.get(rest.rpartition(".")[2], extra) if top == "fulmen" else extra
        if owner != extra or (top.startswith("fulmen_") and top != module):
            yield f"tests/{path.name} imports {name}, of another package"


def imported(path: Path, *, runtime_only: bool = True) -> Iterator[str]:
    """The dotted names that a file imports; without those for type checkers where ``runtime_only`` is set."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if runtime_only and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            skipped.update(inner for child in node.body for inner in ast.walk(child))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_packages_are_alike():
    assert {package.name: found for package in PACKAGES if (found := list(problems(package)))} == {}


def test_the_core_offers_an_extra_for_each_package():
    """``pip install "fulmen[wandb]"`` installs ``fulmen-wandb``."""
    core = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    given = core["optional-dependencies"].items()
    extras = {name: wants for name, wants in given if any(requirement.startswith("fulmen-") for requirement in wants)}
    assert extras == {package.name.removeprefix("fulmen-"): [package.name] for package in PACKAGES}


def test_the_workspace_builds_them_from_here():
    """uv takes ``fulmen-wandb`` from ``packages/`` and not from an index."""
    sources = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]["sources"]
    assert sources == {name: {"workspace": True} for name in ("fulmen", *(package.name for package in PACKAGES))}


def test_what_an_error_says_is_in_a_package_is_there():
    """Names in :data:`fulmen.known.KNOWN` whose package exists are registered by that package under that kind."""
    existing = {package.name.removeprefix("fulmen-"): package for package in PACKAGES}
    wrong = [
        f"{kind} {name!r} is not registered by fulmen-{extra}"
        for kind, names in KNOWN.items()
        for name, extra in names.items()
        if extra in existing and not _registers(existing[extra], kind, name)
    ]
    assert not wrong


def _registers(package: Path, kind: str, name: str) -> bool:
    text = next(package.glob("src/*/plugin.py")).read_text(encoding="utf-8")
    return f"registry.{kind}(" in text and f'"{name}"' in text


# ---- The checks themselves, on a package made for it


GOOD = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "fulmen-two-words"
version = "0.1.0"
requires-python = ">=3.10"
license = "Apache-2.0"
dependencies = ["fulmen"]
[project.entry-points.fulmen]
two-words = "fulmen_two_words.plugin"
""",
    "README.md": "# fulmen-two-words\n",
    "src/fulmen_two_words/__init__.py": """
from fulmen.lazy import attributes
__getattr__, __dir__ = attributes(__name__, {"MyLogger": "logger"})
""",
    "src/fulmen_two_words/py.typed": "",
    "src/fulmen_two_words/plugin.py": """
from fulmen.hookspecs import hookimpl

@hookimpl
def register(registry):
    registry.logger("two-words", "fulmen_two_words.logger:MyLogger", summary="an example")
""",
    "src/fulmen_two_words/logger.py": "import json\nfrom fulmen import Logger\n\nclass MyLogger(Logger): ...\n",
    "tests/test_logger.py": "",
}


def write_package(folder: Path, changes: dict[str, str | None]) -> Path:
    package = folder / "fulmen-two-words"
    for name, text in {**GOOD, **changes}.items():
        if text is not None:
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            (package / name).write_text(text, encoding="utf-8")
    return package


def test_a_good_package_has_no_problems(tmp_path):
    assert list(problems(write_package(tmp_path, {}))) == []


PYPROJECT = GOOD["pyproject.toml"]
LOGGER = "src/fulmen_two_words/logger.py"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"README.md": None}, ["README.md is missing"]),
        ({"src/fulmen_two_words/py.typed": None}, ["src/fulmen_two_words/py.typed is missing"]),
        ({"tests/test_logger.py": None}, ["tests is missing", "tests/ has no test"]),
        (
            {"tests/test_logger.py": "from fulmen.callbacks import EarlyStopping\nimport fulmen_ddp, fulmen_two_words\n"},
            [
                f"tests/test_logger.py imports {name}, of another package"
                for name in ("fulmen.callbacks.EarlyStopping", "fulmen_ddp")
            ],
        ),
        (
            {"pyproject.toml": PYPROJECT.replace('name = "fulmen-two-words"', 'name = "two"')},
            ["the distribution is called 'two' and its folder 'fulmen-two-words'"],
        ),
        (
            {"pyproject.toml": PYPROJECT.replace("fulmen_two_words.plugin", "fulmen_two_words.logger")},
            ["its entry points in the group 'fulmen' are ['fulmen_two_words.logger'], and not ['fulmen_two_words.plugin']"],
        ),
        (
            {"pyproject.toml": PYPROJECT.replace('["fulmen"]', '["fulmen-wandb>=1"]')},
            ["it does not depend on fulmen", "it depends on other packages: ['fulmen-wandb>=1']"],
        ),
        (
            {"pyproject.toml": PYPROJECT.replace(">=3.10", ">=3.12").replace("hatchling.build", "setuptools.build_meta")},
            ["requires-python is '>=3.12', and in the core '>=3.10'", "it is not built with hatchling"],
        ),
        (
            {"src/fulmen_two_words/plugin.py": GOOD["src/fulmen_two_words/plugin.py"] + "import torch\n"},
            ["plugin.py imports ['torch'], and not only fulmen.hookspecs"],
        ),
        (
            {"src/fulmen_two_words/__init__.py": "from fulmen_two_words.logger import MyLogger\n"},
            ["__init__.py imports ['fulmen_two_words.logger.MyLogger'], and not only fulmen.lazy"],
        ),
        (
            {"src/fulmen_two_words/plugin.py": GOOD["src/fulmen_two_words/plugin.py"] + "#\n" * 40},
            ["plugin.py has 46 lines, more than 40: move what it does elsewhere"],
        ),
        ({LOGGER: "def late():\n    import fulmen_ddp\n"}, ["logger.py imports fulmen_ddp, of another package"]),
        ({LOGGER: "from fulmen.loop import fit\n"}, ["logger.py imports fulmen.loop.fit, which is not public"]),
        ({LOGGER: "from fulmen import loop\n"}, ["logger.py imports fulmen.loop, which is not public"]),
    ],
)
def test_each_problem_is_found(tmp_path, changes, expected):
    assert list(problems(write_package(tmp_path, changes))) == expected
