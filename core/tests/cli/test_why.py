from __future__ import annotations

import pytest

WATCH = """
from fulmen.contracts.profiler import Profiler

class Stopwatch(Profiler):
    def __init__(self, unit: str = "s") -> None: ...
    def start(self, action): ...
    def stop(self, action): ...
    def summary(self): return ""

@hookimpl
def register(registry):
    registry.profiler("watch", f"{__name__}:Stopwatch", summary="measures by hand", aliases=["clock"], arguments={"unit": "s"})
"""

AMBIENT = "@hookimpl\ndef on_fit_start(): ..."


def answer(site, name, **environ):
    """The answer to `fulmen plugins why name`, as ``{heading: [line, ...]}`` without the space between columns."""
    done = site.fulmen("plugins", "why", name, environ=environ)
    assert (done.returncode, done.stderr) == (0, "")
    parts = (part.split("\n") for part in done.stdout.strip().split("\n\n"))
    return {heading: [" ".join(line.split()) for line in lines] for heading, *lines in parts}


def joined(lines):
    return " ".join(lines)


@pytest.mark.parametrize("name", ["profiler.watch", "Stopwatch", "fulmen_watch:Stopwatch"])
def test_a_part(site, name):
    site.install("fulmen-watch", WATCH, version="1.2", plugin="timing")
    path = site.configure("[tool.fulmen.plugins.options.watch]\nunit = 'min'")
    found = answer(site, name)
    (heading, _) = found
    assert heading in ("profiler 'watch'", "profiler 'watch' and 'clock'")
    assert joined(found[heading]) == (
        "class fulmen_watch:Stopwatch summary measures by hand package fulmen-watch 1.2 "
        "plugin timing, available: its parts can be named; its on_* hooks do not act, because nothing enables it "
        f"arguments unit='s' options unit='min', from {path}"
    )


def test_a_plugin_and_the_order_of_its_hooks(site):
    for name in ("first", "second", "third"):
        site.install(name, AMBIENT)
    found = answer(site, "second", FULMEN_PLUGINS="first,second")
    lines = found["plugin 'second'"]
    assert lines[:3] == ["package second 1.0", "module second", "status enabled by FULMEN_PLUGINS"]
    assert lines[3].startswith("import ")
    assert lines[4:] == ["provides (none)", "hook on_fit_start: acts as number 1 of 2 (second, then first)"]
    assert "hook on_fit_start: does not act, because the plugin is not enabled" in answer(site, "third")["plugin 'third'"]


def test_a_plugin_that_is_also_a_part(site):
    site.install("watch", WATCH)
    found = answer(site, "watch")
    assert list(found)[:2] == ["plugin 'watch'", "profiler 'watch'"]
    assert "provides profiler 'watch', profiler 'clock'" in found["plugin 'watch'"]


def test_a_disabled_plugin(site):
    site.install("watch", WATCH)
    found = answer(site, "watch", FULMEN_PLUGINS="-watch")
    assert found["plugin 'watch'"] == [
        "package watch 1.0",
        "module watch",
        "status disabled by FULMEN_PLUGINS: it is not imported, and nothing of it is available",
    ]


def test_a_broken_plugin(site):
    site.install("broken", "raise RuntimeError('out of order')")
    assert answer(site, "broken")["plugin 'broken'"] == [
        "package broken 1.0",
        "module broken",
        "status broken: nothing of it is available",
        "error RuntimeError: out of order",
    ]


def test_who_decides(site):
    site.install("ambient", AMBIENT)
    title = "who decides on a plugin, the first that mentions it"
    assert joined(answer(site, "ambient")[title]) == (
        "1 Trainer(plugins=...) enables; known only when a trainer is made "
        "2 FULMEN_PLUGINS 'name' enables, '-name' disables; says nothing "
        "3 [tool.fulmen.plugins] enable = [...], disable = [...]; no pyproject.toml with [tool.fulmen] at or above "
        f"{site.project}, so it says nothing "
        "4 nothing of these its parts can be named, its on_* hooks do not act"
    )
    path = site.configure('[tool.fulmen.plugins]\nenable = ["ambient"]')
    lines = answer(site, "ambient", FULMEN_PLUGINS="-ambient,-other", FULMEN_PLUGIN_AUTOLOAD="0")[title]
    assert joined(lines[1:]) == (
        "2 FULMEN_PLUGINS 'name' enables, '-name' disables; disables ambient, other "
        f"3 [tool.fulmen.plugins] enable = [...], disable = [...]; {path} enables ambient "
        "4 nothing of these it is not imported, because of FULMEN_PLUGIN_AUTOLOAD=0"
    )


def test_two_that_claim_a_name(site):
    site.install("left", WATCH)
    site.install("right", WATCH)
    done = site.fulmen("plugins", "why", "profiler.watch")
    assert done.returncode == 0
    assert (
        "  conflict   also in right 1.0 (right:Stopwatch); uninstall one, or take this one in pyproject.toml:\n"
        "             [tool.fulmen.plugins.prefer]\n"
        '             "profiler.watch" = "left"\n'
    ) in done.stdout
    assert (
        "  conflict   also in left 1.0 (left:Stopwatch); uninstall one, or take this one in pyproject.toml:\n"
        "             [tool.fulmen.plugins.prefer]\n"
        '             "profiler.watch" = "right"\n'
    ) in done.stdout


def test_two_that_claim_a_name_and_one_is_chosen(site):
    site.install("left", WATCH)
    site.install("right", WATCH)
    path = site.configure('[tool.fulmen.plugins.prefer]\nprofiler.watch = "right"')
    text = " ".join(site.fulmen("plugins", "why", "profiler.watch").stdout.split())
    assert f"conflict also in right 1.0 (right:Stopwatch); right 1.0 is taken, as {path} has it" in text
    assert f"conflict also in left 1.0 (left:Stopwatch); right 1.0 is taken, as {path} has it" in text


def test_two_that_claim_a_name_and_a_third_is_chosen(site):
    site.install("left", WATCH)
    site.install("right", WATCH)
    site.configure('[tool.fulmen.plugins.prefer]\nprofiler.watch = "third"')
    text = " ".join(site.fulmen("plugins", "why", "profiler.watch").stdout.split())
    assert "conflict profiler 'watch' is not provided by 'third', which was chosen for it, but by: left, right" in text


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("stopwach", "nothing is called 'stopwach'; did you mean 'stopwatch'?; `fulmen plugins` lists what is installed"),
        ("Stopwach", "nothing is called 'Stopwach'; did you mean 'Stopwatch'?; `fulmen plugins` lists what is installed"),
        ("zzz_nothing", "nothing is called 'zzz_nothing'; `fulmen plugins` lists what is installed"),
    ],
)
def test_an_unknown_name(site, name, error):
    site.install("stopwatch", WATCH)
    done = site.fulmen("plugins", "why", name)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"fulmen: {error}\n")


@pytest.mark.parametrize(
    ("name", "extra"),
    [("wandb", "wandb"), ("logger.wandb", "wandb"), ("EarlyStopping", "early-stopping"), ("early-stopping", "early-stopping")],
)
def test_a_known_name_that_is_not_installed(site, name, extra):
    # Without autoload, so that it is the same where the package is installed; a plugin that is off is said to be.
    done = site.fulmen("plugins", "why", name, environ={"FULMEN_PLUGIN_AUTOLOAD": "0"})
    if done.returncode == 0:  # the name is that of a plugin which is installed
        assert "disabled by FULMEN_PLUGIN_AUTOLOAD=0" in done.stdout
        return
    line = f"fulmen: {name!r} is not installed; fulmen-{extra} provides it: pip install fulmen-{extra}"
    assert done.stderr.splitlines()[0].partition("; disabled by")[0] == line
    assert done.returncode == 1


def test_a_misspelled_known_name_comes_with_its_package(site):
    done = site.fulmen("plugins", "why", "EarlyStoping", environ={"FULMEN_PLUGIN_AUTOLOAD": "0"})
    assert done.stderr.partition("; `fulmen")[0] == (
        "fulmen: nothing is called 'EarlyStoping'; did you mean 'EarlyStopping'? (pip install fulmen-early-stopping)"
    )


def test_a_plugin_that_might_provide_an_unknown_name_is_said_to_be_off(site):
    site.install("stopwatch", WATCH)
    done = site.fulmen("plugins", "why", "zzz_nothing", environ={"FULMEN_PLUGINS": "-stopwatch"})
    assert done.stderr.strip().endswith("; disabled by FULMEN_PLUGINS: stopwatch")
