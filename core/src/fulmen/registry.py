"""Parts by kind and name: what plugins add, and how a name becomes an object."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partialmethod
from typing import Any

from fulmen.errors import ConfigurationError, PluginError, did_you_mean, listing
from fulmen.known import KNOWN, install_line

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
        try:
            found, contract = import_target(self.target), import_target(CONTRACTS[self.kind])
        except Exception as error:  # whatever a plugin's module raises while it is imported
            raise PluginError(
                f"{self.kind} {self.name!r} of {self.origin} cannot be imported from {self.target}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not (isinstance(found, type) and issubclass(found, contract)):
            raise PluginError(f"{self.kind} {self.name!r} of {self.origin}: {self.target} is no subclass of {contract.__name__}")
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
        found = [provider for provider in self.providers if (provider.kind, provider.name) == (kind, name)]
        wanted = prefer.get(f"{kind}.{name}")
        if wanted is not None:
            found = [provider for provider in found if provider.distribution == wanted]
        if len({provider.distribution for provider in found}) > 1:
            origins = sorted(provider.distribution for provider in found)
            raise PluginError(
                f"{kind} {name!r} is provided by both {' and '.join(origins)}; uninstall one, or choose in pyproject.toml: "
                f'[tool.fulmen.plugins.prefer] "{kind}.{name}" = "{origins[0]}"'
            )
        if not found:
            raise PluginError(self._unknown(kind, name))
        return found[0]

    def _unknown(self, kind: str, name: str) -> str:
        installed, known = self.names(kind), KNOWN.get(kind, {})
        if name in known:
            return f"{kind} {name!r} needs the package fulmen-{known[name]}: {install_line(known[name])}"
        guess = did_you_mean(name, {*installed, *known})
        nearest = guess.split("'")[1] if guess else ""
        install = f" ({install_line(known[nearest])})" if nearest in known and nearest not in installed else ""
        return f"{kind} {name!r} is not registered{guess}{install} (installed: {listing(installed)})"


def import_target(target: str) -> Any:
    """The object that ``"package.module:name"`` names. Only strings that plugins and the core wrote come here."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def parse_spec(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and arguments of ``"name?key=value&other=1"`` or ``{"name": ..., "key": ...}``.

    >>> parse_spec("csv?save_dir=logs&version=3")
    ('csv', {'save_dir': 'logs', 'version': 3})
    """
    if isinstance(spec, str):
        name, _, query = spec.partition("?")
        pairs = [pair.partition("=") for pair in query.split("&") if pair]
        if any(not separator for _, separator, _ in pairs):
            raise ConfigurationError(f"{spec!r} is not of the form 'name?key=value&key=value'")
        return name, {key: _value(text) for key, _, text in pairs}
    if not isinstance(spec.get("name"), str):
        raise ConfigurationError(f"{dict(spec)!r} has no 'name'; the form is {{'name': 'csv', 'save_dir': 'logs'}}")
    return spec["name"], {key: value for key, value in spec.items() if key != "name"}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def construct(provider: Provider, arguments: Mapping[str, Any], source: str) -> Any:
    """An object of the provider's class.

    Raises:
        ConfigurationError: An argument is not one of the class's, or has a type that its annotation excludes.
    """
    cls = provider.load()
    parameters = {name: p for name, p in inspect.signature(cls).parameters.items() if p.kind is not p.VAR_POSITIONAL}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in arguments.items():
        if name not in parameters and not takes_any:
            raise ConfigurationError(
                f"{provider.kind} {provider.name!r} ({source}) has no argument {name!r}{did_you_mean(name, parameters)}; "
                f"it has: {listing(parameters)}"
            )
        _check_type(provider, name, value, parameters.get(name), source)
    return cls(**{**provider.arguments, **arguments})


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
        raise ConfigurationError(f"{provider.kind} {provider.name!r} ({source}): {name}={value!r} must be {text}")
