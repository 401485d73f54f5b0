"""The ``fulmen`` command: what is installed, who provides what, what is wrong; and a start for a plugin of your own.

Only ``fulmen doctor``, ``fulmen ckpt`` and ``fulmen runs`` import torch; the others answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from fulmen.cli import list_plugins, new, why
from fulmen.errors import FulmenError
from fulmen.plugins import version
from fulmen.registry import CONTRACTS

_CKPT = "What a checkpoint holds, whether it verifies, and in what two differ. Nothing in a file is run."
_RUNS = "The trainings below a folder: how far they came, and which file each goes on from; exit status 1 where one is damaged."
_DOCTOR = "Look for everything that is wrong with this installation and this project; exit status 1 where something is."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The words after ``fulmen``; ``None`` takes them from the command line.

    Returns:
        The exit status: 0, 1 where something is wrong or unknown, 2 where the command itself is.
    """
    try:
        text, status = _run(argv)
        sys.stdout.write(text)
        sys.stdout.flush()
    except SystemExit as end:  # argparse has written its help, or what is wrong with the command
        return int(end.code or 0)
    except FulmenError as error:
        sys.stderr.write(f"fulmen: {error}\n")
        return 1
    except BrokenPipeError:  # `fulmen plugins | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _run(argv: Sequence[str] | None) -> tuple[str, int]:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "doctor":
        from fulmen.cli import doctor  # here, because the other commands do not need what it imports

        return doctor.run()
    if arguments.command == "ckpt":
        return _ckpt(arguments)
    if arguments.command == "runs":
        from fulmen.cli import runs  # likewise

        return runs.run(arguments.folder)
    if arguments.command == "plugins" and arguments.question == "why":
        return why.run(arguments.name), 0
    if arguments.command == "plugins":
        return list_plugins.run(arguments.kind, as_json=arguments.json), 0
    if arguments.command == "plugin":
        return new.run(arguments.name, arguments.kind, arguments.folder), 0
    return parser.format_help(), 0


def _ckpt(arguments: argparse.Namespace) -> tuple[str, int]:
    from fulmen.cli import ckpt  # here, because it imports torch

    if arguments.action == "show":
        return ckpt.show(arguments.path), 0
    return ckpt.verify(arguments.paths) if arguments.action == "verify" else ckpt.diff(arguments.one, arguments.other)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fulmen", description="What is installed, who provides what, and what is wrong.")
    parser.add_argument("--version", action="version", version=f"fulmen {version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    plugins = _command(commands, "plugins", list_plugins.__doc__, "list plugins and what they provide")
    plugins.usage = "fulmen plugins [--json] [--kind KIND]\n       fulmen plugins why NAME"
    plugins.add_argument("--json", action="store_true", help="for programs")
    plugins.add_argument("--kind", choices=list(CONTRACTS), metavar="KIND", help=f"one of: {', '.join(CONTRACTS)}")
    questions = plugins.add_subparsers(dest="question", metavar="why NAME", prog="fulmen plugins")
    question = _command(questions, "why", why.__doc__, "who provides a name, and why it acts or does not")
    question.add_argument("name", metavar="NAME", help="such as csv, logger.csv or EarlyStopping")

    trainings = _command(commands, "runs", _RUNS, "list trainings and how far they came")
    trainings.add_argument("folder", metavar="FOLDER", nargs="?", default=".", help="here by default")

    checkpoints = _command(commands, "ckpt", _CKPT, "look into checkpoints")
    actions = checkpoints.add_subparsers(dest="action", metavar="ACTION", required=True)
    _command(actions, "show", None, "what it holds").add_argument("path", metavar="PATH")
    _command(actions, "verify", None, "whether it is as it was written").add_argument("paths", metavar="PATH", nargs="+")
    comparison = _command(actions, "diff", None, "what differs between two")
    comparison.add_argument("one", metavar="ONE")
    comparison.add_argument("other", metavar="OTHER")

    plugin = _command(commands, "plugin", "Write a plugin of your own.", "write a package with a plugin")
    actions = plugin.add_subparsers(dest="action", metavar="new NAME", required=True)
    action = _command(actions, "new", new.__doc__, "write a package that passes its tests at once")
    action.add_argument("name", metavar="NAME", help="what users will write, such as jsonl or my-logger")
    kinds = list(new.SUMMARIES)
    action.add_argument("--kind", required=True, choices=kinds, metavar="KIND", help=f"one of: {', '.join(kinds)}")
    action.add_argument("--folder", default=".", metavar="DIR", help="where to make the folder fulmen-NAME; here by default")

    _command(commands, "doctor", _DOCTOR, "look for everything that is wrong")
    return parser


def _command(commands: Any, name: str, description: str | None, summary: str) -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=description, formatter_class=layout)
    return parser
