"""Where checkpoints lie: a local folder, or a URL of any file system that fsspec knows.

Locally, a name that exists holds a complete file: :func:`fulmen.write_checkpoint` renames when all is written and verified.
Elsewhere there may be no renaming, so a marker beside each file, ``<file>.complete``, is written last and says which contents
are complete. When a file is replaced, the marker names the old and the new contents first, then the file is uploaded, then
the marker names the new alone: at every moment, whatever lies there is complete if the marker lists it, and else it is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fulmen import CheckpointError, copy_checkpoint, read_checkpoint, write_checkpoint

MARKER = ".complete"
EXTENSION = ".ckpt"
_WITHOUT_FOLDERS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci"}  # making one there would make a bucket


class Place(ABC):
    """A folder of checkpoints. All paths are whole paths or URLs."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def path(self, name: str) -> str:
        """The path of a file in this folder."""
        return f"{self.folder}/{name}"

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is anything under that name, complete or not."""

    @abstractmethod
    def training_of(self, path: str) -> str | None:
        """The id of the training that wrote a checkpoint; empty: weights only, which have none; ``None``: no such file."""

    @abstractmethod
    def write(self, payload: Mapping[str, Any], path: str) -> None:
        """Write a checkpoint, which is complete afterwards. What was there before stays if it fails."""

    @abstractmethod
    def repeat(self, source: str, path: str, link: bool) -> None:
        """Give the contents of ``source`` another name; with ``link``, as a symbolic link to it."""

    @abstractmethod
    def remove(self, path: str, linked_from: str = "") -> None:
        """Remove a file; it is no error if it is gone. A link ``linked_from`` to it takes its place as a file."""

    @abstractmethod
    def write_text(self, text: str, path: str) -> None:
        """Write a small file beside the checkpoints."""

    @abstractmethod
    def complete(self) -> list[tuple[float, str]]:
        """All complete checkpoints: when each was written, in seconds since 1970, and its path. The oldest first."""


class LocalPlace(Place):
    """A folder of this machine."""

    def exists(self, path: str) -> bool:
        """Whether there is a file, a folder or a link."""
        return os.path.lexists(path)

    def training_of(self, path: str) -> str | None:
        """As the file itself says."""
        try:
            found = read_checkpoint(path, "meta", verify=False)
            return str(found["run"]["id"] if "run" in found else "") if "format" in found else None
        except (CheckpointError, LookupError, TypeError):
            return None  # not a file of ours

    def write(self, payload: Mapping[str, Any], path: str) -> None:
        """Beside its name, verified, renamed."""
        write_checkpoint(payload, path)

    def repeat(self, source: str, path: str, link: bool) -> None:
        """A hard link, which needs no space and stays when ``source`` goes; a copy where the disk has no links."""
        copy_checkpoint(source, path, link)

    def remove(self, path: str, linked_from: str = "") -> None:
        """As the contract says."""
        try:
            if linked_from and os.path.islink(linked_from) and os.path.realpath(linked_from) == os.path.realpath(path):
                os.replace(path, linked_from)
            else:
                os.remove(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CheckpointError(f"could not remove {path}: {error}; the newer checkpoint is complete") from error

    def write_text(self, text: str, path: str) -> None:
        """In the folder, which is made."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")

    def complete(self) -> list[tuple[float, str]]:
        """By the time of the file."""
        found = [path for path in Path(self.folder).glob(f"*{EXTENSION}") if path.is_file()]
        return sorted((path.stat().st_mtime, str(path)) for path in found)


class RemotePlace(Place):
    """A folder behind a URL."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder.rstrip("/"))
        import fsspec  # only those who use a URL pay for it

        try:
            self.files, _ = fsspec.core.url_to_fs(self.folder)
        except (ImportError, ValueError) as error:  # an unknown protocol, or one whose package is missing
            raise CheckpointError(f"cannot use {self.folder}: {error}") from error

    def exists(self, path: str) -> bool:
        """Asks the store."""
        return bool(self._ask(path, lambda inner: self.files.exists(inner)))

    def training_of(self, path: str) -> str | None:
        """As the marker says."""
        found = self._marker(path)
        return found.get("training") or "" if found else None

    def write(self, payload: Mapping[str, Any], path: str) -> None:
        """Written to a local file and verified there, uploaded, measured, marked."""
        with tempfile.TemporaryDirectory(prefix="fulmen-") as folder:
            local = os.path.join(folder, f"upload{EXTENSION}")
            write_checkpoint(payload, local)
            version = {"size": os.path.getsize(local), "sha256": _digest(local)}
            training = payload.get("run", {}).get("id")
            self._replace(path, version, training, lambda inner: self.files.put_file(local, inner))

    def repeat(self, source: str, path: str, link: bool) -> None:
        """A copy, made by the store itself."""
        marker = self._marker(source)
        inner_source = self.files._strip_protocol(source)
        self._replace(
            path, marker["versions"][-1], marker.get("training"), lambda inner: self.files.cp_file(inner_source, inner)
        )

    def remove(self, path: str, linked_from: str = "") -> None:
        """The marker first: what is half removed is not complete."""
        for each in (f"{path}{MARKER}", path):
            with suppress(FileNotFoundError):
                self._ask(each, lambda inner: self.files.rm_file(inner), "remove")

    def write_text(self, text: str, path: str) -> None:
        """In one piece."""
        self._ask(path, lambda inner: self.files.pipe_file(inner, text.encode()), "save")

    def complete(self) -> list[tuple[float, str]]:
        """Those whose marker lists contents of the size that the file has."""
        with suppress(FileNotFoundError):
            return sorted(self._ask(self.folder, self._complete, "list"))
        return []

    def _complete(self, inner: str) -> list[tuple[float, str]]:
        self.files.invalidate_cache()
        sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in self.files.ls(inner, detail=True)}
        found = []
        for name in sizes:
            marker = self._marker(self.path(name)) if name.endswith(EXTENSION) and name + MARKER in sizes else {}
            if any(version["size"] == sizes[name] for version in marker.get("versions", [])):
                found.append((float(marker["written"]), self.path(name)))
        return found

    def _replace(self, path: str, version: dict[str, Any], training: str | None, upload: Any) -> None:
        before = self._marker(path).get("versions", [])[-1:] if self.exists(path) else []
        protocols = {self.files.protocol} if isinstance(self.files.protocol, str) else set(self.files.protocol)
        if not protocols & _WITHOUT_FOLDERS:
            self._ask(path, lambda inner: self.files.makedirs(inner.rpartition("/")[0], exist_ok=True), "save")
        self._mark(path, [*before, version], training)
        self._ask(path, upload, "save")
        self.files.invalidate_cache()
        if (written := self._ask(path, lambda inner: self.files.size(inner), "save")) != version["size"]:
            raise CheckpointError(f"could not save {path}: {written} of {version['size']} bytes arrived; save again")
        self._mark(path, [version], training)

    def _mark(self, path: str, versions: list[dict[str, Any]], training: str | None) -> None:
        text = json.dumps({"written": time.time(), "training": training, "versions": versions})
        self._ask(f"{path}{MARKER}", lambda inner: self.files.pipe_file(inner, text.encode()), "save")

    def _marker(self, path: str) -> dict[str, Any]:
        try:
            found = json.loads(self._ask(f"{path}{MARKER}", lambda inner: self.files.cat_file(inner)))
        except (FileNotFoundError, ValueError):  # none, or half of one
            return {}
        return found if isinstance(found, dict) else {}

    def _ask(self, path: str, action: Any, what: str = "look at") -> Any:
        try:
            return action(self.files._strip_protocol(path))
        except Exception as error:  # each file system has errors of its own
            if isinstance(error, FileNotFoundError) and what != "save":
                raise
            raise CheckpointError(f"could not {what} {path}: {type(error).__name__}: {error}") from error


def place_of(folder: str | os.PathLike[str]) -> Place:
    """The place behind a path or URL."""
    text = os.fspath(folder)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return RemotePlace(text) if "://" in text else LocalPlace(os.path.abspath(os.path.expanduser(text)))


def complete_checkpoints(folder: str | os.PathLike[str]) -> list[str]:
    """The complete checkpoints in a folder or behind a URL, the oldest first. Half-written and unmarked ones are left out.

    Raises:
        CheckpointError: The place cannot be reached.
    """
    return [path for _, path in place_of(folder).complete()]


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
