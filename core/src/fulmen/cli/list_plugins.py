"""List the installed plugins and the parts that they provide.

With --json it is one object. Its keys are stable, though new ones may be added:

    fulmen      version of fulmen
    hookspecs   version of its hooks
    plugins     name, target, distribution, version, status (enabled, available, disabled or broken),
                enabled_by, disabled_by, error (null where there is none), import_ms, hooks
    providers   kind, name, target, summary, plugin, distribution, version, priority, arguments
    problems    sentences: what is wrong with plugins and their configuration
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from fulmen import hookspecs
from fulmen.cli.text import aligned, bullets, duration, table
from fulmen.plugins import Plugin, PluginSet, version
from fulmen.registry import CONTRACTS, Provider


def run(kind: str | None, *, as_json: bool) -> str:
    """The list as text.

    Args:
        kind: Only providers of this kind, and the plugins that have some; ``None`` for all.
        as_json: For programs instead of people.
    """
    problems: list[str] = []
    found = PluginSet.discover(problems=problems)
    providers = [provider for provider in found.registry.providers if kind in (None, provider.kind)]
    plugins = [p for p in found.plugins.values() if kind is None or p.name in {provider.plugin for provider in providers}]
    if as_json:
        return _as_json(plugins, providers, problems)
    text = f"fulmen {version()}, hooks version {hookspecs.VERSION}\n\nplugins\n{_plugin_table(plugins)}"
    text += _provider_tables(providers)
    return text + (f"\nproblems\n{bullets(problems)}" if problems else "")


def _plugin_table(plugins: Iterable[Plugin]) -> str:
    rows = [(p.name, p.origin, p.status, _by(p), duration(p.import_ms), _hooks(p)) for p in plugins]
    return table([("name", "package", "status", "by", "import", "hooks"), *rows])


def _by(plugin: Plugin) -> str:
    return (plugin.disabled_by or plugin.enabled_by or "-").partition(" ")[0]


def _hooks(plugin: Plugin) -> str:
    return ", ".join(hook for hook in plugin.hooks if hook != "register") or "-"


def _provider_tables(providers: Sequence[Provider]) -> str:
    """One table for each kind, with the same columns: the names of a part, what it is and its class, its package."""
    parts: dict[tuple[str, ...], list[str]] = {}
    for provider in sorted(providers, key=lambda provider: list(CONTRACTS).index(provider.kind)):
        key = (provider.kind, f"{provider.summary}\n{provider.target}", provider.origin, repr(provider.arguments))
        parts.setdefault(key, []).append(provider.name)
    rows = aligned([(", ".join(names), what, origin) for (_, what, origin, _), names in parts.items()], wrap=1)
    text, last = "", ""
    for (kind, *_), row in zip(parts, rows, strict=True):
        text += row if kind == last else f"\n{kind}\n{row}"
        last = kind
    return text


def _as_json(plugins: Iterable[Plugin], providers: Iterable[Provider], problems: list[str]) -> str:
    report: dict[str, Any] = {
        "fulmen": version(),
        "hookspecs": hookspecs.VERSION,
        "plugins": [{**asdict(plugin), "status": plugin.status} for plugin in plugins],
        "providers": [asdict(provider) for provider in providers],
        "problems": problems,
    }
    return json.dumps(report, indent=2, default=repr) + "\n"
