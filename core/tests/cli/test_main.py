"""The command as a user runs it, in processes of its own."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from fulmen.cli import main
from fulmen.plugins import version


def test_version(site):
    done = site.fulmen("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fulmen {version()}\n", "")


def test_without_a_command_it_says_what_there_is(site):
    done = site.fulmen()
    assert done.returncode == 0
    assert done.stdout.startswith("usage: fulmen [-h] [--version] COMMAND ...\n")
    assert "list plugins and what they provide" in done.stdout


@pytest.mark.parametrize("command", [["plugins"], ["plugins", "why"], ["doctor"]])
def test_help(site, command):
    done = site.fulmen(*command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: fulmen ")
    assert max(len(line) for line in done.stdout.splitlines()) <= 110


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["plugn"], r"fulmen: argument COMMAND: invalid choice: 'plugn' \(choose from .*\); see fulmen --help"),
        (
            ["plugins", "--kind", "loger"],
            r"fulmen plugins: argument --kind: invalid choice: 'loger' \(choose from .*\); see .*",
        ),
        (
            ["plugins", "why"],
            r"fulmen plugins why: the following arguments are required: NAME; see fulmen plugins why --help",
        ),
        (["doctor", "--now"], r"fulmen: unrecognized arguments: --now; see fulmen --help"),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(site, command, error):
    done = site.fulmen(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert re.fullmatch(error, done.stderr.strip())


def test_a_wrong_environment_is_one_line(site):
    done = site.fulmen("plugins", "why", "nothing_at_all", environ={"FULMEN_PLUGIN_AUTOLOAD": "0"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1


def test_main_returns_the_status(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fulmen {version()}\n"
    assert main(["nonsense"]) == 2
    assert capsys.readouterr().err.startswith("fulmen: argument COMMAND: invalid choice: 'nonsense'")


def test_a_reader_that_goes_away_is_no_error(site):
    command = f"{sys.executable} -m fulmen.cli plugins | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=site.project, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
