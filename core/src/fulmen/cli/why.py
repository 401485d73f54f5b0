"""Who provides a name, from which package, and why it acts or does not.

A name is that of a plugin, of a part (csv, logger.csv, distribution:csv) or of a class (EarlyStopping).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fulmen.cli.text import duration, table
from fulmen.errors import PluginError, listing, nearest
from fulmen.known import CLASSES, KNOWN, extra_for, install_line
from fulmen.plugins import TRAINER, Plugin, PluginSet
from fulmen.project import PluginSettings
from fulmen.registry import Provider


def run(name: str) -> str:
    """Everything that is known about ``name``.

    Raises:
        PluginError: Nothing that is installed has that name.
    """
    problems: list[str] = []  # `fulmen doctor` reports these; here only those about `name` matter
    found = PluginSet.discover(problems=problems)
    plugins = [plugin for plugin in found.plugins.values() if name in (plugin.name, *plugin.spellings)]
    providers = [provider for provider in found.registry.providers if name in _names(provider)]
    if not plugins and not providers:
        raise PluginError(_unknown(name, found))
    sections = [_plugin(plugin, found) for plugin in plugins]
    sections += [_part(same, found) for same in _by_part(providers)]
    return "\n".join([*sections, _precedence(found)])


def _names(provider: Provider) -> tuple[str, ...]:
    short = provider.name
    return short, f"{provider.kind}.{short}", f"{provider.distribution}:{short}", provider.class_name, provider.target


def _by_part(providers: Iterable[Provider]) -> list[list[Provider]]:
    """Providers that are one class under several names together, so that it is described once."""
    parts: dict[tuple[str, ...], list[Provider]] = {}
    for provider in providers:
        parts.setdefault((provider.kind, provider.target, provider.plugin, repr(provider.arguments)), []).append(provider)
    return list(parts.values())


# ---- What a name is


def _part(providers: list[Provider], found: PluginSet) -> str:
    first = providers[0]
    rows = [
        ("class", first.target),
        ("summary", first.summary),
        ("package", first.origin),
        ("plugin", f"{first.plugin}, {_status(found.plugins[first.plugin])}"),
    ]
    if first.arguments:
        rows.append(("arguments", _keywords(first.arguments.items())))
    for provider in providers:
        if options := found.options(provider):
            rows.append(("options", f"{_keywords(options.items())}, from {_file(found.project)}"))
        rows += _claims(provider, found)
    names = " and ".join(repr(provider.name) for provider in providers)
    return f"{first.kind} {names}\n{table(rows)}"


def _claims(provider: Provider, found: PluginSet) -> list[tuple[str, str]]:
    """Whether another distribution claims the name too, and which of the two is taken."""
    for rivals in found.registry.conflicts():
        if provider not in rivals:
            continue
        others = listing(f"{rival.origin} ({rival.target})" for rival in rivals if rival is not provider)
        key = f"{provider.kind}.{provider.name}"
        if key not in found.project.prefer:
            table = f'[tool.fulmen.plugins.prefer]\n"{key}" = "{provider.distribution}"'
            return [("conflict", f"also in {others}; uninstall one, or take this one in pyproject.toml:\n{table}")]
        try:
            taken = found.provider(provider.kind, provider.name).origin
        except PluginError as error:
            return [("conflict", str(error))]
        return [("conflict", f"also in {others}; {taken} is taken, as {_file(found.project)} has it")]
    return []


def _plugin(plugin: Plugin, found: PluginSet) -> str:
    rows = [("package", plugin.origin), ("module", plugin.target), ("status", _status(plugin))]
    if plugin.error:
        rows.append(("error", plugin.error))
    elif plugin.disabled_by is None:
        provided = [
            f"{provider.kind} {provider.name!r}" for provider in found.registry.providers if provider.plugin == plugin.name
        ]
        rows += [("import", duration(plugin.import_ms)), ("provides", listing(provided))]
        rows += [("hook", _order(hook, plugin, found)) for hook in plugin.hooks if hook != "register"]
    return f"plugin {plugin.name!r}\n{table(rows)}"


def _order(hook: str, plugin: Plugin, found: PluginSet) -> str:
    order = found.hook_order(hook)
    if plugin.name in order:
        return f"{hook}: acts as number {order.index(plugin.name) + 1} of {len(order)} ({', then '.join(order)})"
    return f"{hook}: does not act, because the plugin is not enabled"


def _status(plugin: Plugin) -> str:
    if plugin.status == "broken":
        return "broken: nothing of it is available"
    if plugin.status == "disabled":
        return f"disabled by {plugin.disabled_by}: it is not imported, and nothing of it is available"
    if plugin.status == "enabled":
        return f"enabled by {plugin.enabled_by}"
    return "available: its parts can be named; its on_* hooks do not act, because nothing enables it"


def _keywords(items: Iterable[tuple[str, object]]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in items)


# ---- Who decides


def _precedence(found: PluginSet) -> str:
    rows = [
        ("1", TRAINER, "enables; known only when a trainer is made"),
        ("2", "FULMEN_PLUGINS", f"'name' enables, '-name' disables; {_says(found.environment)}"),
        ("3", "[tool.fulmen.plugins]", f"enable = [...], disable = [...]; {_file(found.project)} {_says(found.project)}"),
        ("4", "nothing of these", _otherwise(found)),
    ]
    return f"who decides on a plugin, the first that mentions it\n{table(rows)}"


def _says(settings: PluginSettings) -> str:
    said = [("enables", settings.enable), ("disables", settings.disable)]
    return " and ".join(f"{verb} {listing(names)}" for verb, names in said if names) or "says nothing"


def _file(settings: PluginSettings) -> str:
    if settings.path is None:
        return f"no pyproject.toml with [tool.fulmen] at or above {Path.cwd()}, so it"
    return str(settings.path)


def _otherwise(found: PluginSet) -> str:
    if found.autoload:
        return "its parts can be named, its on_* hooks do not act"
    return "it is not imported, because of FULMEN_PLUGIN_AUTOLOAD=0"


def _unknown(name: str, found: PluginSet) -> str:
    kind, _, short = name.rpartition(".")
    extra = extra_for(short, kind) if kind in KNOWN else extra_for(name)
    if extra:
        return f"{name!r} is not installed; fulmen-{extra} provides it: {install_line(extra)}{found.excuses()}"
    installed = {*found.plugins, *(each for provider in found.registry.providers for each in _names(provider)[::3])}
    known = {known for names in (*KNOWN.values(), CLASSES) for known in names}
    guess = nearest(name, sorted(installed | known))
    missing = extra_for(guess) if guess is not None and guess not in installed else None
    meant = f"; did you mean {guess!r}?" if guess else ""
    install = f" ({install_line(missing)})" if missing else ""
    return f"nothing is called {name!r}{meant}{install}; `fulmen plugins` lists what is installed{found.excuses()}"
