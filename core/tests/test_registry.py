"""Names, the classes behind them, and what they are made with."""

from __future__ import annotations

import sys
from abc import ABCMeta
from typing import Any

import pytest

from fulmen.contracts.profiler import Profiler
from fulmen.errors import ConfigurationError, PluginError
from fulmen.registry import CONTRACTS, Provider, Registry, construct, import_target, parse_spec

HERE = __name__

KINDS = "accelerator, strategy, precision, logger, callback, progress, exporter, environment, profiler"


class Watch(Profiler):
    """A part as a plugin would provide it."""

    def __init__(self, unit: str, digits: int = 3, scale: float | None = None, name: str | None = None, tags: Any = ()) -> None:
        self.settings = (unit, digits, scale, name, tags)

    def start(self, action: str) -> None: ...

    def stop(self, action: str) -> None: ...

    def summary(self) -> str:
        return ""


class Open(Watch):
    def __init__(self, *args: Any, unit: str = "s", **kwargs: Any) -> None:
        super().__init__(unit)
        self.kwargs = kwargs


class Unfinished(Profiler):
    def start(self, action: str) -> None: ...


class NoProfiler: ...


a_function = print


@pytest.fixture(autouse=True)
def importable(monkeypatch, request):
    """This file under a name that can be imported, whatever pytest calls it."""
    monkeypatch.setitem(sys.modules, HERE, request.module)


@pytest.fixture
def registry():
    registry = Registry()
    registry.registering("watch", "fulmen-watch", "1.2")
    return registry


def provider(target="Watch", name="watch", **arguments):
    return Provider("profiler", name, f"{HERE}:{target}", "", "watch", "fulmen-watch", "1.2", arguments=arguments)


# ---- Registering


def test_every_kind_has_a_contract_and_a_method():
    for kind, target in CONTRACTS.items():
        assert isinstance(import_target(target), (type, ABCMeta))
        registry = Registry()
        getattr(registry, kind)("mine", "somewhere:Mine", summary="")
        assert registry.names(kind) == ["mine"]


def test_what_is_registered_says_where_it_is_from(registry):
    registry.profiler("watch", "somewhere:Watch", summary="by hand", aliases=["clock"], priority=3, arguments={"unit": "s"})
    first, second = registry.providers
    assert first == Provider(
        "profiler", "watch", "somewhere:Watch", "by hand", "watch", "fulmen-watch", "1.2", priority=3, arguments={"unit": "s"}
    )
    assert (second.name, second.target) == ("clock", "somewhere:Watch")
    assert (first.class_name, first.origin) == ("Watch", "fulmen-watch 1.2")
    assert registry.names("profiler") == ["clock", "watch"]


def test_an_unknown_kind(registry):
    with pytest.raises(PluginError) as caught:
        registry.add("loger", "mine", "somewhere:Mine", summary="")
    assert str(caught.value) == f"cannot register 'mine': 'loger' is no kind of part; kinds are: {KINDS}"


@pytest.mark.parametrize("target", ["somewhere.Mine", "somewhere:", "somewhere:a b", ""])
def test_a_target_that_names_no_class(registry, target):
    with pytest.raises(PluginError) as caught:
        registry.logger("mine", target, summary="")
    assert str(caught.value) == f"cannot register logger 'mine': {target!r} is not of the form 'package.module:Class'"


def test_one_distribution_cannot_register_a_name_twice(registry):
    registry.profiler("watch", "somewhere:Watch", summary="")
    registry.registering("other", "Fulmen_Watch", "1.2")
    with pytest.raises(PluginError) as caught:
        registry.profiler("clock", "somewhere:Clock", summary="", aliases=["watch"])
    assert str(caught.value) == "cannot register profiler 'watch': fulmen-watch has registered it as somewhere:Watch"


def test_what_a_plugin_added_can_be_taken_back(registry):
    registry.profiler("watch", "somewhere:Watch", summary="")
    registry.registering("other", "other", "1.0")
    registry.profiler("clock", "somewhere:Clock", summary="")
    registry.remove("watch")
    assert registry.names("profiler") == ["clock"]


# ---- Finding


def test_names_of_one_kind_are_not_those_of_another(registry):
    registry.logger("watch", "somewhere:Logger", summary="")
    registry.profiler("watch", "somewhere:Watch", summary="")
    assert registry.find("profiler", "watch", {}).target == "somewhere:Watch"
    assert registry.conflicts() == []


@pytest.mark.parametrize(
    ("kind", "name", "error"),
    [
        ("logger", "wandb", "logger 'wandb' needs the package fulmen-wandb: pip install fulmen-wandb"),
        (
            "logger",
            "wandbb",
            "logger 'wandbb' is not registered; did you mean 'wandb'? (pip install fulmen-wandb) (installed: csv)",
        ),
        ("logger", "cvs", "logger 'cvs' is not registered; did you mean 'csv'? (installed: csv)"),
        ("logger", "postgres", "logger 'postgres' is not registered (installed: csv)"),
        ("exporter", "", "exporter '' is not registered (installed: (none))"),
    ],
)
def test_an_unknown_name(registry, kind, name, error):
    registry.logger("csv", "somewhere:Csv", summary="")
    with pytest.raises(PluginError) as caught:
        registry.find(kind, name, {})
    assert str(caught.value) == error


def test_a_known_name_that_is_installed_is_found(registry):
    registry.logger("wandb", "somewhere:Wandb", summary="")
    assert registry.find("logger", "wandb", {}).class_name == "Wandb"


@pytest.fixture
def contested(registry):
    registry.logger("csv", "left:Csv", summary="")
    registry.registering("other", "csv-plus", "3.0")
    registry.logger("csv", "right:Csv", summary="")
    return registry


def test_two_that_claim_a_name(contested):
    with pytest.raises(PluginError) as caught:
        contested.find("logger", "csv", {})
    assert str(caught.value) == (
        "logger 'csv' is provided by both csv-plus and fulmen-watch; uninstall one, or choose in pyproject.toml: "
        '[tool.fulmen.plugins.prefer] "logger.csv" = "csv-plus"'
    )
    assert [[each.distribution for each in rivals] for rivals in contested.conflicts()] == [["fulmen-watch", "csv-plus"]]


def test_the_project_chooses_between_two(contested):
    assert contested.find("logger", "csv", {"logger.csv": "csv-plus"}).target == "right:Csv"
    assert contested.find("logger", "csv", {"logger.csv": "Fulmen.Watch"}).target == "left:Csv"
    with pytest.raises(PluginError) as caught:
        contested.find("logger", "csv", {"logger.csv": "third"})
    assert str(caught.value) == (
        "logger 'csv' is not provided by 'third', which was chosen for it, but by: csv-plus, fulmen-watch"
    )


# ---- Loading


def test_a_class_is_imported_when_it_is_loaded():
    assert provider().load().__name__ == "Watch"


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("nowhere:Watch", " cannot be imported from nowhere:Watch: ModuleNotFoundError: No module named 'nowhere'"),
        (f"{HERE}:NoProfiler", f": {HERE}:NoProfiler is no subclass of Profiler"),
        (f"{HERE}:a_function", f": {HERE}:a_function is no subclass of Profiler"),
        (f"{HERE}:Unfinished", f": {HERE}:Unfinished does not implement: stop, summary"),
    ],
)
def test_a_class_that_does_not_load(target, error):
    broken = Provider("profiler", "watch", target, "", "watch", "fulmen-watch", "1.2")
    with pytest.raises(PluginError) as caught:
        broken.load()
    assert str(caught.value) == f"profiler 'watch' of fulmen-watch 1.2{error}"


def test_a_class_that_is_not_in_its_module():
    with pytest.raises(PluginError, match=r"cannot be imported from .*:Missing: AttributeError: module .* 'Missing'"):
        provider("Missing").load()


# ---- Specs


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("csv", ("csv", {})),
        ("csv?", ("csv", {})),
        ("csv?save_dir=logs&version=3", ("csv", {"save_dir": "logs", "version": 3})),
        ("csv?flat=true&none=null", ("csv", {"flat": True, "none": None})),
        ('csv?version="3"&rate=1e-3&path=a=b', ("csv", {"version": "3", "rate": 0.001, "path": "a=b"})),
        ({"name": "csv"}, ("csv", {})),
        ({"name": "csv", "version": "3"}, ("csv", {"version": "3"})),
        ({"name": "csv?name=digits&version=1", "version": 2}, ("csv", {"name": "digits", "version": 2})),
    ],
)
def test_the_forms_of_a_spec(spec, expected):
    assert parse_spec(spec) == expected


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("csv?version", "'csv?version' is not of the form 'name?key=value&key=value'"),
        ({"version": 3}, "{'version': 3} has no 'name'; the form is {'name': 'csv', 'save_dir': 'logs'}"),
        ({"name": 3}, "{'name': 3} has no 'name'; the form is {'name': 'csv', 'save_dir': 'logs'}"),
    ],
)
def test_what_is_no_spec(spec, error):
    with pytest.raises(ConfigurationError) as caught:
        parse_spec(spec)
    assert str(caught.value) == error


# ---- Constructing


def test_arguments_reach_the_class():
    made = construct(provider(unit="ms", digits=1), {"digits": 2, "scale": 1, "tags": {"any": "thing"}}, "here")
    assert made.settings == ("ms", 2, 1, None, {"any": "thing"})


def test_a_class_that_takes_anything_gets_anything():
    assert construct(provider("Open"), {"unit": "ms", "whatever": 1}, "here").kwargs == {"whatever": 1}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, " needs the argument 'unit'; it has: unit, digits, scale, name, tags"),
        ({"digit": 1}, " has no argument 'digit'; did you mean 'digits'?; it has: unit, digits, scale, name, tags"),
        ({"unit": "s", "digits": "3"}, ": digits='3' must be int"),
        ({"unit": "s", "digits": True}, ": digits=True must be int"),
        ({"unit": "s", "digits": 3.0}, ": digits=3.0 must be int"),
        ({"unit": "s", "scale": "big"}, ": scale='big' must be float | None"),
        ({"unit": 3}, ": unit=3 must be str; a string in quotes stays one: unit=\"3\""),
        ({"unit": "s", "name": 2024}, ": name=2024 must be str | None; a string in quotes stays one: name=\"2024\""),
    ],
)  # fmt: skip
def test_what_is_wrong_with_arguments(arguments, error):
    with pytest.raises(ConfigurationError) as caught:
        construct(provider(), arguments, "given as 'watch'")
    assert str(caught.value) == f"profiler 'watch' (given as 'watch'){error}"
