"""The ``fulmen`` command: what is installed, who provides what, and what is wrong.

Only ``fulmen doctor`` imports torch; the others answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from fulmen.cli import list_plugins, why
from fulmen.errors import FulmenError
from fulmen.plugins import version
from fulmen.registry import CONTRACTS

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
    if arguments.command == "plugins" and arguments.question == "why":
        return why.run(arguments.name), 0
    if arguments.command == "plugins":
        return list_plugins.run(arguments.kind, as_json=arguments.json), 0
    return parser.format_help(), 0


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

    _command(commands, "doctor", _DOCTOR, "look for everything that is wrong")
    return parser


def _command(commands: Any, name: str, description: str | None, summary: str) -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=description, formatter_class=layout)
    return parser
