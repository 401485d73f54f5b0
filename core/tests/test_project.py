from __future__ import annotations

import pytest

from fulmen.errors import ConfigurationError
from fulmen.project import PluginSettings, autoload, from_environment, from_pyproject, nearest_project


def write(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


# ---- Environment


@pytest.mark.parametrize(
    ("text", "enable", "disable"),
    [
        ("", (), ()),
        ("wandb", ("wandb",), ()),
        (" wandb , -comet,, -mlflow ", ("wandb",), ("comet", "mlflow")),
    ],
)
def test_names_enable_and_names_with_a_minus_disable(text, enable, disable):
    assert from_environment({"FULMEN_PLUGINS": text}) == PluginSettings("FULMEN_PLUGINS", enable, disable)


def test_an_environment_that_says_nothing():
    assert from_environment({}) == PluginSettings("FULMEN_PLUGINS")
    assert autoload({}) is True


def test_autoload_is_on_or_off():
    assert autoload({"FULMEN_PLUGIN_AUTOLOAD": "1"}) is True
    assert autoload({"FULMEN_PLUGIN_AUTOLOAD": "0"}) is False
    with pytest.raises(ConfigurationError) as caught:
        autoload({"FULMEN_PLUGIN_AUTOLOAD": "no"})
    assert str(caught.value) == "FULMEN_PLUGIN_AUTOLOAD='no'; allowed are 0 and 1"


# ---- pyproject.toml

EVERYTHING = """
[project]
name = "digits"

[tool.fulmen.plugins]
enable = ["nan_guard"]
disable = ["comet"]

[tool.fulmen.plugins.prefer]
"logger.csv" = "fulmen-csv"
profiler.simple = "fulmen"

[tool.fulmen.plugins.options]
wandb.project = "digits"
callback.timer.duration = "00:01:00"
"logger.csv".save_dir = "logs"
"""


def test_everything_that_a_project_can_say(tmp_path):
    write(tmp_path, EVERYTHING)
    assert from_pyproject(tmp_path) == PluginSettings(
        source="pyproject.toml ([tool.fulmen.plugins])",
        enable=("nan_guard",),
        disable=("comet",),
        prefer={"logger.csv": "fulmen-csv", "profiler.simple": "fulmen"},
        options={
            "wandb": {"project": "digits"},
            "callback.timer": {"duration": "00:01:00"},
            "logger.csv": {"save_dir": "logs"},
        },
        path=tmp_path / "pyproject.toml",
    )


def test_the_nearest_file_with_a_table_of_fulmen_counts(tmp_path):
    write(tmp_path, '[tool.fulmen.plugins]\nenable = ["outer"]')
    middle = write(tmp_path / "middle", '[tool.fulmen.plugins]\nenable = ["middle"]')
    write(middle / "uses", '[project]\ndependencies = ["fulmen"]  # not [tool.fulmen]')
    write(middle / "uses" / "nothing", "[tool.ruff]")
    inner = middle / "uses" / "nothing" / "src"
    inner.mkdir()
    settings = from_pyproject(inner)
    assert (settings.enable, settings.path) == (("middle",), middle / "pyproject.toml")


def test_an_empty_table_ends_the_search(tmp_path):
    write(tmp_path, '[tool.fulmen.plugins]\nenable = ["outer"]')
    assert from_pyproject(write(tmp_path / "inner", "[tool.fulmen]")).enable == ()


def test_no_file_says_nothing(tmp_path):
    assert from_pyproject(tmp_path) == PluginSettings("pyproject.toml")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "[tool.fulmen.plugins]\nenabled = []",
            ": [tool.fulmen.plugins] has the unknown key 'enabled'; did you mean 'enable'?; "
            "keys are: enable, disable, prefer, options",
        ),
        ("[tool.fulmen.plugin]\nenable = []", ": [tool.fulmen] has the unknown key 'plugin'; did you mean 'plugins'?"),
        (
            "[tool.fulmen]\nplugins = ['wandb']",
            ": [tool.fulmen.plugins] must be a table with the keys: enable, disable, prefer, options",
        ),
        (
            "[tool]\nfulmen = 'wandb'",
            ": [tool.fulmen.plugins] must be a table with the keys: enable, disable, prefer, options",
        ),
        (
            "[tool.fulmen.plugins]\nenable = 'wandb'",
            ": [tool.fulmen.plugins] enable = 'wandb' must be a list of plugin names",
        ),
        ("[tool.fulmen.plugins]\ndisable = [1]", ": [tool.fulmen.plugins] disable = [1] must be a list of plugin names"),
        (
            "[tool.fulmen.plugins]\noptions.csv = 3",
            ": [tool.fulmen.plugins] options = {'csv': 3} must be a table of tables",
        ),
        ("[tool.fulmen.plugins]\noptions = 3", ": [tool.fulmen.plugins] options = 3 must be a table of tables"),
        (
            "[tool.fulmen.plugins.prefer]\nlogger.csv = 3",
            ": [tool.fulmen.plugins] prefer = {'logger': {'csv': 3}} must be a table of strings",
        ),
        (
            "[tool.fulmen.plugins.prefer]\n'loger.csv' = 'mine'",
            ": [tool.fulmen.plugins.prefer] has the key 'loger.csv'; did you mean 'logger'?; keys have the form 'kind.name', "
            "and kinds are: accelerator, strategy, precision, logger, callback, progress, exporter, environment, profiler",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_project(tmp_path, text, error):
    write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        from_pyproject(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'pyproject.toml'}{error}"


@pytest.mark.parametrize("content", [b"[tool.fulmen", b"# fulmen \xff"], ids=["syntax", "encoding"])
def test_a_file_that_cannot_be_read(tmp_path, content):
    (tmp_path / "pyproject.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml is not valid TOML: "):
        from_pyproject(tmp_path)


def test_the_project_is_that_of_the_current_folder(tmp_path, monkeypatch):
    write(tmp_path, EVERYTHING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FULMEN_PLUGINS", "-nan_guard")
    monkeypatch.setenv("FULMEN_PLUGIN_AUTOLOAD", "0")
    environment, project, automatic = nearest_project()
    assert (environment.disable, project.enable, automatic) == (("nan_guard",), ("nan_guard",), False)
    assert nearest_project({})[0].disable == ()


def test_verdicts():
    settings = PluginSettings("here", enable=("a", "b", "left:c"), disable=("b",))
    assert settings.verdict(("a", "left:a")) is True
    assert settings.verdict(("b", "left:b")) is False
    assert settings.verdict(("c", "left:c")) is True
    assert settings.verdict(("c", "right:c")) is None
