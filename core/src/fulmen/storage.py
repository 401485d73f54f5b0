"""One dictionary of plain data <-> one file that is whole or absent.

A file is written beside its target, flushed to disk, read back, and only then given its name; the folder is flushed
last. So a name that exists holds a checkpoint that verified, and a save that fails leaves the earlier file untouched.
Nothing in a file can run code: files are read with ``torch.load(weights_only=True)``, and whatever that cannot read is
refused when it is saved, by the name of the offending key.
"""

from __future__ import annotations

import collections
import os
import pickle
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fulmen.errors import CheckpointError, listing, warn

_SCALARS = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
_SEQUENCES = (list, tuple, set)
_MAPPINGS = (dict, collections.OrderedDict, collections.Counter)
_TENSORS = (torch.Tensor, torch.nn.Parameter)
_ZIP_MAGIC = b"PK\x03\x04"
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch before 1.6: a pickled number
_PLAIN = "None, bool, int, float, complex, str, bytes, tensors, and lists, tuples, sets and dictionaries of these"


def write_checkpoint(payload: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write ``payload`` so that ``path`` is either the complete new file or what it was before.

    Args:
        payload: Plain data, as :func:`check_plain` defines it.
        path: A local path, or a URL of any file system that fsspec knows (``s3://bucket/run/last.ckpt``), where the
            file appears in one piece when its upload is complete.

    Raises:
        CheckpointError: The payload is not plain data, or the file cannot be written or does not verify.
    """
    check_plain(payload)
    if is_url(path):
        _write_remote(payload, str(path))
    else:
        _write_local(payload, Path(path))


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running anything in it.

    Args:
        path: A local path or a URL that fsspec knows.
        map_location: Where tensors go, as ``torch.load`` takes it.

    Raises:
        CheckpointError: There is no such file, it is damaged, it holds more than plain data, or it is no dictionary.
    """
    if is_url(path):
        return _read_remote(str(path), map_location)
    return _read_local(Path(path), str(path), map_location)


def verify_checkpoint(path: str | os.PathLike[str]) -> None:
    """Check that every byte of a local checkpoint is as it was written, and that it is readable as plain data.

    Raises:
        CheckpointError: It is not; the message says why.
    """
    _read_local(Path(path), str(path), "meta")


def newest_checkpoint(
    folders: Iterable[str | os.PathLike[str]],
    accept: Callable[[dict[str, Any]], bool] = lambda checkpoint: True,
    others: Iterable[tuple[float, str]] = (),
) -> Path | str | None:
    """The checkpoint (``*.ckpt``) in ``folders`` that was written last, verifies and is accepted; ``None``: there is none.

    Warns with code ``checkpoint-skipped`` for each newer file that is damaged, and says why.

    Args:
        folders: Local folders; those that do not exist are passed over.
        accept: Decides by the contents, whose tensors have shapes and no values.
        others: Also these: when each was written, in seconds since 1970, and its URL.
    """
    local = [path for folder in folders for path in Path(folder).glob("*.ckpt") if path.is_file()]
    found: list[tuple[float, Path | str]] = [(path.stat().st_mtime, path) for path in local]
    found.extend(others)
    for _, path in sorted(found, key=lambda each: (each[0], os.path.basename(each[1])), reverse=True):
        try:
            checkpoint = read_checkpoint(path, "meta")
        except CheckpointError as error:
            warn("checkpoint-skipped", f"{error}; taking an older one")
        else:
            if accept(checkpoint):
                return path
    return None


def check_plain(value: Any, key: str = "") -> None:
    """Raise :class:`CheckpointError` that names the first key whose value ``weights_only=True`` could not read back."""
    kind = type(value)
    if kind in _SCALARS or kind in _TENSORS:
        return
    if kind in _MAPPINGS:
        for name, item in value.items():
            check_plain(name, f"{key}: the key {name!r}" if key else f"the key {name!r}")
            check_plain(item, f"{key}.{name}" if key else str(name))
    elif kind in _SEQUENCES:
        for index, item in enumerate(value):
            check_plain(item, f"{key}[{index}]")
    else:
        raise CheckpointError(
            f"{key} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold; allowed are {_PLAIN}. "
            f"Convert it, or leave it out ({_remedy(key)})"
        )


def _remedy(key: str) -> str:
    if key.startswith("hyper_parameters"):
        return f"save_hyperparameters(ignore=[{key.split('.')[1]!r}])" if "." in key else "save_hyperparameters(ignore=[...])"
    return "in the state_dict or on_save_checkpoint that gives it"


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` names a file system of fsspec rather than the local disk."""
    return "://" in str(path)


def remove_file(path: str | os.PathLike[str]) -> None:
    """Remove a local or remote file; it is no error if it is gone."""
    with suppress(FileNotFoundError):
        if is_url(path):
            filesystem, inner = _filesystem(str(path))
            filesystem.rm_file(inner)
        else:
            os.remove(path)


def temporary_beside(path: Path) -> Path:
    """A new name in the folder of ``path``: the same file system, so that renaming onto ``path`` is atomic."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def flush_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut. A no-op where folders cannot be opened (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_local(payload: Mapping[str, Any], path: Path) -> None:
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            torch.save(dict(payload), file)
            file.flush()
            os.fsync(file.fileno())
        verify_checkpoint(temporary)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except (OSError, RuntimeError, CheckpointError) as error:
        raise CheckpointError(
            f"could not save {path}: {error}. An earlier file of that name is untouched; "
            "check the free space and the permissions of the folder"
        ) from error
    finally:
        with suppress(OSError):  # gone after a successful rename
            temporary.unlink(missing_ok=True)


def _write_remote(payload: Mapping[str, Any], url: str) -> None:
    filesystem, inner = _filesystem(url)
    with tempfile.TemporaryDirectory(prefix="fulmen-") as folder:
        local = Path(folder) / "upload.ckpt"
        _write_local(payload, local)
        try:
            filesystem.makedirs(inner.rpartition("/")[0], exist_ok=True)
            filesystem.put_file(str(local), inner)
            written, size = filesystem.size(inner), local.stat().st_size
        except Exception as error:  # each file system has errors of its own
            raise CheckpointError(f"could not save {url}: {type(error).__name__}: {error}") from error
    if written != size:
        raise CheckpointError(f"could not save {url}: {written} of {size} bytes arrived; save again")


def _read_remote(url: str, map_location: Any) -> dict[str, Any]:
    filesystem, inner = _filesystem(url)
    with tempfile.TemporaryDirectory(prefix="fulmen-") as folder:
        local = Path(folder) / "download.ckpt"
        try:
            filesystem.get_file(inner, str(local))
        except Exception as error:  # each file system has errors of its own
            raise CheckpointError(f"could not read {url}: {type(error).__name__}: {error}") from error
        return _read_local(local, url, map_location)


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec  # only those who use a URL pay for it

    try:
        filesystem, inner = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # an unknown protocol, or one whose package is missing
        raise CheckpointError(f"cannot use {url}: {error}") from error
    return filesystem, inner


def _read_local(path: Path, name: str, map_location: Any) -> dict[str, Any]:
    if not path.is_file():
        near = sorted(str(file) for file in path.parent.glob("*.ckpt"))
        raise CheckpointError(f"there is no checkpoint at {name}; checkpoints in that folder: {listing(near)}")
    if not _begins_as_saved(path):
        raise CheckpointError(f"{name} is not a checkpoint: it is not in the format of torch.save")
    try:
        _check_bytes(path)
        payload = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{name} holds more than plain data and was not opened, because reading it could run code: "
            f"{_first_sentence(error)}. Save its tensors and numbers again with torch.save where you trust it"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(f"{name} is damaged or no checkpoint: {_first_sentence(error)}") from error
    if not isinstance(payload, dict):
        raise CheckpointError(f"{name} is not a checkpoint: it holds a {type(payload).__name__}, not a dictionary")
    return payload


def _begins_as_saved(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(_OLD_MAGIC)).startswith((_ZIP_MAGIC, _OLD_MAGIC))


def _check_bytes(path: Path) -> None:
    """Compare every record of the file with the checksum it was written with: ``torch.load`` does not."""
    with open(path, "rb") as file:
        if not file.read(4).startswith(_ZIP_MAGIC):
            return  # the format of torch before 1.6, which carries no checksums
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise zipfile.BadZipFile("a record is compressed, which torch.save never does")
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of the record {damaged!r} does not match")


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = next((line for line in lines if "unsupported" in line.lower()), lines[0] if lines else type(error).__name__)
    return found.split(". ")[0].rstrip(".")
