"""Write a package with a plugin: a small real part, typed and tested, that works at once.

It gets a folder fulmen-NAME with pyproject.toml, README.md, src/ and tests/. Install it (pip install -e fulmen-NAME), and
the part can be used by NAME; its tests are those that fulmen's own parts pass.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from string import Template
from textwrap import indent

from fulmen.errors import ConfigurationError
from fulmen.known import KNOWN
from fulmen.plugins import PluginSet

SUMMARIES = {
    "logger": "metrics as lines of JSON",
    "callback": "counts the batches that a module is trained with",
    "accelerator": "the processor, as several devices",
    "strategy": "one process on one device, with its steps counted",
    "precision": "layers in bfloat16, parameters in single precision",
    "exporter": "the program that torch.export makes",
    "profiler": "the slowest call of each action",
    "environment": "processes that a scheduler has started",
}
"""Kind of part -> what the part in its template does."""

_USES = {
    "logger": 'trainer = fulmen.Trainer(logger="$name")',
    "callback": 'trainer = fulmen.Trainer(callbacks="$name")',
    "accelerator": 'trainer = fulmen.Trainer(accelerator="$name", devices=1)',
    "strategy": 'trainer = fulmen.Trainer(strategy="$name")',
    "precision": 'trainer = fulmen.Trainer(precision="$name")',
    "exporter": 'module.export("$name", "model.pt2", input_sample=x)',
    "profiler": 'trainer = fulmen.Trainer(profiler="$name")',
    "environment": "trainer = fulmen.Trainer()  # finds it where the scheduler's variables are set",
}


def run(name: str, kind: str, folder: str) -> str:
    """Write the package, and say what to do next.

    Args:
        name: What users write for the part; the package is ``fulmen-<name>``.
        kind: One of :data:`SUMMARIES`.
        folder: Where to make the package's folder.

    Raises:
        ConfigurationError: The name cannot be one, is taken, or the folder is there already.
    """
    check_name(name, kind)
    target = Path(folder, f"fulmen-{name}")
    if target.exists():
        raise ConfigurationError(f"{target} exists already, and nothing in it was changed; choose another name or --folder")
    files = package(name, kind)
    try:
        for path, text in files.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error}") from error
    next_steps = f'cd {target}\npip install -e . "fulmen[testing]"\nfulmen plugins why {name}\npytest\n'
    return f"wrote {target}; next:\n\n{indent(next_steps, '    ')}"


def check_name(name: str, kind: str) -> None:
    """Raise :class:`ConfigurationError` where a part cannot have this name."""
    form = "lower-case letters, digits and single dashes, starting with a letter, such as 'jsonl' or 'my-logger'"
    if name.startswith(("fulmen-", "fulmen_")):
        raise ConfigurationError(f"{name!r}: leave 'fulmen-' out, which the package's name gets anyway: {name[7:]!r}")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigurationError(f"{name!r} is no name for a plugin; it consists of {form}")
    known = KNOWN.get(kind, {})
    if name in known:
        raise ConfigurationError(f"{kind} {name!r} is in the package fulmen-{known[name]}; choose another name")
    taken = [each for each in PluginSet.discover(problems=[]).registry.providers if (each.kind, each.name) == (kind, name)]
    if taken:
        raise ConfigurationError(f"{kind} {name!r} is provided by {taken[0].origin}; choose another name")


def package(name: str, kind: str) -> dict[str, str]:
    """Path -> text for each file of the package."""
    module, words = f"fulmen_{name.replace('-', '_')}", name.split("-")
    prefix = "_".join(words).upper()
    values = {
        "name": name,
        "kind": kind,
        "module": module,
        "distribution": f"fulmen-{name}",
        "Class": "".join(word.capitalize() for word in (words if words[-1] == kind else [*words, kind])),
        "PREFIX": prefix,
        "VARIABLE": f"{prefix}_DEVICES",
        "summary": SUMMARIES[kind],
    }
    imported = "" if kind == "exporter" else "import fulmen\n\n"
    values["use"] = f"```python\n{imported}{Template(_USES[kind]).substitute(values)}\n```"
    templates = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"src/{module}/__init__.py": "__init__.py",
        f"src/{module}/plugin.py": "plugin.py",
        f"src/{module}/{kind}.py": f"parts/{kind}.py",
        "tests/test_conformance.py": f"parts/{kind}.test",
    }
    folder = resources.files("fulmen.cli") / "templates"
    texts = {path: (folder / f"{source}.txt").read_text(encoding="utf-8") for path, source in templates.items()}
    return {f"src/{module}/py.typed": "", **{path: Template(text).substitute(values) for path, text in texts.items()}}
