"""Print what a benchmark measured, and keep it where that is asked for."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "results"


def machine() -> str:
    """What it was measured on."""
    return f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def report(name: str, title: str, text: str, write: bool) -> None:
    """Print ``text``; with ``write`` also keep it as ``benchmarks/results/<name>.md``."""
    print(text)
    if write:
        FOLDER.mkdir(exist_ok=True)
        content = f"# {title}\n\nWritten by `benchmarks/{name}.py --write`.\n\n{text}\n"
        (FOLDER / f"{name}.md").write_text(content, encoding="utf-8")
