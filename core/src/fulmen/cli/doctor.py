"""``fulmen doctor``: versions, devices, plugins, and everything that is wrong with them. Imports torch and every part."""

from __future__ import annotations

import platform
from pathlib import Path

import pluggy

from fulmen.cli import checks
from fulmen.cli.text import bullets, duration, table
from fulmen.plugins import PluginSet, version


def run() -> tuple[str, int]:
    """The report, and the exit status."""
    problems: list[str] = []
    found = PluginSet.discover(problems=problems)
    torch_version, kind, count = checks.torch_devices(problems)
    seen = f"sees {count} of type {kind!r}" if kind else "sees no device but the CPU"
    folder = Path.cwd()
    sections: dict[str, list[tuple[str, ...]]] = {
        "versions": _versions(found, torch_version),
        "devices": [("torch", seen), *checks.accelerators(found, problems)],
        "plugins": [("name", "status", "import"), *((p.name, p.status, duration(p.import_ms)) for p in found.plugins.values())],
        "project": [("folder", str(folder)), ("settings", str(found.project.path or "no pyproject.toml with [tool.fulmen]"))],
    }
    problems += checks.idle_device(kind, found)
    problems += checks.parts_that_do_not_load(found)
    problems += checks.settings(found)
    problems += checks.working_folder(folder)
    text = "\n".join(f"{title}\n{table(rows)}" for title, rows in sections.items())
    verdict = f"problems\n{bullets(dict.fromkeys(problems))}" if problems else "no problem found\n"
    return f"{text}\n{verdict}", 1 if problems else 0


def _versions(found: PluginSet, torch_version: str) -> list[tuple[str, ...]]:
    distributions = {plugin.distribution: plugin.version for plugin in found.plugins.values()}
    ours = {"python": platform.python_version(), "torch": torch_version, "pluggy": pluggy.__version__, "fulmen": version()}
    return [*{**ours, **distributions}.items()]
