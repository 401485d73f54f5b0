"""Find plugins, decide which act, and build parts by name.

Plugins are found because they are installed, through the entry-point group ``fulmen``, and offer parts by name. Their
``on_*`` hooks act only where they are enabled, nearest first: by ``Trainer(plugins=[...])``, by the environment, by the
project's ``pyproject.toml``. Nothing here imports torch, and there is no global state: each trainer has its own set.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pluggy

from fulmen import hookspecs
from fulmen.errors import ConfigurationError, FulmenError, MissingNameError, PluginError, did_you_mean, listing, warn
from fulmen.known import CLASSES, extra_for, install_line
from fulmen.lazy import explain_imports
from fulmen.project import PluginSettings, nearest_project
from fulmen.registry import CONTRACTS, Provider, Registry, construct, import_target, parse_spec

BUILTIN = "fulmen.builtin.plugin"
GROUP = "fulmen"
TRAINER = "Trainer(plugins=...)"
NO_AUTOLOAD = "FULMEN_PLUGIN_AUTOLOAD=0"


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

    @property
    def origin(self) -> str:
        """The distribution and its version, as people write them; ``"Trainer(plugins=...)"`` for an object given to it."""
        return f"{self.distribution} {self.version}".rstrip()

    @property
    def spellings(self) -> tuple[str, str]:
        """What a user may write for it: the name, or ``distribution:name`` where two distributions use one name."""
        short = self.name.rpartition(":")[2]
        return short, f"{self.distribution}:{short}"


class PluginSet:
    """The plugins of one trainer, and the parts they provide."""

    def __init__(
        self, environment: PluginSettings, project: PluginSettings, autoload: bool, *, problems: list[str] | None = None
    ) -> None:
        self.manager = pluggy.PluginManager("fulmen")
        self.manager.add_hookspecs(hookspecs)
        self.registry = Registry()
        self.plugins: dict[str, Plugin] = {}
        self.environment, self.project, self.autoload = environment, project, autoload
        self.given: list[Any] = []
        self._problems = problems
        self._warnings: list[tuple[str, str]] = []

    @classmethod
    def discover(
        cls, given: Iterable[Any] = (), environ: Mapping[str, str] | None = None, problems: list[str] | None = None
    ) -> PluginSet:
        """The built-in plugins, the installed ones, and those in ``given``.

        Args:
            given: Names of installed plugins to enable, or modules and objects with hook implementations.
            environ: Instead of ``os.environ``.
            problems: Where it is given, the search goes on past everything that is wrong and appends it here, instead of
                raising and warning. For commands that report.

        Raises:
            PluginError: A plugin that was named does not exist or does not work.
            ConfigurationError: The project's configuration or the environment is malformed.
        """
        given = list(given)
        try:
            settings = nearest_project(environ)
        except ConfigurationError as error:
            if problems is None:
                raise
            problems.append(str(error))
            settings = (PluginSettings("FULMEN_PLUGINS"), PluginSettings("pyproject.toml"), True)
        found = cls(*settings, problems=problems)
        found.given = given
        found._add(Plugin("builtin", BUILTIN, "fulmen", version(), enabled_by="fulmen"), named=True)
        found._add_installed([plugin for plugin in given if isinstance(plugin, str)])
        for plugin in given:
            if not isinstance(plugin, str):
                found._add_object(plugin)
        found._warnings += [("plugin-settings", text) for text in found.ignored_settings()]
        if problems is None:  # `fulmen doctor` looks at all settings
            known = [*found.project.enable, *filter(extra_for, found.environment.disable)]
            found._warnings += [("plugin-settings", text) for text in found.idle_disabling(found.environment, known)]
        for code, text in found._warnings:
            if problems is None:
                warn(code, text)
            else:
                problems.append(text)
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
        options = self.options(provider)
        source = f"given as {spec!r}" if not options else f"given as {spec!r}, with options from {self.project.source}"
        accepted = inspect.signature(provider.load()).parameters
        fallback = {key: value for key, value in defaults.items() if key in accepted and key not in provider.arguments}
        return construct(provider, {**fallback, **options, **arguments}, source)

    def provider(self, kind: str, name: str) -> Provider:
        """Who provides a name; ``distribution:name`` chooses one of two."""
        distribution, separator, short = name.rpartition(":")
        prefer = {**self.project.prefer, **({f"{kind}.{short}": distribution} if separator else {})}
        try:
            return self.registry.find(kind, short, prefer)
        except PluginError as error:
            if short in self.registry.names(kind):
                raise
            raise PluginError(f"{error}{self.excuses()}") from None

    def load_class(self, name: str, kinds: Iterable[str]) -> type:
        """The class of this name that an installed plugin provides.

        Raises:
            PluginError: Nobody provides it; the message says what to install where that is known.
        """
        offered = self.classes(kinds)
        if name in offered:
            return offered[name].load()
        if name in CLASSES:
            raise PluginError(f"{name} needs the package fulmen-{CLASSES[name]}: {install_line(CLASSES[name])}{self.excuses()}")
        meant = next((each.class_name for each in offered.values() if each.name == name), name)
        guess = did_you_mean(meant, {*offered, *CLASSES}, "class")
        raise PluginError(f"nobody provides a class {name!r}{guess} (installed: {listing(sorted(offered))}){self.excuses()}")

    def classes(self, kinds: Iterable[str]) -> dict[str, Provider]:
        """The classes of these kinds that installed plugins provide, by name."""
        return {provider.class_name: provider for provider in self.registry.providers if provider.kind in kinds}

    def options(self, provider: Provider) -> Mapping[str, Any]:
        """What the project sets for the arguments of a part: under ``kind.name``, or else under ``name``."""
        options = self.project.options
        return options.get(f"{provider.kind}.{provider.name}", options.get(provider.name, {}))

    def names(self, kind: str) -> list[str]:
        """The names that are provided for a kind of part."""
        return self.registry.names(kind)

    def _checked(self, kind: str, part: Any) -> Any:
        contract = import_target(CONTRACTS[kind])
        if isinstance(part, contract):
            return part
        raise PluginError(
            f"{part!r} is no {contract.__name__}; give the {kind} as a name (installed: {listing(self.names(kind))}), "
            f"as 'name?key=value', as {{'name': ...}}, or as an instance"
        )

    def excuses(self) -> str:
        """Plugins that might have provided a name, had they worked or been allowed to; the end of a sentence, or nothing."""
        broken = [f"{p.name} of {p.origin} is broken: {p.error}" for p in self.plugins.values() if p.error]
        disabled: dict[str, list[str]] = {}
        for plugin in self.plugins.values():
            if plugin.disabled_by:
                disabled.setdefault(plugin.disabled_by, []).append(plugin.name)
        off = [f"disabled by {source}: {listing(names)}" for source, names in disabled.items()]
        return "".join(f"; {text}" for text in (*broken, *off))

    # ---- Hooks

    def hook_functions(self, hook: str) -> list[Callable[..., Any]]:
        """The functions that enabled plugins implement ``hook`` with, in calling order, taking the hook's arguments by name."""
        return [_by_name(impl.function, impl.argnames) for impl in self._acting(hook)]

    def hook_order(self, hook: str) -> list[str]:
        """The enabled plugins that implement ``hook``, in calling order."""
        return [impl.plugin_name for impl in self._acting(hook)]

    def _acting(self, hook: str) -> list[pluggy.HookImpl]:
        impls = reversed(getattr(self.manager.hook, hook).get_hookimpls())  # pluggy keeps them last to first
        return [impl for impl in impls if self.plugins[impl.plugin_name].status == "enabled"]

    def effective(self) -> list[dict[str, str]]:
        """The plugins that work and are not disabled, as a checkpoint records them."""
        usable = [plugin for plugin in self.plugins.values() if plugin.status in ("enabled", "available")]
        return [{"name": p.name, "distribution": p.distribution, "version": p.version, "status": p.status} for p in usable]

    # ---- Another process

    def __getstate__(self) -> dict[str, Any]:
        """What was given: a new process finds the rest by itself. Modules travel by name."""
        return {"given": [(None, each.__name__) if inspect.ismodule(each) else (each,) for each in self.given]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        given = [each[0] if len(each) == 1 else importlib.import_module(each[1]) for each in state["given"]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the process that this comes from has issued them
            self.__dict__.update(PluginSet.discover(given).__dict__)

    # ---- Discovery

    def _add_installed(self, given: list[str]) -> None:
        sources = (PluginSettings(TRAINER, enable=tuple(given)), self.environment, self.project)
        installed = _installed()
        overruled: set[str] = set()
        for settings in sources:
            self._check_names(settings, overruled, installed)
            overruled.update(settings.disable)
        for plugin in installed:
            self._decide(plugin, sources)
            if plugin.disabled_by is None:
                self._add(plugin, named=plugin.enabled_by is not None)
            else:
                self.plugins[plugin.name] = plugin

    def _check_names(self, settings: PluginSettings, overruled: set[str], installed: list[Plugin]) -> None:
        """What ``settings`` enables must exist and be one plugin, and fulmen's own parts cannot be disabled."""
        if "builtin" in settings.disable:
            self._fail(f"{settings.source} disables the plugin 'builtin', which fulmen cannot run without; remove it there")
        for name in settings.enable:
            if name in overruled:
                continue
            who = f"plugin {name!r}, enabled by {settings.source},"
            found = [plugin for plugin in installed if name in plugin.spellings]
            if not found and name != "builtin":
                names = sorted(plugin.name for plugin in installed)
                extra = extra_for(name)
                remedy = f": {install_line(extra)}" if extra else did_you_mean(name, names, "strategy")
                self._fail(f"{who} is not installed{remedy} (installed: {listing(names)})")
            if len(found) > 1:
                origins = " and ".join(plugin.distribution for plugin in found)
                self._fail(f"{who} is provided by both {origins}; uninstall one, or write {found[0].name!r}")

    def _decide(self, plugin: Plugin, sources: Iterable[PluginSettings]) -> None:
        """Let the nearest source that mentions the plugin enable or disable it."""
        for settings in sources:
            verdict = settings.verdict(plugin.spellings)
            if verdict is not None:
                plugin.enabled_by, plugin.disabled_by = (settings.source, None) if verdict else (None, settings.source)
                return
        if not self.autoload:
            plugin.disabled_by = NO_AUTOLOAD

    def _add(self, plugin: Plugin, implementation: Any = None, *, named: bool) -> None:
        """Import a plugin and let it register. A failure is one warning, and an error where the plugin was named."""
        self.plugins[plugin.name] = plugin
        start = time.perf_counter()
        try:
            self._register(plugin, importlib.import_module(plugin.target) if implementation is None else implementation)
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises must not take the others down
            kind = "" if isinstance(error, FulmenError) else f"{type(error).__name__}: "
            plugin.error = f"{kind}{' '.join(str(error).split())}"
            message = f"plugin {plugin.name!r} of {plugin.origin} does not work: {plugin.error}"
            if named:
                self._fail(message, error)
            else:
                self._warnings.append(("plugin-broken", f"{message}. Nothing of it is available; {_off(plugin)}"))
        plugin.import_ms = (time.perf_counter() - start) * 1e3

    def _add_object(self, plugin: Any) -> None:
        """Add a module or object that the trainer was given; one that is already there is enabled."""
        known = self.manager.get_name(plugin)
        if known is not None:
            self.plugins[known].enabled_by = TRAINER
            return
        name = base = getattr(plugin, "__name__", None) or type(plugin).__name__
        while name in self.plugins:
            name = f"{base}-{len(self.plugins)}"
        self._add(Plugin(name, base, TRAINER, "", enabled_by=TRAINER), plugin, named=True)

    def _fail(self, message: str, cause: Exception | None = None) -> None:
        if self._problems is None:
            raise PluginError(message) from cause
        self._problems.append(message)

    def _register(self, plugin: Plugin, implementation: Any) -> None:
        if isinstance(implementation, type):
            raise PluginError(f"{implementation!r} is a class; give an instance, {implementation.__name__}()")
        made_for = getattr(implementation, "FULMEN_HOOKSPECS", hookspecs.VERSION)
        if made_for != hookspecs.VERSION:
            old = "fulmen" if made_for > hookspecs.VERSION else plugin.distribution
            raise PluginError(
                f"it is made for version {made_for} of fulmen's hooks, and this fulmen has version {hookspecs.VERSION}; "
                f"upgrade {old}"
            )
        other = self.manager.get_name(implementation)
        if other is not None:
            raise PluginError(f"plugin {other!r} of {self.plugins[other].origin} is the same module; uninstall one of them")
        try:
            self.manager.register(implementation, plugin.name)
            plugin.hooks = self._check_hooks(plugin.name, implementation)
            self.registry.registering(plugin.name, plugin.distribution, plugin.version)
            for impl in self.manager.hook.register.get_hookimpls():
                if impl.plugin_name == plugin.name:
                    _by_name(impl.function, impl.argnames)(registry=self.registry)
        except Exception:
            self.registry.remove(plugin.name)
            self.manager.unregister(name=plugin.name)
            raise

    def _check_hooks(self, name: str, implementation: Any) -> tuple[str, ...]:
        """The hooks that a plugin implements.

        Raises:
            PluginError: It implements none, one that does not exist and is not marked ``optionalhook``, or has wrappers.
        """
        impls = [
            (caller, impl)
            for caller in self.manager.get_hookcallers(implementation) or []
            for impl in caller.get_hookimpls()
            if impl.plugin_name == name
        ]
        if not impls:
            raise PluginError(f"{implementation!r} implements no hook; mark its functions with fulmen.hookspecs.hookimpl")
        known = [hook for hook, value in vars(hookspecs).items() if hasattr(value, "fulmen_spec")]
        for caller, impl in impls:
            if caller.spec is None and not impl.optionalhook:
                raise PluginError(f"there is no hook {caller.name!r}{did_you_mean(caller.name, known)}; see fulmen.hookspecs")
            if impl.wrapper or impl.hookwrapper:
                raise PluginError(f"hook {caller.name!r} cannot have wrappers: its implementations are called directly")
        return tuple(sorted(caller.name for caller, _ in impls if caller.spec is not None))

    def ignored_settings(self) -> list[str]:
        """What the project configures and nobody provides, one sentence each.

        Options of parts that a known package brings are no mistake: whoever has not installed it does not use them. And
        where a plugin is disabled or broken, they may be meant for it.
        """
        if any(plugin.status in ("disabled", "broken") for plugin in self.plugins.values()):
            return []
        unknown = [key for key in self.project.options if not self.provides(key) and not extra_for(key.rpartition(".")[2])]
        source = self.project.source
        return [f"{source}: no installed plugin provides {key!r}, which has options{self._near(key)}" for key in unknown]

    def idle_disabling(self, settings: PluginSettings, known: Iterable[str] = ()) -> list[str]:
        """What ``settings`` disables and is not installed, one sentence each; without what is ``known`` to exist elsewhere."""
        names = {name for plugin in self.plugins.values() for name in (plugin.name, *plugin.spellings)}
        return [
            f"{settings.source} disables {name!r}, which is not installed{did_you_mean(name, names)}; remove it there"
            for name in settings.disable
            if name not in {*names, *known}
        ]

    def provides(self, key: str) -> bool:
        """Whether a plugin that works provides the part ``"name"`` or ``"kind.name"``."""
        return any(key in (provider.name, f"{provider.kind}.{provider.name}") for provider in self.registry.providers)

    def _near(self, key: str) -> str:
        return did_you_mean(key, [f"{p.kind}.{p.name}" if "." in key else p.name for p in self.registry.providers])


def _installed() -> list[Plugin]:
    """The plugins of all installed distributions, by name; one name in two distributions becomes ``distribution:name``."""
    entries = {(entry.name, entry.value): entry for entry in metadata.entry_points(group=GROUP)}
    uses = Counter(["builtin", *(name for name, _ in entries)])
    plugins = []
    for (name, target), entry in sorted(entries.items()):
        about: Any = entry.dist.metadata if entry.dist else {"Name": "unknown", "Version": "0"}
        unique = name if uses[name] == 1 else f"{about['Name']}:{name}"
        plugins.append(Plugin(unique, target, about["Name"], about["Version"]))
    return plugins


def version() -> str:
    """The version of fulmen."""
    try:
        return metadata.version("fulmen")
    except metadata.PackageNotFoundError:  # run from a source folder that was never installed
        return "0"


def _off(plugin: Plugin) -> str:
    return f"where no upgrade helps, disable it: FULMEN_PLUGINS=-{plugin.name}"


def _by_name(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """``function``, called with those keyword arguments that it declares."""

    def call(**arguments: Any) -> Any:
        return function(**{name: arguments[name] for name in names})

    return call


def class_lookup(module: str, *kinds: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a module that has the classes of installed plugins beside what it defines.

    Its ``__all__`` is for type checkers: from here on, ``*`` imports the classes of the plugins as well.

    Args:
        module: Its ``__name__``.
        *kinds: The kinds of parts whose classes it has.
    """
    own = vars(sys.modules[module]).pop("__all__")
    explain_imports(module)

    def names() -> list[str]:
        return sorted({*own, *PluginSet.discover().classes(kinds)})

    def lookup(name: str) -> Any:
        if name == "__all__":
            return names()
        if name.startswith("_"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        try:
            return PluginSet.discover().load_class(name, kinds)
        except PluginError as error:
            raise MissingNameError(str(error)) from error

    return lookup, names
