from __future__ import annotations

import platform
from importlib.metadata import version as installed_version

WATCH = """
from fulmen.contracts.profiler import Profiler

class Stopwatch(Profiler):
    def __init__(self, unit: str = "s") -> None: ...
    def start(self, action): ...
    def stop(self, action): ...
    def summary(self): return ""

@hookimpl
def register(registry):
    registry.profiler("watch", f"{__name__}:Stopwatch", summary="measures by hand")
"""


def examine(site, **environ):
    """The exit status, the sections as ``{heading: text}``, and the problems; no space between columns."""
    done = site.fulmen("doctor", environ={"CUDA_VISIBLE_DEVICES": "", **environ})  # a GPU without its package is a problem
    assert done.stderr == ""
    parts = (part.partition("\n") for part in done.stdout.strip().split("\n\n"))
    sections = {heading: " ".join(text.split()) for heading, _, text in parts}
    problems = f" {sections.get('problems', '')}".split(" - ")[1:]
    return done.returncode, sections, problems


def test_a_sound_installation(site):
    import torch

    site.install("fulmen-watch", WATCH, version="1.2", plugin="watch")
    status, sections, problems = examine(site)
    assert (status, problems) == (0, [])
    assert list(sections) == ["versions", "devices", "plugins", "project", "no problem found"]
    assert f"python {platform.python_version()} torch {torch.__version__} pluggy " in sections["versions"]
    assert f"fulmen {installed_version('fulmen')} " in sections["versions"]
    assert "fulmen-watch 1.2" in sections["versions"]
    assert "watch available" in sections["plugins"]
    assert sections["project"] == f"folder {site.project} settings no pyproject.toml with [tool.fulmen]"
    assert sections["devices"].startswith("torch sees ")
    assert f"cpu (fulmen {installed_version('fulmen')}) finds " in sections["devices"]


BOTTLE = """
from fulmen.contracts.profiler import Profiler

class Bottle: ...
class Half(Profiler): ...

@hookimpl
def register(registry):
    registry.profiler("bottle", f"{__name__}:Bottle", summary="")
    registry.profiler("half", f"{__name__}:Half", summary="")
    registry.profiler("gone", f"{__name__}:Gone", summary="")
"""


def test_everything_that_is_wrong_with_plugins(site):
    site.install("broken", "raise RuntimeError('out of order')", version="0.3")
    site.install("bottle", BOTTLE)
    site.install("left", WATCH)
    site.install("right", WATCH)
    site.configure("[tool.fulmen.plugins.options.half]\nempty = true")  # cannot be checked, which is no further problem
    status, _, problems = examine(site)
    assert status == 1
    assert problems == [
        (
            "plugin 'broken' of broken 0.3 does not work: RuntimeError: out of order. Nothing of it is available; "
            "where no upgrade helps, disable it: FULMEN_PLUGINS=-broken"
        ),
        "profiler 'bottle' of bottle 1.0: bottle:Bottle is no subclass of Profiler; upgrade or reinstall bottle",
        "profiler 'half' of bottle 1.0: bottle:Half does not implement: start, stop, summary; upgrade or reinstall bottle",
        (
            "profiler 'gone' of bottle 1.0 cannot be imported from bottle:Gone: AttributeError: module 'bottle' has no "
            "attribute 'Gone'; upgrade or reinstall bottle"
        ),
        (
            "profiler 'watch' is provided by both left and right; uninstall one, or choose in pyproject.toml: "
            '[tool.fulmen.plugins.prefer] "profiler.watch" = "left"'
        ),
    ]


def test_everything_that_is_wrong_with_a_project(site):
    site.install("watch", WATCH)
    path = site.configure(
        """
        [tool.fulmen.plugins]
        enable = ["nobody"]
        disable = ["wach"]
        prefer.profiler.watch = "other"
        prefer.logger.nothing = "watch"
        options.watch.unti = "min"
        options.wacht.unit = "min"
        """
    )
    status, sections, problems = examine(site, FULMEN_PLUGINS="-zzz")
    assert status == 1
    assert sections["project"] == f"folder {site.project} settings {path}"
    source = "pyproject.toml ([tool.fulmen.plugins])"
    assert problems[0].startswith(f"plugin 'nobody', enabled by {source}, is not installed")
    assert problems[1:5] == [
        f"{source}: no installed plugin provides 'wacht', which has options; did you mean 'watch'?",
        "FULMEN_PLUGINS disables 'zzz', which is not installed; remove it there",
        f"{source} disables 'wach', which is not installed; did you mean 'watch'?; remove it there",
        problems[4],
    ]
    assert problems[4].startswith("logger 'nothing' is not registered")
    assert problems[5:] == [
        "profiler 'watch' is not provided by 'other', which was chosen for it, but by: watch",
        f"profiler 'watch' (with options from {source}) has no argument 'unti'; did you mean 'unit'?; it has: unit",
    ]


def test_a_project_that_cannot_be_read(site):
    path = site.configure("[tool.fulmen.plugins")
    status, _, problems = examine(site)
    assert status == 1
    assert len(problems) == 1
    assert problems[0].startswith(f"{path} is not valid TOML: ")


def test_options_for_what_is_not_installed(site):
    site.configure("[tool.fulmen.plugins.options.wandb]\nproject = 'digits'")
    status, _, problems = examine(site, FULMEN_PLUGIN_AUTOLOAD="0")
    assert (status, problems) == (
        1,
        ["pyproject.toml ([tool.fulmen.plugins]) has options for 'wandb', which is not installed; pip install fulmen-wandb"],
    )


ACCELERATOR = """
@hookimpl
def register(registry):
    registry.accelerator("abacus", "abacus_parts:Abacus", summary="beads", aliases=["beads"])
    registry.accelerator("slide", "abacus_parts:SlideRule", summary="a slide rule")
"""

ACCELERATOR_PARTS = """
from fulmen.contracts.accelerator import Accelerator

class Abacus(Accelerator):
    name = "abacus"

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def num_available():
        return 3

    def setup_device(self, device): ...

class SlideRule(Abacus):
    @staticmethod
    def is_available():
        raise OSError("the driver does not answer")
"""


def test_devices_of_installed_accelerators(site):
    site.install("abacus", ACCELERATOR)
    (site.packages / "abacus_parts.py").write_text(ACCELERATOR_PARTS)
    status, sections, problems = examine(site)
    assert status == 1
    assert "abacus (abacus 1.0) finds 3" in sections["devices"]
    assert "slide (abacus 1.0) does not work" in sections["devices"]
    assert "beads" not in sections["devices"]
    assert problems == [
        (
            "accelerator 'slide' of abacus 1.0 cannot look for devices: OSError: the driver does not answer; "
            "check its driver, or uninstall abacus"
        )
    ]
