"""One dictionary of plain data <-> one file that is whole or absent.

A file is written beside its target, flushed to disk, read back, and only then given its name; the folder is flushed
last (:mod:`fulmen.durable`). So a name that exists holds a checkpoint that verified, and a save that fails leaves the
earlier file untouched. Nothing in a file can run code: files are read with ``torch.load(weights_only=True)``, and whatever
that cannot read is refused when it is saved, by the name of the offending key.
"""

from __future__ import annotations

import collections
import mmap
import os
import pickle
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch

from fulmen.durable import flush_folder, new_file_beside, other_name_beside, prepare_folder
from fulmen.errors import CheckpointError, ConfigurationError, listing, warn
from fulmen.screening import screen

_WITHOUT_FOLDERS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci"}  # making one there would make a bucket
_SCALARS = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
_SEQUENCES = (list, tuple, set)
_MAPPINGS = (dict, collections.OrderedDict, collections.Counter)
_TENSORS = (torch.Tensor, torch.nn.Parameter)
_ZIP_MAGIC = b"PK\x03\x04"
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch before 1.6: a pickled number
_SPARSE = b"_rebuild_sparse_tensor"
_BLOCK = 2**20  # bytes that are read at once
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


def read_checkpoint(path: str | os.PathLike[str] | IO[bytes], map_location: Any = "cpu", verify: bool = True) -> dict[str, Any]:
    """Read a checkpoint without running anything in it.

    Args:
        path: A local path, a URL that fsspec knows, or an open file, which is read from where it stands.
        map_location: Where tensors go, as ``torch.load`` takes it.
        verify: Compare every byte with its checksum. Without it, ``map_location="meta"`` reads none of the tensors' bytes.

    Raises:
        CheckpointError: There is no such file, it is damaged, it holds more than plain data, or it is no dictionary.
    """
    if hasattr(path, "read"):
        return _read_fetched(lambda local: _copy_stream(path, local), str(path), map_location, verify)
    if is_url(path):
        return _read_remote(str(path), map_location, verify)
    return _read_local(Path(path), str(path), map_location, verify)


def plain_data_only(weights_only: bool | None) -> None:
    """Refuse ``weights_only=False``, which Lightning takes for ``torch.load``: what is not plain data is never read.

    Raises:
        ConfigurationError: It was asked for.
    """
    if weights_only is False:
        raise ConfigurationError(
            "weights_only=False is not possible: checkpoints are plain data, and nothing in a file is run; leave it out. Where "
            "you trust a file of something else, read it with torch.load, and save its tensors and numbers again"
        )


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
        accept: Decides by the contents, whose tensors have shapes and no values; raises :class:`CheckpointError` to warn too.
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
            continue
        try:
            if accept(checkpoint):
                return path
        except CheckpointError as error:
            warn("checkpoint-skipped", f"{path} does not do: {error}; taking an older one")
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
    """Remove a local or remote file; it is no error if it is gone.

    Raises:
        CheckpointError: It cannot be removed.
    """
    try:
        if is_url(path):
            filesystem, inner = _filesystem(str(path))
            filesystem.rm_file(inner)
        else:
            os.remove(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CheckpointError(
            f"could not remove {path}: {error}; the newer checkpoint is complete. Check the permissions of the folder"
        ) from error


def copy_checkpoint(source: str | os.PathLike[str], path: str | os.PathLike[str], link: bool = False) -> None:
    """Give a local checkpoint another name: ``path`` is either that, or what it was before.

    A hard link, which needs no space and stays when ``source`` goes; a copy where the disk has no links.

    Args:
        source: A complete file, in any folder.
        path: The other name.
        link: Make a symbolic link instead.

    Raises:
        CheckpointError: It cannot be made.
    """
    source, path = Path(source), Path(path)
    with _saving(path):
        prepare_folder(path.parent)
        try:
            with other_name_beside(source, path) as temporary:
                if link:
                    os.symlink(os.path.relpath(source, path.parent), temporary)
                else:
                    os.link(source, temporary)
                os.replace(temporary, path)
        except OSError:  # a file system without links, or a user without the right to make them
            with open(source, "rb") as original, new_file_beside(path) as file:
                shutil.copyfileobj(original, file, 1 << 20)
                _finish(file, path)
    _flush_name(path)


def _write_local(payload: Mapping[str, Any], path: Path) -> None:
    with _saving(path):
        prepare_folder(path.parent)
        with new_file_beside(path) as file:
            torch.save(dict(payload), file)
            _finish(file, path)
    _flush_name(path)


def _finish(file: IO[bytes], path: Path) -> None:
    """Flush a file that is written, read it back, and give it its name."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    verify_checkpoint(file.name)
    os.replace(file.name, path)


def _flush_name(path: Path) -> None:
    try:
        flush_folder(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path} is complete, but may not survive a power cut, because its folder cannot be flushed: {error}. "
            "Earlier files of other names are untouched; check the disk, and save again or elsewhere"
        ) from error


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, CheckpointError) as error:
        raise CheckpointError(
            f"could not save {path}: {_reason(error)}. An earlier file of that name is untouched; "
            "check the free space and the permissions of the folder"
        ) from error


def _reason(error: BaseException) -> BaseException:
    """What the operating system said, where torch hides it behind an error of its own."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__context__
    return found or error


def _write_remote(payload: Mapping[str, Any], url: str) -> None:
    filesystem, inner = _filesystem(url)
    with tempfile.TemporaryDirectory(prefix="fulmen-") as folder:
        local = Path(folder) / "upload.ckpt"
        _write_local(payload, local)
        try:
            if not _protocols(filesystem) & _WITHOUT_FOLDERS:
                filesystem.makedirs(inner.rpartition("/")[0], exist_ok=True)
            filesystem.put_file(str(local), inner)
            written, size = filesystem.size(inner), local.stat().st_size
        except Exception as error:  # each file system has errors of its own
            raise CheckpointError(f"could not save {url}: {type(error).__name__}: {error}") from error
    if written != size:
        raise CheckpointError(f"could not save {url}: {written} of {size} bytes arrived; save again")


def _read_remote(url: str, map_location: Any, verify: bool) -> dict[str, Any]:
    filesystem, inner = _filesystem(url)
    return _read_fetched(lambda local: filesystem.get_file(inner, str(local)), url, map_location, verify)


def _read_fetched(fetch: Callable[[Path], object], name: str, map_location: Any, verify: bool) -> dict[str, Any]:
    """Read the checkpoint that ``fetch`` writes to a local path."""
    with tempfile.TemporaryDirectory(prefix="fulmen-") as folder:
        local = Path(folder) / "download.ckpt"
        try:
            fetch(local)
        except Exception as error:  # each file system has errors of its own
            raise CheckpointError(f"could not read {name}: {type(error).__name__}: {error}") from error
        return _read_local(local, name, map_location, verify)


def _copy_stream(stream: Any, path: Path) -> None:
    with open(path, "wb") as file:
        shutil.copyfileobj(stream, file)


def remote_checkpoints(folder: str) -> list[tuple[float, str]]:
    """The checkpoints (``*.ckpt``) behind a URL: when each was written, in seconds since 1970, and its URL.

    Raises:
        CheckpointError: The file system cannot be used, or does not answer.
    """
    filesystem, inner = _filesystem(folder)
    try:
        filesystem.invalidate_cache()
        found = [entry["name"] for entry in filesystem.ls(inner, detail=True) if entry["name"].endswith(".ckpt")]
        urls = [f"{folder.rstrip('/')}/{name.rpartition('/')[2]}" for name in found]
        return [(filesystem.modified(name).timestamp(), url) for name, url in zip(found, urls, strict=True)]
    except FileNotFoundError:
        return []
    except Exception as error:  # each file system has errors of its own
        raise CheckpointError(f"could not list {folder}: {type(error).__name__}: {error}") from error


def _protocols(filesystem: Any) -> set[str]:
    return {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec  # only those who use a URL pay for it

    try:
        filesystem, inner = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # an unknown protocol, or one whose package is missing
        raise CheckpointError(f"cannot use {url}: {error}") from error
    return filesystem, inner


def _read_local(path: Path, name: str, map_location: Any, verify: bool = True) -> dict[str, Any]:
    if not path.is_file():
        near = sorted(str(file) for file in path.parent.glob("*.ckpt"))
        if not name:
            raise CheckpointError("the path of the checkpoint is empty: the callback that gave it has saved none (yet)")
        raise CheckpointError(f"there is no checkpoint at {name}; checkpoints in that folder: {listing(near)}")
    payload: Any = None
    try:
        with open(path, "rb") as file:
            is_saved = file.read(len(_OLD_MAGIC)).startswith((_ZIP_MAGIC, _OLD_MAGIC))
        if is_saved:
            has_sparse = _check_bytes(path, verify)
            payload = _load(path, "cpu" if has_sparse and str(map_location) == "meta" else map_location)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{name} holds more than plain data and was not opened, because reading it could run code: "
            f"{_first_sentence(error)}. Save its tensors and numbers again with torch.save where you trust it"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(f"{name} is damaged or no checkpoint: {_first_sentence(error)}") from error
    if not is_saved:
        raise CheckpointError(f"{name} is not a checkpoint: it is not in the format of torch.save")
    if not isinstance(payload, dict):
        raise CheckpointError(f"{name} is not a checkpoint: it holds a {type(payload).__name__}, not a dictionary")
    return payload


def _load(path: Path, map_location: Any) -> Any:
    """The indices of sparse tensors are compared with their shapes: whoever fills one writes where its indices say."""
    with torch.sparse.check_sparse_tensor_invariants():
        return torch.load(path, map_location=map_location, weights_only=True)


def _check_bytes(path: Path, verify: bool) -> bool:
    """Find what ``torch.load`` does not look for: bytes that changed, and what only a hostile file holds.

    Returns:
        Whether there are sparse tensors, whose indices are values that have to be read to be checked.
    """
    with open(path, "rb", buffering=_BLOCK) as file:
        return _check_old(file) if file.read(4) != _ZIP_MAGIC else _check_archive(file, verify)


def _check_archive(file: BinaryIO, verify: bool) -> bool:
    with zipfile.ZipFile(file) as archive:
        records = sorted(archive.infolist(), key=lambda record: record.header_offset)
        _check_end(file)
        _check_records(records, archive.start_dir)
        folder = archive.namelist()[0].partition("/")[0]
        data = f"{folder}/data/"
        for record in records:
            if verify or not record.filename.startswith(data):
                _check_record(file, record)
        sizes = {each.filename.removeprefix(data): each.file_size for each in records if each.filename.startswith(data)}
        content = archive.read(f"{folder}/data.pkl")
        screen(content, sizes)
        alignment = f"{folder}/.storage_alignment"
        if alignment in archive.NameToInfo and not 0 < int(archive.read(alignment)[:10]) <= 2**30:
            raise zipfile.BadZipFile("its records are aligned in a way that makes no sense")
    return _SPARSE in content


def _check_end(file: BinaryIO) -> None:
    """The table of contents lies where its end says, so that Python's reader and torch's find the same one."""
    size = file.seek(-98, os.SEEK_END) + 98
    large, locator, end = struct.unpack("<4s36xQQ", (tail := file.read(98))[:56]), tail[56:76], tail[76:]
    length, begin = struct.unpack_from("<LL", end, 12)
    if locator.startswith(b"PK\x06\x07"):  # it is given in 64 bits too
        if large[0] != b"PK\x06\x06" or int.from_bytes(locator[8:16], "little") != size - 98:
            raise zipfile.BadZipFile("its table of contents is not where it should be")
        if length not in (large[1], 2**32 - 1) or begin not in (large[2], 2**32 - 1):
            raise zipfile.BadZipFile("it has two tables of contents")
        (_, length, begin), size = large, size - 76
    if not end.startswith(b"PK\x05\x06") or end[20:] != b"\0\0" or begin + length != size - 22:
        raise zipfile.BadZipFile("its table of contents is not at its end, where torch.save puts it")


def _check_records(records: list[zipfile.ZipInfo], end: int) -> None:
    """Each record has a name and bytes of its own, before the table of contents."""
    if any(each.compress_type != zipfile.ZIP_STORED or each.compress_size != each.file_size for each in records):
        raise zipfile.BadZipFile("a record is compressed, which torch.save never does")
    if len({each.filename.lower() for each in records}) < len(records):  # torch finds them without regard to case
        raise zipfile.BadZipFile("two records have the same name")
    following = [each.header_offset for each in records[1:]] + [end]
    if any(each.header_offset + 30 + each.file_size > after for each, after in zip(records, following, strict=True)):
        raise zipfile.BadZipFile("two records share bytes, or one ends after the last")


def _check_record(file: BinaryIO, record: zipfile.ZipInfo) -> None:
    """Its name and bytes. What ``ZipFile.testzip`` does, in a tenth of the time where there are many small ones."""
    file.seek(record.header_offset)
    magic, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
    if magic != _ZIP_MAGIC or file.read(name_length) != record.orig_filename.encode():
        raise zipfile.BadZipFile(f"the record {record.filename!r} is not where it should be")
    file.seek(extra_length, os.SEEK_CUR)
    left, checksum = record.file_size, 0
    while left and (block := file.read(min(left, _BLOCK))):
        left, checksum = left - len(block), zlib.crc32(block, checksum)
    if left or checksum != record.CRC:
        raise zipfile.BadZipFile(f"the checksum of the record {record.filename!r} does not match")


def _check_old(file: BinaryIO) -> bool:
    """The format of torch before 1.6, which carries no checksums: five pickles, then the storages."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = 0
        for _ in range(5):
            end = screen(content, None, end)
        return content.find(_SPARSE) >= 0


def printable(text: str, longest: int = 300) -> str:
    """``text`` from a file, so that it neither fills a terminal nor controls it."""
    cut = text if len(text) <= longest else f"{text[:longest]} ..."
    return "".join(character if character.isprintable() else "?" for character in cut)


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = next((line for line in lines if "unsupported" in line.lower()), lines[0] if lines else type(error).__name__)
    return printable(found.split(". ")[0].rstrip("."))
