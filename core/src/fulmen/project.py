"""Which plugins a project enables: ``pyproject.toml`` and the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fulmen.errors import ConfigurationError, did_you_mean, listing
from fulmen.registry import CONTRACTS

_KEYS = ("enable", "disable", "prefer", "options")


@dataclass(frozen=True)
class PluginSettings:
    """What one source says about plugins.

    Keys of ``prefer`` are ``"kind.name"``; keys of ``options`` are the name of a part, with its kind before it where one
    name stands for several: ``"csv"`` or ``"logger.csv"``.
    """

    source: str
    enable: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    prefer: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    path: Path | None = None

    def verdict(self, spellings: Collection[str]) -> bool | None:
        """Whether this source enables (``True``) or disables (``False``) the plugin so called, or says nothing (``None``)."""
        if any(name in spellings for name in self.disable):
            return False
        return True if any(name in spellings for name in self.enable) else None


def from_environment(environ: Mapping[str, str]) -> PluginSettings:
    """``FULMEN_PLUGINS="wandb,-comet"``: names enable, names with a minus disable."""
    names = [name.strip() for name in environ.get("FULMEN_PLUGINS", "").split(",") if name.strip()]
    enable = tuple(name for name in names if not name.startswith("-"))
    return PluginSettings("FULMEN_PLUGINS", enable, tuple(name[1:] for name in names if name.startswith("-")))


def autoload(environ: Mapping[str, str]) -> bool:
    """Whether installed plugins are looked at without being named: ``FULMEN_PLUGIN_AUTOLOAD=0`` turns that off."""
    value = environ.get("FULMEN_PLUGIN_AUTOLOAD", "1")
    if value not in ("0", "1"):
        raise ConfigurationError(f"FULMEN_PLUGIN_AUTOLOAD={value!r}; allowed are 0 and 1")
    return value == "1"


def from_pyproject(start: Path) -> PluginSettings:
    """``[tool.fulmen.plugins]`` of the nearest ``pyproject.toml`` at or above ``start`` that has ``[tool.fulmen]``.

    Raises:
        ConfigurationError: The table has an unknown key, or a value of a wrong type.
    """
    for path, table in _tables(start):
        unknown = [key for key in table if key not in _KEYS]
        if unknown:
            raise ConfigurationError(
                f"{path}: [tool.fulmen.plugins] has the unknown key {unknown[0]!r}{did_you_mean(unknown[0], _KEYS)}; "
                f"keys are: {listing(_KEYS)}"
            )
        return PluginSettings(
            source=f"{path.name} ([tool.fulmen.plugins])",
            enable=_names(path, table, "enable"),
            disable=_names(path, table, "disable"),
            prefer=_preferences(path, table),
            options=_mapping(path, table, "options", dict),
            path=path,
        )
    return PluginSettings("pyproject.toml")


def _tables(start: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for folder in (start, *start.parents):
        path = folder / "pyproject.toml"
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            if "fulmen" not in text:  # most projects above a folder: no need to parse them
                continue
            tool = _parse(text).get("tool", {})
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{path} is not valid TOML: {error}") from error
        if "fulmen" in tool:
            yield path, _plugins_table(path, tool["fulmen"])


def _plugins_table(path: Path, fulmen: Any) -> dict[str, Any]:
    table = fulmen.get("plugins", {}) if isinstance(fulmen, dict) else None
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path}: [tool.fulmen.plugins] must be a table with the keys: {listing(_KEYS)}")
    for key in fulmen:
        if key != "plugins" and did_you_mean(key, ["plugins"]):
            raise ConfigurationError(f"{path}: [tool.fulmen] has the unknown key {key!r}; did you mean 'plugins'?")
    return table


def _parse(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _names(path: Path, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigurationError(f"{path}: [tool.fulmen.plugins] {key} = {value!r} must be a list of plugin names")
    return tuple(value)


def _mapping(path: Path, table: Mapping[str, Any], key: str, kind: type) -> dict[str, Any]:
    value = table.get(key, {})
    flat = dict(_flattened(value, kind)) if isinstance(value, dict) else {"": None}
    if not all(isinstance(item, kind) for item in flat.values()):
        wanted = "strings" if kind is str else "tables"
        raise ConfigurationError(f"{path}: [tool.fulmen.plugins] {key} = {value!r} must be a table of {wanted}")
    return flat


def _flattened(table: Mapping[str, Any], kind: type) -> Iterator[tuple[str, Any]]:
    """The items of ``table``, where ``[options.logger.csv]`` is the same as ``[options."logger.csv"]``."""
    for name, item in table.items():
        if name in CONTRACTS and isinstance(item, dict) and all(isinstance(inner, kind) for inner in item.values()):
            yield from ((f"{name}.{inner}", each) for inner, each in item.items())
        else:
            yield name, item


def _preferences(path: Path, table: Mapping[str, Any]) -> dict[str, str]:
    prefer = _mapping(path, table, "prefer", str)
    for key in prefer:
        kind, separator, _ = key.partition(".")
        if not separator or kind not in CONTRACTS:
            raise ConfigurationError(
                f"{path}: [tool.fulmen.plugins.prefer] has the key {key!r}{did_you_mean(kind, CONTRACTS)}; keys have the form "
                f"'kind.name', and kinds are: {listing(CONTRACTS)}"
            )
    return prefer


def nearest_project(environ: Mapping[str, str] | None = None) -> tuple[PluginSettings, PluginSettings, bool]:
    """The settings of the environment and of the project in the current folder, and whether autoload is on."""
    environ = os.environ if environ is None else environ
    return from_environment(environ), from_pyproject(Path.cwd()), autoload(environ)
