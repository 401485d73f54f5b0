"""Parts by kind and name: what plugins add, and how a name becomes an object."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partialmethod
from typing import Any

from fulmen.errors import ConfigurationError, PluginError, did_you_mean, listing, nearest
from fulmen.known import KNOWN, advice, install_line

CONTRACTS: dict[str, str] = {
    "accelerator": "fulmen.contracts.accelerator:Accelerator",
    "strategy": "fulmen.contracts.strategy:Strategy",
    "precision": "fulmen.contracts.precision:Precision",
    "logger": "fulmen.contracts.logger:Logger",
    "callback": "fulmen.contracts.callback:Callback",
    "progress": "fulmen.contracts.progress:ProgressBar",
    "exporter": "fulmen.contracts.exporter:Exporter",
    "environment": "fulmen.contracts.environment:ClusterEnvironment",
    "profiler": "fulmen.contracts.profiler:Profiler",
}
"""Kind of part -> the contract that its providers implement."""


@dataclass(frozen=True)
class Provider:
    """A class that a plugin offers under a name."""

    kind: str
    name: str
    target: str
    summary: str
    plugin: str
    distribution: str
    version: str
    priority: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        """The name of the class, without importing it."""
        return self.target.rpartition(":")[2]

    @property
    def origin(self) -> str:
        """The distribution and its version, as people write them."""
        return f"{self.distribution} {self.version}"

    def load(self) -> type:
        """Import the class.

        Raises:
            PluginError: It cannot be imported, or does not implement the contract of its kind.
        """
        who = f"{self.kind} {self.name!r} of {self.origin}"
        try:
            found, contract = import_target(self.target), import_target(CONTRACTS[self.kind])
        except Exception as error:  # whatever a plugin's module raises while it is imported
            raise PluginError(f"{who} cannot be imported from {self.target}: {type(error).__name__}: {error}") from error
        if not (isinstance(found, type) and issubclass(found, contract)):
            raise PluginError(f"{who}: {self.target} is no subclass of {contract.__name__}")
        missing = sorted(getattr(found, "__abstractmethods__", ()))
        if missing:
            raise PluginError(f"{who}: {self.target} does not implement: {listing(missing)}")
        return found


class Registry:
    """What plugins fill in their ``register`` hook. Classes are strings, ``"package.module:Class"``, imported on use."""

    def __init__(self) -> None:
        self.providers: list[Provider] = []
        self._origin = ("", "", "")

    def registering(self, plugin: str, distribution: str, version: str) -> None:
        """Say whose additions follow."""
        self._origin = (plugin, distribution, version)

    def add(
        self,
        kind: str,
        name: str,
        target: str,
        *,
        summary: str,
        aliases: Iterable[str] = (),
        priority: int = 0,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Offer a class.

        Args:
            kind: One of :data:`CONTRACTS`.
            name: What users write; lower case.
            target: ``"package.module:Class"``.
            summary: One line for ``fulmen plugins``.
            aliases: Other names for the same.
            priority: Among accelerators that are available, ``"auto"`` takes the highest.
            arguments: Constructor arguments that this name stands for.
        """
        if kind not in CONTRACTS:
            raise PluginError(f"cannot register {name!r}: {kind!r} is no kind of part; kinds are: {listing(CONTRACTS)}")
        if not target.partition(":")[2].isidentifier():
            raise PluginError(f"cannot register {kind} {name!r}: {target!r} is not of the form 'package.module:Class'")
        for each in (name, *aliases):
            twice = next((p for p in self._claims(kind, each) if same_distribution(p.distribution, self._origin[1])), None)
            if twice is not None:
                raise PluginError(f"cannot register {kind} {each!r}: {twice.distribution} has registered it as {twice.target}")
            self.providers.append(Provider(kind, each, target, summary, *self._origin, priority, dict(arguments or {})))

    accelerator = partialmethod(add, "accelerator")
    strategy = partialmethod(add, "strategy")
    precision = partialmethod(add, "precision")
    logger = partialmethod(add, "logger")
    callback = partialmethod(add, "callback")
    progress = partialmethod(add, "progress")
    exporter = partialmethod(add, "exporter")
    environment = partialmethod(add, "environment")
    profiler = partialmethod(add, "profiler")

    def remove(self, plugin: str) -> None:
        """Take back everything that a plugin added."""
        self.providers = [provider for provider in self.providers if provider.plugin != plugin]

    def names(self, kind: str) -> list[str]:
        """The names of a kind, sorted."""
        return sorted({provider.name for provider in self.providers if provider.kind == kind})

    def find(self, kind: str, name: str, prefer: Mapping[str, str]) -> Provider:
        """The provider of a name.

        Args:
            kind: The kind of part.
            name: The name that was asked for.
            prefer: ``{"kind.name": distribution}`` where the project decides between two.

        Raises:
            PluginError: Nobody provides it, or two do.
        """
        claims = self._claims(kind, name)
        if not claims:
            raise PluginError(self._unknown(kind, name))
        wanted = prefer.get(f"{kind}.{name}")
        if wanted is None and len(claims) > 1:
            origins = sorted(provider.distribution for provider in claims)
            raise PluginError(
                f"{kind} {name!r} is provided by both {' and '.join(origins)}; uninstall one, or choose in pyproject.toml: "
                f'[tool.fulmen.plugins.prefer] "{kind}.{name}" = "{origins[0]}"'
            )
        chosen = claims if wanted is None else [p for p in claims if same_distribution(p.distribution, wanted)]
        if not chosen:
            others = listing(sorted(provider.distribution for provider in claims))
            raise PluginError(f"{kind} {name!r} is not provided by {wanted!r}, which was chosen for it, but by: {others}")
        return chosen[0]

    def conflicts(self) -> list[list[Provider]]:
        """The providers that claim one name, for each kind and name that several distributions claim."""
        claims: dict[tuple[str, str], list[Provider]] = {}
        for provider in self.providers:
            claims.setdefault((provider.kind, provider.name), []).append(provider)
        return [providers for _, providers in sorted(claims.items()) if len(providers) > 1]

    def _claims(self, kind: str, name: str) -> list[Provider]:
        return [provider for provider in self.providers if (provider.kind, provider.name) == (kind, name)]

    def _unknown(self, kind: str, name: str) -> str:
        installed, known = self.names(kind), KNOWN.get(kind, {})
        if name in known:
            return f"{kind} {name!r} needs the package fulmen-{known[name]}: {install_line(known[name])}"
        others = [other for other in CONTRACTS if name in self.names(other) or name in KNOWN.get(other, {})]
        guess = nearest(name, [*installed, *known])
        install = f" ({install_line(known[guess])})" if guess in known and guess not in installed else ""
        meant = advice(kind, name) or (f"use {others[0]}={name!r}" if others else "")
        meant = meant or (f"did you mean {guess!r}?{install}" if guess else "")
        return f"{kind} {name!r} is not registered{meant and '; '}{meant} (installed: {listing(installed)})"


def same_distribution(one: str, other: str) -> bool:
    """Whether two spellings name one distribution: case, ``-``, ``_`` and ``.`` make no difference."""
    return re.sub(r"[-_.]+", "-", one).lower() == re.sub(r"[-_.]+", "-", other).lower()


def import_target(target: str) -> Any:
    """The object that ``"package.module:name"`` names. Only strings that plugins and the core wrote come here."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def parse_spec(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and arguments of ``"name?key=value&other=1"`` or ``{"name": ..., "key": ...}``.

    Values in text are JSON where they can be, and strings where not. An argument that is itself called ``name`` is
    written into the text.

    >>> parse_spec("csv?save_dir=logs&version=3")
    ('csv', {'save_dir': 'logs', 'version': 3})
    >>> parse_spec({"name": "csv?name=digits", "save_dir": "logs"})
    ('csv', {'name': 'digits', 'save_dir': 'logs'})
    """
    if isinstance(spec, str):
        name, _, query = spec.partition("?")
        pairs = [pair.partition("=") for pair in query.split("&") if pair]
        if any(not separator for _, separator, _ in pairs):
            raise ConfigurationError(f"{spec!r} is not of the form 'name?key=value&key=value'")
        return name, {key: _value(text) for key, _, text in pairs}
    if not isinstance(spec.get("name"), str):
        raise ConfigurationError(f"{dict(spec)!r} has no 'name'; the form is {{'name': 'csv', 'save_dir': 'logs'}}")
    name, arguments = parse_spec(spec["name"])
    return name, {**arguments, **{key: value for key, value in spec.items() if key != "name"}}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def construct(provider: Provider, arguments: Mapping[str, Any], source: str) -> Any:
    """An object of the provider's class.

    Raises:
        ConfigurationError: An argument is not one of the class's, is missing, or has a type that its annotation excludes.
    """
    parameters = check_arguments(provider, arguments, source)
    arguments = {**provider.arguments, **arguments}
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD and name not in arguments:
            raise ConfigurationError(
                f"{provider.kind} {provider.name!r} ({source}) needs the argument {name!r}; it has: {listing(parameters)}"
            )
    return provider.load()(**arguments)


def check_arguments(provider: Provider, arguments: Mapping[str, Any], source: str) -> dict[str, inspect.Parameter]:
    """The parameters of the provider's class, which must be able to take ``arguments``.

    Raises:
        ConfigurationError: An argument is not one of the class's, or has a type that its annotation excludes.
    """
    signature = inspect.signature(provider.load())
    parameters = {name: p for name, p in signature.parameters.items() if p.kind is not p.VAR_POSITIONAL}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in arguments.items():
        if name not in parameters and not takes_any:
            raise ConfigurationError(
                f"{provider.kind} {provider.name!r} ({source}) has no argument {name!r}{did_you_mean(name, parameters)}; "
                f"it has: {listing(parameters)}"
            )
        _check_type(provider, name, value, parameters.get(name), source)
    return parameters


_SCALARS = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def _check_type(provider: Provider, name: str, value: Any, parameter: inspect.Parameter | None, source: str) -> None:
    """Compare values from text with annotations made of plain scalar types; richer annotations are the class's business."""
    annotation = getattr(parameter, "annotation", None)
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    names = [part.strip() for part in text.split("|")]
    if not all(part in _SCALARS or part == "None" for part in names):
        return
    allowed = tuple(kind for part in names for kind in _SCALARS.get(part, (type(None),)))
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        hint = f'; a string in quotes stays one: {name}="{value}"' if str in allowed else ""
        raise ConfigurationError(f"{provider.kind} {provider.name!r} ({source}): {name}={value!r} must be {text}{hint}")
