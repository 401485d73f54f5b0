"""Find plugins, decide which act, and build parts by name.

Plugins are found because they are installed, through the entry-point group ``fulmen``, and offer parts by name. Their
``on_*`` hooks act only where they are enabled, nearest first: by ``Trainer(plugins=[...])``, by the environment, by the
project's ``pyproject.toml``. Nothing here imports torch, and there is no global state: each trainer has its own set.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pluggy

from fulmen import hookspecs
from fulmen.errors import PluginError, did_you_mean, listing, warn
from fulmen.project import PluginSettings, nearest_project
from fulmen.registry import CONTRACTS, Provider, Registry, construct, import_target, parse_spec

BUILTIN = "fulmen.builtin.plugin"
GROUP = "fulmen"


@dataclass
class Plugin:
    """One plugin, whether it works or not."""

    name: str
    target: str
    distribution: str
    version: str
    enabled_by: str | None = None
    disabled_by: str | None = None
    error: str | None = None
    import_ms: float = 0.0
    hooks: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """``"broken"``, ``"disabled"``, ``"enabled"`` (its ``on_*`` hooks act) or ``"available"`` (its names can be used)."""
        if self.error:
            return "broken"
        if self.disabled_by:
            return "disabled"
        return "enabled" if self.enabled_by else "available"


class PluginSet:
    """The plugins of one trainer, and the parts they provide."""

    def __init__(self, environment: PluginSettings, project: PluginSettings, autoload: bool) -> None:
        self.manager = pluggy.PluginManager("fulmen")
        self.manager.add_hookspecs(hookspecs)
        self.registry = Registry()
        self.plugins: dict[str, Plugin] = {}
        self.environment, self.project, self.autoload = environment, project, autoload

    @classmethod
    def discover(cls, given: Iterable[Any] = (), environ: Mapping[str, str] | None = None) -> PluginSet:
        """The built-in plugins, the installed ones, and those in ``given``.

        Args:
            given: Names of installed plugins to enable, or modules and objects with hook implementations.
            environ: Instead of ``os.environ``.

        Raises:
            PluginError: A plugin that was named does not exist or does not work.
        """
        given = list(given)
        found = cls(*nearest_project(environ))
        names = [plugin for plugin in given if isinstance(plugin, str)]
        found._add(Plugin("builtin", BUILTIN, "fulmen", version(), enabled_by="fulmen"), named=True)
        found._discover_installed(names)
        for plugin in given:
            if not isinstance(plugin, str):
                found._add_object(plugin)
        return found

    # ---- Parts

    def build(self, kind: str, spec: Any, **defaults: Any) -> Any:
        """The part that ``spec`` describes.

        Args:
            kind: One of :data:`~fulmen.registry.CONTRACTS`.
            spec: A name, ``"name?key=value"``, ``{"name": ..., "key": ...}``, or an instance, which is returned.
            **defaults: Arguments that the class gets where it has them and nobody else sets them.

        Raises:
            PluginError: Nobody provides that name.
            ConfigurationError: An argument is wrong, or ``spec`` is something else.
        """
        if not isinstance(spec, (str, Mapping)):
            return self._checked(kind, spec)
        name, arguments = parse_spec(spec)
        provider = self.provider(kind, name)
        options = self.project.options.get(f"{kind}.{name}", self.project.options.get(name, {}))
        source = f"given as {spec!r}" if not options else f"given as {spec!r}, with options from {self.project.source}"
        return construct(provider, {**options, **arguments}, source)

    def provider(self, kind: str, name: str) -> Provider:
        """Who provides a name; ``distribution:name`` chooses one of two."""
        distribution, separator, short = name.rpartition(":")
        prefer = {**self.project.prefer, **({f"{kind}.{short}": distribution} if separator else {})}
        try:
            return self.registry.find(kind, short, prefer)
        except PluginError as error:
            raise PluginError(f"{error}{self._excuses()}") from None

    def names(self, kind: str) -> list[str]:
        """The names that are provided for a kind of part."""
        return self.registry.names(kind)

    def _checked(self, kind: str, part: Any) -> Any:
        contract = import_target(CONTRACTS[kind])
        if isinstance(part, contract):
            return part
        raise PluginError(
            f"{part!r} is no {contract.__name__}; a {kind} is given as a name (installed: {listing(self.names(kind))}), "
            f"as 'name?key=value', as {{'name': ...}}, or as an instance"
        )

    def _excuses(self) -> str:
        """Plugins that might have provided a name, had they worked or been allowed to."""
        broken = [f"{p.name} of {p.distribution} {p.version} is broken: {p.error}" for p in self.plugins.values() if p.error]
        off = [f"{p.name} is disabled by {p.disabled_by}" for p in self.plugins.values() if p.disabled_by]
        return "".join(f"; {text}" for text in (*broken, *off))

    # ---- Hooks

    def hook_functions(self, hook: str) -> list[Callable[..., Any]]:
        """The functions that enabled plugins implement ``hook`` with, in calling order, taking the hook's arguments by name."""
        caller = getattr(self.manager.hook, hook)
        impls = [impl for impl in reversed(caller.get_hookimpls()) if self._acts(impl.plugin_name)]
        return [_by_name(impl.function, impl.argnames) for impl in impls]

    def _acts(self, name: str) -> bool:
        return self.plugins[name].status == "enabled"

    def effective(self) -> list[dict[str, str]]:
        """The plugins that work and are not disabled, as a checkpoint records them."""
        usable = [plugin for plugin in self.plugins.values() if plugin.status in ("enabled", "available")]
        return [{"name": p.name, "distribution": p.distribution, "version": p.version, "status": p.status} for p in usable]

    # ---- Discovery

    def _discover_installed(self, given: list[str]) -> None:
        entries = {(entry.name, entry.value): entry for entry in metadata.entry_points(group=GROUP)}
        names = {name for name, _ in entries}
        for name in (*given, *self.environment.enable, *self.project.enable):
            if name not in names and name != "builtin":
                raise PluginError(
                    f"plugin {name!r} is not installed{did_you_mean(name, names)} (installed: {listing(sorted(names))})"
                )
        for entry in sorted(entries.values(), key=lambda entry: (entry.name, entry.value)):
            origin = (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "0")
            plugin = Plugin(self._unique(entry.name, origin[0]), entry.value, *origin)
            named = self._decide(plugin, entry.name, given)
            if plugin.disabled_by is None and (self.autoload or named):
                self._add(plugin, named)
            elif plugin.disabled_by is not None:
                self.plugins[plugin.name] = plugin

    def _unique(self, name: str, distribution: str) -> str:
        return name if name not in self.plugins else f"{distribution}:{name}"

    def _decide(self, plugin: Plugin, name: str, given: list[str]) -> bool:
        """Let the nearest source that mentions the plugin enable or disable it; whether one enabled it."""
        trainer = PluginSettings("Trainer(plugins=...)", enable=tuple(given))
        for settings in (trainer, self.environment, self.project):
            verdict = settings.verdict(name)
            if verdict is not None:
                plugin.enabled_by, plugin.disabled_by = (settings.source, None) if verdict else (None, settings.source)
                return verdict
        return False

    def _add(self, plugin: Plugin, named: bool) -> None:
        """Import a plugin and let it register. A failure is one warning, and an error where the plugin was named."""
        self.plugins[plugin.name] = plugin
        start = time.perf_counter()
        try:
            self._register(plugin, importlib.import_module(plugin.target))
        except Exception as error:  # whatever a plugin raises: it must not take the others down
            plugin.error = f"{type(error).__name__}: {error}"
            self.registry.providers = [p for p in self.registry.providers if p.plugin != plugin.name]
            message = f"plugin {plugin.name!r} of {plugin.distribution} {plugin.version} does not work: {plugin.error}"
            if named:
                raise PluginError(message) from error
            warn("plugin-broken", f"{message}. Nothing of it is available", stacklevel=5)
        plugin.import_ms = (time.perf_counter() - start) * 1e3

    def _add_object(self, plugin: Any) -> None:
        name = getattr(plugin, "__name__", None) or type(plugin).__name__
        added = Plugin(self._unique(name, "given"), name, "given to the trainer", "-", enabled_by="Trainer(plugins=...)")
        self.plugins[added.name] = added
        self._register(added, plugin)

    def _register(self, plugin: Plugin, implementation: Any) -> None:
        made_for = getattr(implementation, "FULMEN_HOOKSPECS", hookspecs.VERSION)
        if made_for != hookspecs.VERSION:
            raise PluginError(f"it is made for version {made_for} of fulmen's hooks, and this fulmen has version {hookspecs.VERSION}")
        self.manager.register(implementation, plugin.name)
        try:
            plugin.hooks = self._check_hooks(plugin.name, implementation)
            self.registry.registering(plugin.name, plugin.distribution, plugin.version)
            register = next((i for i in self.manager.hook.register.get_hookimpls() if i.plugin_name == plugin.name), None)
            if register is not None:
                register.function(self.registry)
        except Exception:
            self.manager.unregister(name=plugin.name)
            raise

    def _check_hooks(self, name: str, implementation: Any) -> tuple[str, ...]:
        callers = self.manager.get_hookcallers(implementation) or []
        if not callers:
            raise PluginError(f"{implementation!r} implements no hook; mark its functions with fulmen.hookimpl")
        known = [hook for hook, value in vars(hookspecs).items() if hasattr(value, "fulmen_spec")]
        for caller in callers:
            if caller.spec is None:
                raise PluginError(f"there is no hook {caller.name!r}{did_you_mean(caller.name, known)}; see fulmen.hookspecs")
            for impl in caller.get_hookimpls():
                if impl.plugin_name == name and (impl.wrapper or impl.hookwrapper):
                    raise PluginError(f"hook {caller.name!r} cannot have wrappers: its implementations are called directly")
        return tuple(caller.name for caller in callers)


def version() -> str:
    """The version of fulmen."""
    try:
        return metadata.version("fulmen")
    except metadata.PackageNotFoundError:  # run from a source folder that was never installed
        return "0"


def _by_name(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """``function``, called with those keyword arguments that it declares."""

    def call(**arguments: Any) -> Any:
        return function(**{name: arguments[name] for name in names})

    return call
