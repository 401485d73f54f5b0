"""Which plugins are found, which act, and how a name becomes a part. The plugins here are installed distributions."""

from __future__ import annotations

import sys
import types

import pytest

from fulmen import hookspecs
from fulmen.errors import ConfigurationError, FulmenWarning, PluginError, listing
from fulmen.hookspecs import hookimpl
from fulmen.plugins import PluginSet, version

STOPWATCH = """
from fulmen.contracts.profiler import Profiler

class Stopwatch(Profiler):
    def __init__(self, unit: str = "s", digits: int = 3, quiet: bool = False) -> None:
        self.settings = (unit, digits, quiet)

    def start(self, action): pass
    def stop(self, action): pass
    def summary(self): return ""

@hookimpl
def register(registry):
    registry.profiler("stopwatch", f"{__name__}:Stopwatch", summary="measures by hand")
"""

AMBIENT = """
calls = []

@hookimpl
def on_fit_start(trainer, module):
    calls.append((trainer, module))

@hookimpl
def on_train_batch_end(outputs, batch_idx):
    calls.append((outputs, batch_idx))
"""


def installed_names() -> str:
    """The installed plugins, as errors list them; there may be more than those of a test."""
    return listing(sorted(name for name in PluginSet.discover(problems=[]).plugins if name != "builtin"))


def call(found: PluginSet, hook: str, **arguments: object) -> None:
    for function in found.hook_functions(hook):
        function(**arguments)


# ---- Discovery


def test_what_is_installed_can_be_used_by_name(site):
    module = site.install("fulmen-stopwatch", STOPWATCH, version="2.1", plugin="stopwatch")

    found = PluginSet.discover()

    plugin = found.plugins["stopwatch"]
    assert (plugin.distribution, plugin.version, plugin.target) == ("fulmen-stopwatch", "2.1", module)
    assert (plugin.status, plugin.enabled_by, plugin.hooks) == ("available", None, ("register",))
    assert plugin.import_ms > 0
    assert "stopwatch" in found.names("profiler")
    assert type(found.build("profiler", "stopwatch")).__name__ == "Stopwatch"


def test_the_built_in_plugin_is_one_like_others():
    plugin = PluginSet.discover().plugins["builtin"]
    assert (plugin.distribution, plugin.version, plugin.status, plugin.enabled_by) == ("fulmen", version(), "enabled", "fulmen")


def test_finding_plugins_does_not_import_torch(site):
    site.install("stopwatch", STOPWATCH)
    code = (
        "import sys; from fulmen.plugins import PluginSet\n"
        "found = PluginSet.discover(); print(len(found.plugins), 'torch' in sys.modules)"
    )
    done = site.python("-W", "error", "-c", code)
    assert done.stderr == ""
    number, has_torch = done.stdout.split()
    assert int(number) >= 2
    assert has_torch == "False"


def test_each_set_is_its_own(site):
    site.install("stopwatch", STOPWATCH)
    site.install("ambient", AMBIENT)

    one = PluginSet.discover(["ambient"])
    other = PluginSet.discover()
    one.registry.profiler("mine", "somewhere:Mine", summary="")

    assert (one.plugins["ambient"].status, other.plugins["ambient"].status) == ("enabled", "available")
    assert "mine" not in other.names("profiler")
    assert one.hook_order("on_fit_start") == ["ambient"]
    assert other.hook_order("on_fit_start") == []


def test_effective_plugins_are_those_that_can_be_used(site):
    site.install("ambient", AMBIENT, version="1.5")
    site.install("stopwatch", STOPWATCH)
    site.install("broken", "raise RuntimeError('no')")
    site.install("off", AMBIENT)
    found = PluginSet.discover(environ={"FULMEN_PLUGINS": "ambient,-off,-broken"})
    rows = [row for row in found.effective() if row["name"] in ("builtin", "ambient", "stopwatch", "broken", "off")]
    assert rows == [
        {"name": "builtin", "distribution": "fulmen", "version": version(), "status": "enabled"},
        {"name": "ambient", "distribution": "ambient", "version": "1.5", "status": "enabled"},
        {"name": "stopwatch", "distribution": "stopwatch", "version": "1.0", "status": "available"},
    ]


# ---- Which hooks act


def test_hooks_act_only_where_the_plugin_is_enabled(site):
    site.install("ambient", AMBIENT)
    call(PluginSet.discover(), "on_fit_start", trainer="t", module="m")
    assert sys.modules["ambient"].calls == []
    call(PluginSet.discover(["ambient"]), "on_fit_start", trainer="t", module="m")
    assert sys.modules["ambient"].calls == [("t", "m")]


def test_a_hook_gets_the_arguments_that_it_declares(site):
    site.install("ambient", AMBIENT)
    found = PluginSet.discover(["ambient"])
    call(found, "on_train_batch_end", trainer="t", module="m", outputs="o", batch="b", batch_idx=3)
    assert sys.modules["ambient"].calls == [("o", 3)]


@pytest.mark.parametrize(
    ("trainer", "environment", "project", "status", "by"),
    [
        ([], "", "", "available", None),
        ([], "", "enable", "enabled", "pyproject.toml ([tool.fulmen.plugins])"),
        ([], "", "disable", "disabled", "pyproject.toml ([tool.fulmen.plugins])"),
        ([], "ambient", "disable", "enabled", "FULMEN_PLUGINS"),
        ([], "-ambient", "enable", "disabled", "FULMEN_PLUGINS"),
        (["ambient"], "-ambient", "disable", "enabled", "Trainer(plugins=...)"),
    ],
)
def test_the_nearest_source_decides(site, trainer, environment, project, status, by):
    site.install("ambient", AMBIENT)
    if project:
        site.configure(f'[tool.fulmen.plugins]\n{project} = ["ambient"]')
    found = PluginSet.discover(trainer, {"FULMEN_PLUGINS": environment})
    plugin = found.plugins["ambient"]
    assert (plugin.status, plugin.enabled_by or plugin.disabled_by) == (status, by)
    assert found.hook_order("on_fit_start") == (["ambient"] if status == "enabled" else [])


def test_a_disabled_plugin_is_not_imported(site):
    site.install("ambient", AMBIENT)
    found = PluginSet.discover(environ={"FULMEN_PLUGINS": "-ambient"})
    assert found.plugins["ambient"].status == "disabled"
    assert "ambient" not in sys.modules


def test_without_autoload_only_what_is_named_is_imported(site):
    site.install("ambient", AMBIENT)
    site.install("stopwatch", STOPWATCH)
    found = PluginSet.discover(environ={"FULMEN_PLUGIN_AUTOLOAD": "0", "FULMEN_PLUGINS": "stopwatch"})
    assert found.plugins["builtin"].status == "enabled"
    assert found.plugins["stopwatch"].status == "enabled"
    assert found.plugins["ambient"].disabled_by == "FULMEN_PLUGIN_AUTOLOAD=0"
    assert "ambient" not in sys.modules


def test_hooks_run_last_to_first_unless_they_ask_otherwise(site):
    for name, mark in (("a", "hookimpl"), ("b", "hookimpl(trylast=True)"), ("c", "hookimpl"), ("d", "hookimpl(tryfirst=True)")):
        site.install(name, f"@{mark}\ndef on_fit_start(): pass", module=f"order_{name}")
    found = PluginSet.discover(["a", "b", "c", "d"])
    assert found.hook_order("on_fit_start") == ["d", "c", "a", "b"]
    assert [function.__closure__ is not None for function in found.hook_functions("on_fit_start")] == [True] * 4


# ---- Plugins given to the trainer


def test_modules_and_objects_are_plugins_too():
    class Counter:
        def __init__(self):
            self.starts = 0

        @hookimpl
        def on_fit_start(self):
            self.starts += 1

    module = types.ModuleType("my_plugin")
    module.register = hookimpl(lambda registry: registry.profiler("mine", "somewhere:Mine", summary="mine"))
    one, two = Counter(), Counter()

    found = PluginSet.discover([module, one, two])
    call(found, "on_fit_start", trainer=None, module=None)

    assert (one.starts, two.starts) == (1, 1)
    given = [plugin for plugin in found.plugins.values() if plugin.enabled_by == "Trainer(plugins=...)"]
    assert [(plugin.distribution, plugin.version) for plugin in given] == [("Trainer(plugins=...)", "")] * 3
    assert len({plugin.name for plugin in given}) == 3
    assert "mine" in found.names("profiler")


def test_an_installed_plugin_that_is_given_as_a_module_is_enabled(site):
    site.install("ambient", AMBIENT)
    PluginSet.discover()
    found = PluginSet.discover([sys.modules["ambient"]])
    assert found.plugins["ambient"].enabled_by == "Trainer(plugins=...)"
    assert found.hook_order("on_fit_start") == ["ambient"]


def test_a_class_is_no_plugin():
    class Counter:
        @hookimpl
        def on_fit_start(self): ...

    with pytest.raises(PluginError, match=r"is a class; give an instance, Counter\(\)$"):
        PluginSet.discover([Counter])


def test_an_object_without_hooks_is_no_plugin():
    with pytest.raises(PluginError) as caught:
        PluginSet.discover([3])
    assert str(caught.value) == (
        "plugin 'int' of Trainer(plugins=...) does not work: 3 implements no hook; "
        "mark its functions with fulmen.hookspecs.hookimpl"
    )


# ---- Plugins that do not work


def test_a_plugin_that_fails_to_import_is_one_warning(site):
    site.install("fulmen-broken", "import a_library_that_is_not_here", version="0.3", plugin="broken")
    site.install("stopwatch", STOPWATCH)

    with pytest.warns(FulmenWarning) as caught:
        found = PluginSet.discover()

    assert len(caught) == 1
    assert str(caught[0].message) == (
        "[plugin-broken] plugin 'broken' of fulmen-broken 0.3 does not work: ModuleNotFoundError: No module named "
        "'a_library_that_is_not_here'. Nothing of it is available; where no upgrade helps, disable it: FULMEN_PLUGINS=-broken"
    )
    assert found.plugins["broken"].status == "broken"
    assert "stopwatch" in found.names("profiler")


def test_the_warning_points_at_the_line_that_makes_the_runtime(site):
    from fulmen.runtime import Runtime

    site.install("broken", "raise RuntimeError('no')")
    with pytest.warns(FulmenWarning) as caught:
        Runtime(accelerator="cpu")
    assert [warning.filename for warning in caught] == [__file__]


def test_disabling_a_broken_plugin_silences_it(site, recwarn):
    site.install("broken", "raise RuntimeError('no')")
    assert PluginSet.discover(environ={"FULMEN_PLUGINS": "-broken"}).plugins["broken"].status == "disabled"
    assert len(recwarn) == 0


@pytest.mark.parametrize("by", ["trainer", "environment", "project"])
def test_a_broken_plugin_that_is_named_is_an_error(site, by):
    site.install("broken", "raise RuntimeError('two\\nlines')", version="0.3")
    if by == "project":
        site.configure('[tool.fulmen.plugins]\nenable = ["broken"]')
    with pytest.raises(PluginError) as caught:
        PluginSet.discover(["broken"] if by == "trainer" else [], {"FULMEN_PLUGINS": "broken" if by == "environment" else ""})
    assert str(caught.value) == "plugin 'broken' of broken 0.3 does not work: RuntimeError: two lines"
    assert isinstance(caught.value.__cause__, RuntimeError)


WRAPPER = """
@hookimpl(wrapper=True)
def on_fit_start():
    return (yield)
"""


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (
            "FULMEN_HOOKSPECS = 2\n@hookimpl\ndef on_fit_start(): ...",
            f"it is made for version 2 of fulmen's hooks, and this fulmen has version {hookspecs.VERSION}; upgrade fulmen",
        ),
        (
            "FULMEN_HOOKSPECS = 0\n@hookimpl\ndef on_fit_start(): ...",
            f"it is made for version 0 of fulmen's hooks, and this fulmen has version {hookspecs.VERSION}; upgrade faulty",
        ),
        (
            "@hookimpl\ndef on_fit_strat(): ...",
            "there is no hook 'on_fit_strat'; did you mean 'on_fit_start'?; see fulmen.hookspecs",
        ),
        (WRAPPER, "hook 'on_fit_start' cannot have wrappers: its implementations are called directly"),
        (
            "@hookimpl\ndef on_fit_start(trainer, modul): ...",
            (
                "PluginValidationError: Plugin 'faulty' for hook 'on_fit_start' hookimpl definition: "
                "on_fit_start(trainer, modul) "
                "Argument(s) {'modul'} are declared in the hookimpl but can not be found in the hookspec"
            ),
        ),
        (
            "@hookimpl\ndef register(registry):\n    registry.add('loger', 'x', 'a:B', summary='')",
            (
                "cannot register 'x': 'loger' is no kind of part; kinds are: accelerator, strategy, precision, logger, "
                "callback, progress, exporter, environment, profiler"
            ),
        ),
    ],
    ids=["newer", "older", "misspelled", "wrapper", "argument", "kind"],
)
def test_what_is_wrong_with_a_plugin_is_said(site, source, error):
    site.install("faulty", source)
    with pytest.raises(PluginError) as caught:
        PluginSet.discover(["faulty"])
    assert str(caught.value) == f"plugin 'faulty' of faulty 1.0 does not work: {error}"


def test_nothing_remains_of_a_plugin_that_fails_halfway(site):
    site.install(
        "halfway",
        """
        @hookimpl
        def on_fit_start(): ...

        @hookimpl
        def register(registry):
            registry.profiler("half", "somewhere:Half", summary="")
            raise RuntimeError("the other half")
        """,
    )
    with pytest.warns(FulmenWarning, match="the other half"):
        found = PluginSet.discover()
    assert "half" not in found.names("profiler")
    assert found.manager.get_plugin("halfway") is None
    assert found.manager.hook.on_fit_start.get_hookimpls() == []


def test_an_optional_hook_may_be_one_of_a_newer_fulmen(site):
    site.install("modern", "@hookimpl(optionalhook=True)\ndef on_tea_time(): ...\n\n@hookimpl\ndef on_fit_start(): ...")
    assert PluginSet.discover(["modern"]).plugins["modern"].hooks == ("on_fit_start",)


def test_one_module_under_two_names_works_once(site):
    site.install("one", AMBIENT, module="shared_module")
    site.install("two", AMBIENT, module="shared_module", version="1.1")
    with pytest.warns(
        FulmenWarning, match=r"does not work: plugin 'one' of one 1\.0 is the same module; uninstall one of them"
    ):
        found = PluginSet.discover()
    assert found.plugins["one"].status == "available"


def test_a_command_that_reports_gets_problems_instead_of_errors(site, recwarn):
    site.install("broken", "raise RuntimeError('no')")
    site.configure('[tool.fulmen.plugins]\nenable = ["broken", "nobody"]\n')
    problems: list[str] = []
    found = PluginSet.discover(problems=problems)
    who = "plugin 'nobody', enabled by pyproject.toml ([tool.fulmen.plugins]),"
    assert problems == [
        f"{who} is not installed (installed: {installed_names()})",
        "plugin 'broken' of broken 1.0 does not work: RuntimeError: no",
    ]
    assert found.plugins["broken"].status == "broken"
    assert len(recwarn) == 0


def test_a_malformed_project_is_a_problem_too(site):
    site.configure("[tool.fulmen]\nplugins = 3")
    problems: list[str] = []
    assert PluginSet.discover(problems=problems).project.enable == ()
    assert len(problems) == 1
    with pytest.raises(ConfigurationError, match="must be a table"):
        PluginSet.discover()


# ---- Names of plugins


def test_a_plugin_that_is_not_installed(site):
    site.install("stopwatch", STOPWATCH)
    with pytest.raises(PluginError) as caught:
        PluginSet.discover(["stopwach"])
    assert str(caught.value) == (
        "plugin 'stopwach', enabled by Trainer(plugins=...), is not installed; did you mean 'stopwatch'? "
        f"(installed: {installed_names()})"
    )


def test_a_known_plugin_that_is_not_installed_can_be(site, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    with pytest.raises(PluginError) as caught:
        PluginSet.discover(environ={"FULMEN_PLUGINS": "wandb"})
    assert str(caught.value) == (
        "plugin 'wandb', enabled by FULMEN_PLUGINS, is not installed: pip install fulmen-wandb (installed: (none))"
    )


def test_what_a_nearer_source_disables_need_not_be_installed(site):
    site.configure('[tool.fulmen.plugins]\nenable = ["nobody"]')
    assert "nobody" not in PluginSet.discover(environ={"FULMEN_PLUGINS": "-nobody"}).plugins


def test_a_misspelt_name_that_is_to_be_disabled_is_a_warning(site):
    PluginSet.discover(environ={"FULMEN_PLUGINS": "-wandb"})  # installed or not, the name is known
    with pytest.warns(FulmenWarning) as caught:
        PluginSet.discover(environ={"FULMEN_PLUGINS": "-stopwach"})
    assert [str(warning.message) for warning in caught] == [
        "[plugin-settings] FULMEN_PLUGINS disables 'stopwach', which is not installed; remove it there"
    ]


def test_two_distributions_with_plugins_of_one_name(site):
    site.install("left", AMBIENT, plugin="twin", module="twin_left")
    site.install("right", AMBIENT, plugin="twin", module="twin_right")
    with pytest.raises(PluginError) as caught:
        PluginSet.discover(["twin"])
    assert str(caught.value) == (
        "plugin 'twin', enabled by Trainer(plugins=...), is provided by both left and right; "
        "uninstall one, or write 'left:twin'"
    )
    found = PluginSet.discover(["right:twin"])
    assert (found.plugins["left:twin"].status, found.plugins["right:twin"].status) == ("available", "enabled")
    found = PluginSet.discover(environ={"FULMEN_PLUGINS": "-twin"})
    assert (found.plugins["left:twin"].status, found.plugins["right:twin"].status) == ("disabled", "disabled")


def test_the_built_in_plugin_cannot_be_disabled(site):
    with pytest.raises(PluginError) as caught:
        PluginSet.discover(environ={"FULMEN_PLUGINS": "-builtin"})
    assert str(caught.value) == (
        "FULMEN_PLUGINS disables the plugin 'builtin', which fulmen cannot run without; remove it there"
    )


# ---- Parts


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ("stopwatch", ("s", 3, False)),
        ("stopwatch?unit=ms&digits=1&quiet=true", ("ms", 1, True)),
        ({"name": "stopwatch", "unit": "ms"}, ("ms", 3, False)),
        ({"name": "stopwatch?digits=9", "unit": "ms"}, ("ms", 9, False)),
        ("stopwatch:stopwatch?digits=0", ("s", 0, False)),
    ],
)
def test_the_forms_of_a_part(site, spec, settings):
    site.install("stopwatch", STOPWATCH)
    assert PluginSet.discover().build("profiler", spec).settings == settings


def test_an_instance_is_taken_as_it_is(site):
    site.install("stopwatch", STOPWATCH)
    found = PluginSet.discover()
    part = found.build("profiler", "stopwatch")
    assert found.build("profiler", part) is part


def test_something_of_another_kind_is_refused(site):
    found = PluginSet.discover()
    with pytest.raises(PluginError) as caught:
        found.build("profiler", 3.5)
    assert str(caught.value) == (
        f"3.5 is no Profiler; give the profiler as a name (installed: {listing(found.names('profiler'))}), "
        "as 'name?key=value', as {'name': ...}, or as an instance"
    )


def test_defaults_are_what_nobody_else_sets(site):
    site.install("stopwatch", STOPWATCH)
    site.configure("[tool.fulmen.plugins.options.stopwatch]\nunit = 'min'")
    part = PluginSet.discover().build("profiler", "stopwatch?quiet=true", unit="h", digits=7, quiet=False, nonsense=1)
    assert part.settings == ("min", 7, True)


def test_arguments_that_a_name_stands_for_win_over_defaults(site):
    site.install("stopwatch", STOPWATCH.replace('summary="', 'arguments={"unit": "ms"}, summary="'))
    assert PluginSet.discover().build("profiler", "stopwatch", unit="h").settings == ("ms", 3, False)
    assert PluginSet.discover().build("profiler", "stopwatch?unit=min", unit="h").settings == ("min", 3, False)


@pytest.mark.parametrize("table", ["stopwatch", "profiler.stopwatch", '"profiler.stopwatch"'])
def test_a_project_sets_arguments(site, table):
    site.install("stopwatch", STOPWATCH)
    site.configure(f"[tool.fulmen.plugins.options.{table}]\nunit = 'min'\ndigits = 1")
    found = PluginSet.discover()
    assert found.build("profiler", "stopwatch").settings == ("min", 1, False)
    assert found.build("profiler", "stopwatch:stopwatch?unit=h").settings == ("h", 1, False)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("unti = 'min'", "has no argument 'unti'; did you mean 'unit'?; it has: unit, digits, quiet"),
        ("digits = 'three'", "digits='three' must be int"),
    ],
)
def test_what_a_project_sets_is_validated(site, options, error):
    site.install("stopwatch", STOPWATCH)
    site.configure(f"[tool.fulmen.plugins.options.stopwatch]\n{options}")
    with pytest.raises(ConfigurationError) as caught:
        PluginSet.discover().build("profiler", "stopwatch")
    source = "(given as 'stopwatch', with options from pyproject.toml ([tool.fulmen.plugins]))"
    assert str(caught.value).replace("): digits", ") digits") == f"profiler 'stopwatch' {source} {error}"


def test_options_of_what_nobody_provides_are_a_warning(site):
    site.install("stopwatch", STOPWATCH)
    site.configure("[tool.fulmen.plugins.options.stopwach]\nunit = 'min'")
    with pytest.warns(FulmenWarning) as caught:
        PluginSet.discover()
    assert len(caught) == 1
    assert str(caught[0].message) == (
        "[plugin-settings] pyproject.toml ([tool.fulmen.plugins]): no installed plugin provides 'stopwach', which has options; "
        "did you mean 'stopwatch'?"
    )


def test_options_of_a_known_package_are_no_mistake(site, recwarn):
    site.configure("[tool.fulmen.plugins.options.wandb]\nproject = 'digits'\n[tool.fulmen.plugins.options.logger.wandb]\n")
    assert set(PluginSet.discover().project.options) == {"wandb", "logger.wandb"}
    assert len(recwarn) == 0


def test_an_unknown_part(site):
    site.install("stopwatch", STOPWATCH)
    found = PluginSet.discover()
    with pytest.raises(PluginError) as caught:
        found.build("profiler", "stopwach")
    assert str(caught.value) == (
        f"profiler 'stopwach' is not registered; did you mean 'stopwatch'? (installed: {listing(found.names('profiler'))})"
    )


def test_an_unknown_part_may_be_that_of_a_plugin_that_is_off_or_broken(site):
    site.install("stopwatch", STOPWATCH)
    site.install("hourglass", STOPWATCH)
    site.install("broken", "raise RuntimeError('no')", version="0.3")
    with pytest.warns(FulmenWarning):
        found = PluginSet.discover(environ={"FULMEN_PLUGINS": "-stopwatch,-hourglass"})
    with pytest.raises(PluginError) as caught:
        found.build("profiler", "stopwatch")
    assert str(caught.value).endswith(
        "; broken of broken 0.3 is broken: RuntimeError: no; disabled by FULMEN_PLUGINS: hourglass, stopwatch"
    )


# ---- Two that claim one name


def test_two_distributions_that_claim_one_name(site):
    site.install("left-watch", STOPWATCH, plugin="left")
    site.install("right-watch", STOPWATCH, plugin="right")
    found = PluginSet.discover()
    with pytest.raises(PluginError) as caught:
        found.build("profiler", "stopwatch")
    assert str(caught.value) == (
        "profiler 'stopwatch' is provided by both left-watch and right-watch; uninstall one, or choose in pyproject.toml: "
        '[tool.fulmen.plugins.prefer] "profiler.stopwatch" = "left-watch"'
    )


@pytest.mark.parametrize("key", ['"profiler.stopwatch"', "profiler.stopwatch"])
@pytest.mark.parametrize("wanted", ["right-watch", "Right_Watch"])
def test_a_project_chooses_between_two(site, key, wanted):
    site.install("left-watch", STOPWATCH, plugin="left")
    site.install("right-watch", STOPWATCH, plugin="right")
    site.configure(f'[tool.fulmen.plugins.prefer]\n{key} = "{wanted}"')
    found = PluginSet.discover()
    assert type(found.build("profiler", "stopwatch")).__module__ == "right_watch"
    assert type(found.build("profiler", "left-watch:stopwatch")).__module__ == "left_watch"


def test_a_choice_that_does_not_exist(site):
    site.install("left-watch", STOPWATCH, plugin="left")
    with pytest.raises(PluginError) as caught:
        PluginSet.discover().build("profiler", "other-watch:stopwatch")
    assert str(caught.value) == (
        "profiler 'stopwatch' is not provided by 'other-watch', which was chosen for it, but by: left-watch"
    )
