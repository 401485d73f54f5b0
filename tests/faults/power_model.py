"""What may lie on a disk after a power cut, given a record of :mod:`power_job`.

The model knows no more than POSIX promises. Bytes of a file that were not flushed may be missing, all or in part. Names in
a folder that was not flushed since may be there or not, each for itself: of two renames the later may have survived alone. A
folder whose own name was not flushed in the folder above may be gone with all that is in it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

MOST_STATES = 40  # per cut; beyond that a sample


@dataclass(eq=False)
class File:
    """The bytes that are safe, and those that may be there besides."""

    flushed: bytes | None = None
    latest: bytes = b""
    written: int = 0
    """When it was written last: its modification time."""

    def contents(self) -> list[bytes]:
        if self.flushed == self.latest:
            return [self.latest]
        return list(dict.fromkeys([self.flushed or b"", self.latest[: len(self.latest) // 2], b"", self.latest]))


@dataclass(eq=False)
class Folder:
    """Names that are safe, and changes of names since."""

    safe: dict[str, Node] = field(default_factory=dict)
    changes: list[dict[str, Node | None]] = field(default_factory=list)

    def now(self) -> dict[str, Node]:
        return applied(self.safe, self.changes)


Node = Union[File, Folder, str]  # noqa: UP007  a text is a symbolic link; the name is used before the classes exist


def applied(names: dict[str, Any], changes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    found = dict(names)
    for change in changes:
        found.update(change)
    return {name: node for name, node in found.items() if node is not None}


class Disk:
    """The disk as a record says, up to some point in time. ``root`` is safe from the beginning."""

    def __init__(self, root: str, record: list[tuple[Any, ...]]) -> None:
        self.root, self.folder, self.time = root, Folder(), 0
        self.later = final_contents(record)

    def do(self, event: tuple[Any, ...], index: int) -> None:
        kind, path, self.time = event[0], str(event[-1]), index
        if kind == "fsync":
            self._fsync(event[1], event[2])
        elif kind == "mkdir":
            self._change({path: Folder()})
        elif kind == "open":
            file = self._find(path)
            if not isinstance(file, File):
                file = File()
                self._change({path: file})
            file.latest, file.written = self.later.get(index, b""), index
        elif kind == "rename":
            self._change({event[1]: None, path: self._find(event[1])})
        elif kind == "link":
            self._change({path: self._find(event[1])})
        elif kind == "symlink":
            self._change({path: event[1]})
        elif kind == "remove":
            self._change({path: None})

    def _fsync(self, path: str, content: bytes | None) -> None:
        node = self._find(path) if path.startswith(self.root) else None
        if isinstance(node, Folder):
            node.safe, node.changes = node.now(), []
        elif isinstance(node, File) and content is not None:
            node.flushed = node.latest = content

    def _change(self, change: dict[str, Node | None]) -> None:
        folder = self._find(str(Path(next(iter(change))).parent))
        assert isinstance(folder, Folder)
        folder.changes.append({Path(path).name: node for path, node in change.items()})

    def _find(self, path: str) -> Node | None:
        node: Node | None = self.folder
        for part in Path(path).relative_to(self.root).parts:
            node = node.now().get(part) if isinstance(node, Folder) else None
        return node

    # ---- After the cut

    def states(self, rng: random.Random) -> Iterator[dict[str, tuple[bytes | str, int]]]:
        """Path -> content, or target of a link, and time, of every file that may be there together."""
        choices = [*self._choices(self.folder)]
        count = 1
        for _, options in choices:
            count *= len(options)
        every = itertools.product(*(options for _, options in choices))
        sample = ([rng.choice(options) for _, options in choices] for _ in range(MOST_STATES))
        ends = ([options[end] for _, options in choices] for end in (0, -1))
        for picked in every if count <= MOST_STATES else itertools.chain(ends, sample):
            yield dict(
                self._laid_out(self.folder, "", {id(node): each for (node, _), each in zip(choices, picked, strict=True)})
            )

    def _choices(self, folder: Folder) -> Iterator[tuple[Any, list[Any]]]:
        if folder.changes:
            many = len(folder.changes)
            subsets = range(1 << many) if many <= 8 else [*range(0, 1 << many, (1 << many) // 200), (1 << many) - 1]
            yield (
                folder,
                [applied(folder.safe, (c for bit, c in enumerate(folder.changes) if each >> bit & 1)) for each in subsets],
            )
        nodes = {id(node): node for names in (folder.safe, *folder.changes) for node in names.values()}
        for node in nodes.values():
            if isinstance(node, Folder):
                yield from self._choices(node)
            elif isinstance(node, File) and len(node.contents()) > 1:
                yield node, node.contents()

    def _laid_out(self, folder: Folder, prefix: str, picked: dict[int, Any]) -> Iterator[tuple[str, tuple[bytes | str, int]]]:
        for name, node in picked.get(id(folder), folder.safe).items():
            if isinstance(node, Folder):
                yield from self._laid_out(node, f"{prefix}{name}/", picked)
            elif isinstance(node, File):
                yield f"{prefix}{name}", (picked.get(id(node), node.latest), node.written)
            elif isinstance(node, str):
                yield f"{prefix}{name}", (node, 0)


def final_contents(record: list[tuple[Any, ...]]) -> dict[int, bytes]:
    """Index of each opening for writing -> what the file then came to hold: at its next flush, or at the end."""
    found, waiting = {}, {}
    for index, event in enumerate(record):
        if event[0] == "open":
            waiting[event[1]] = index
        elif event[0] == "rename" and event[1] in waiting:
            waiting[event[2]] = waiting.pop(event[1])
        elif event[0] == "fsync" and event[1] in waiting and event[2] is not None:
            found[waiting.pop(event[1])] = event[2]
        elif event[0] == "end":
            found.update({index: event[1][path] for path, index in waiting.items() if path in event[1]})
    return found
