from __future__ import annotations

import json

from fulmen import hookspecs
from fulmen.plugins import version
from fulmen.registry import CONTRACTS

WATCH = """
@hookimpl
def register(registry):
    registry.profiler("watch", "watch_parts:Watch", summary="measures by hand", aliases=["clock"], arguments={"unit": "s"})

@hookimpl
def on_fit_start(): ...

@hookimpl
def on_fit_end(): ...
"""


def section(text: str, title: str) -> list[str]:
    """The lines under a heading, without the space between columns."""
    paragraphs = {part.split("\n", 1)[0]: part.split("\n")[1:] for part in text.strip().split("\n\n")}
    return [" ".join(line.split()) for line in paragraphs[title]]


def whole(rows: list[str]) -> list[str]:
    """Rows of plugins whose last cell goes on in the lines below, which have no import time, each in one line."""
    joined: list[str] = []
    for row in rows:
        if " ms" in row:
            joined.append(row)
        else:
            joined[-1] += f" {row}"
    return joined


def without_import_time(line: str) -> str:
    words = line.split()
    where = words.index("ms")
    return " ".join(words[: where - 1] + words[where + 1 :])


def test_plugins_and_what_they_provide(site):
    site.install("fulmen-watch", WATCH, version="1.2", plugin="watch")
    site.install("off", WATCH)
    site.configure('[tool.fulmen.plugins]\nenable = ["watch"]')

    done = site.fulmen("plugins", environ={"FULMEN_PLUGINS": "-off"})

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"fulmen {version()}, hooks version {hookspecs.VERSION}\n\nplugins\n")
    header, *rows = section(done.stdout, "plugins")
    assert header == "name package status by import hooks"
    rows = [without_import_time(row) for row in whole(rows)]
    assert "watch fulmen-watch 1.2 enabled pyproject.toml on_fit_end, on_fit_start" in rows
    assert "off off 1.0 disabled FULMEN_PLUGINS -" in rows
    assert f"builtin fulmen {version()} enabled fulmen -" in rows
    profilers = section(done.stdout, "profiler")
    assert profilers[profilers.index("watch, clock measures by hand fulmen-watch 1.2") + 1] == "watch_parts:Watch"
    assert "problems" not in done.stdout


def test_a_broken_plugin_is_shown_once_with_its_error(site):
    site.install("broken", "raise RuntimeError('out of order')", version="0.3")
    done = site.fulmen("plugins")
    assert (done.returncode, done.stderr) == (0, "")
    assert [without_import_time(row) for row in section(done.stdout, "plugins") if row.startswith("broken")] == [
        "broken broken 0.3 broken - -"
    ]
    problem = " ".join(section(done.stdout, "problems"))
    assert problem == (
        "- plugin 'broken' of broken 0.3 does not work: RuntimeError: out of order. Nothing of it is available; "
        "where no upgrade helps, disable it: FULMEN_PLUGINS=-broken"
    )
    assert done.stdout.count("out of order") == 1


def test_a_wrong_project_does_not_hide_the_list(site):
    path = site.configure("[tool.fulmen.plugins]\nenabled = []")
    done = site.fulmen("plugins")
    assert (done.returncode, done.stderr) == (0, "")
    assert section(done.stdout, "plugins")
    assert " ".join(section(done.stdout, "problems")).startswith(
        f"- {path}: [tool.fulmen.plugins] has the unknown key 'enabled'"
    )


def test_one_kind(site):
    site.install("watch", WATCH)
    site.install("ambient", "@hookimpl\ndef on_fit_start(): ...")
    done = site.fulmen("plugins", "--kind", "profiler")
    assert done.returncode == 0
    headings = [line for line in done.stdout.splitlines() if line in CONTRACTS]
    assert headings == ["profiler"]
    names = [row.split()[0] for row in section(done.stdout, "plugins")]
    assert "watch" in names
    assert "ambient" not in names


def test_json(site):
    site.install("fulmen-watch", WATCH, version="1.2", plugin="watch")
    site.install("broken", "raise RuntimeError('out of order')")
    done = site.fulmen("plugins", "--json", environ={"FULMEN_PLUGINS": "watch"})
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert list(report) == ["fulmen", "hookspecs", "plugins", "providers", "problems"]
    assert (report["fulmen"], report["hookspecs"]) == (version(), hookspecs.VERSION)
    plugins = {plugin["name"]: plugin for plugin in report["plugins"]}
    assert plugins["watch"].pop("import_ms") > 0
    assert plugins["watch"] == {
        "name": "watch",
        "target": "fulmen_watch",
        "distribution": "fulmen-watch",
        "version": "1.2",
        "status": "enabled",
        "enabled_by": "FULMEN_PLUGINS",
        "disabled_by": None,
        "error": None,
        "hooks": ["on_fit_end", "on_fit_start", "register"],
    }
    assert (plugins["broken"]["status"], plugins["broken"]["error"]) == ("broken", "RuntimeError: out of order")
    assert [provider for provider in report["providers"] if provider["plugin"] == "watch"] == [
        {
            "kind": "profiler",
            "name": name,
            "target": "watch_parts:Watch",
            "summary": "measures by hand",
            "plugin": "watch",
            "distribution": "fulmen-watch",
            "version": "1.2",
            "priority": 0,
            "arguments": {"unit": "s"},
        }
        for name in ("watch", "clock")
    ]
    assert len(report["problems"]) == 1


def test_json_of_one_kind(site):
    site.install("watch", WATCH)
    report = json.loads(site.fulmen("plugins", "--kind", "profiler", "--json").stdout)
    assert {provider["kind"] for provider in report["providers"]} == {"profiler"}
    assert {plugin["name"] for plugin in report["plugins"]} == {provider["plugin"] for provider in report["providers"]}


def test_the_list_does_not_import_torch(site):
    site.install("watch", WATCH)
    code = "import sys; from fulmen.cli import main; status = main(['plugins']); print(status, 'torch' in sys.modules)"
    done = site.python("-W", "error", "-c", code)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0 False"
