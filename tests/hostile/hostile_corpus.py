"""Hostile checkpoints, made by code: each function writes one file that must be refused, and does harm where it is not."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import random
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from fulmen import write_checkpoint

CANARY = "HOSTILE_CANARY"
"""The environment variable with the path of a file that only code in a hostile file makes."""
TOUCH = f"open(__import__('os').environ['{CANARY}'], 'w')"
HELPER = "hostile_canary_module"
"""A module on the path of the children that makes the canary when it is imported."""

Case = Callable[[Path], Any]
UNREADABLE: dict[str, Case] = {}
"""Files that nobody may open."""


def unreadable(case: Case) -> Case:
    """Put a case into the corpus."""
    UNREADABLE[case.__name__] = case
    return case


# ---- Pickles by hand


def text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def whole(value: int) -> bytes:
    if 0 <= value < 256:
        return pickle.BININT1 + bytes([value])
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    content = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(content)]) + content


def name(path: str) -> bytes:
    """A class or function: the part before the last dot is the module."""
    module, _, attribute = path.rpartition(".")
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def several(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def call(function: str, *args: bytes) -> bytes:
    return name(function) + several(*args) + pickle.REDUCE


def mapping(**items: bytes) -> bytes:
    return pickle.EMPTY_DICT + pickle.MARK + b"".join(text(key) + value for key, value in items.items()) + pickle.SETITEMS


def storage(key: str, count: int, kind: str = "torch.FloatStorage") -> bytes:
    return several(text("storage"), name(kind), text(key), text("cpu"), whole(count)) + pickle.BINPERSID


def tensor(where: bytes, offset: int, shape: Iterable[int], stride: Iterable[int], last: bytes = b"") -> bytes:
    hooks = call("collections.OrderedDict")
    shapes = several(*map(whole, shape)), several(*map(whole, stride))
    return call("torch._utils._rebuild_tensor_v2", where, whole(offset), *shapes, pickle.NEWFALSE, hooks, last)


def whole_pickle(body: bytes) -> bytes:
    return pickle.PROTO + b"\x02" + body + pickle.STOP


def archive(path: Path, content: bytes, records: dict[str, bytes] | None = None, **changes: bytes) -> None:
    """A file like those of ``torch.save`` around a pickle."""
    files = {"data.pkl": content, "byteorder": b"little", "version": b"3\n", **changes}
    files.update({f"data/{key}": data for key, data in (records or {}).items()})
    with zipfile.ZipFile(path, "w") as target:
        for each, data in files.items():
            target.writestr(f"archive/{each}", data)


def hold(path: Path, value: bytes, **records: bytes) -> None:
    """A checkpoint whose weights hold ``value``."""
    weights = {key.removeprefix("r"): data for key, data in records.items()}
    archive(path, whole_pickle(mapping(state_dict=mapping(w=value))), weights)


# ---- Code


class Calls:
    """Pickled as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def shell() -> str:
    return f"touch ${CANARY}"


CALLS: dict[str, Callable[[], Any]] = {
    "os_system": lambda: Calls(os.system, shell()),
    "subprocess_Popen": lambda: Calls(subprocess.Popen, ["sh", "-c", shell()]),
    "subprocess_getoutput": lambda: Calls(subprocess.getoutput, shell()),
    "eval": lambda: Calls(builtins.eval, TOUCH),
    "exec": lambda: Calls(builtins.exec, TOUCH),
    "import": lambda: Calls(builtins.__import__, HELPER),
    "getattr": lambda: Calls(builtins.getattr, "a", "upper"),
    "torch_load": lambda: Calls(torch.load, "other.ckpt"),
    "torch_hub": lambda: Calls(torch.hub.load, "nobody/nothing", "model"),
    "fromfile": lambda: Calls(torch.UntypedStorage.from_file, "/etc/passwd", False, 10),
}
PLACES = ("state_dict", "hyper_parameters", "callbacks", "loops", "loggers", "optimizer_states", "Data", "rng")


def saved_with(value: Any, place: str, protocol: int = 2, old: bool = False) -> Case:
    def case(path: Path) -> None:
        checkpoint: dict[str, Any] = {"state_dict": {}, "epoch": 1, place: {"nested": [{"deep": (1, value)}]}}
        if protocol < 2:  # a storage could not be named in it
            return archive(path, pickle.dumps(checkpoint, protocol))
        checkpoint["state_dict"]["w"] = torch.zeros(2)
        torch.save(checkpoint, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)

    return case


for _number, (_key, _made) in enumerate(CALLS.items()):
    UNREADABLE[f"call_{_key}"] = saved_with(_made(), PLACES[_number % len(PLACES)])
for _place in PLACES:
    UNREADABLE[f"code_in_{_place}"] = saved_with(Calls(os.system, shell()), _place)
for _protocol in (*range(2), *range(3, pickle.HIGHEST_PROTOCOL + 1)):
    UNREADABLE[f"code_in_protocol_{_protocol}"] = saved_with(Calls(os.system, shell()), "hyper_parameters", _protocol)
UNREADABLE["code_in_old_format"] = saved_with(Calls(os.system, shell()), "hyper_parameters", old=True)
# What older versions of other trainers imported by name when they built a module from its hyper-parameters.
for _key in ("hparams_type", "module_arguments_type", "_instantiator"):
    UNREADABLE[f"class_as_{_key}"] = saved_with(zipfile.ZipFile, _key)

NAMED = {
    "blocked": "os.system", "posix": "posix.system", "nt": "nt.system", "dotted": "torch.os.system",
    "below_torch": "torch.serialization.os", "looks_allowed": "torch._utils._rebuild_tensor_v2.__globals__",
    "inner": "torch.storage.UntypedStorage.from_file", "hub": "torch.hub.load", "jit": "torch.jit.load",
    "package": "torch.package.PackageImporter", "ops": "torch.ops.load_library", "cpp": "torch.utils.cpp_extension.load_inline",
    "inductor": "torch._inductor.codecache.PyCodeCache", "fulmen": "fulmen.registry.import_target", "empty": ".",
    "python_2": "__builtin__.eval", "moved": "commands.getoutput", "long": f"a.{'b' * 100_000}", "escape": "a.\x1b[2J\x07",
}  # fmt: skip
for _key, _path in NAMED.items():
    UNREADABLE[f"name_{_key}"] = lambda path, _path=_path: hold(path, call(_path, text(shell())))
# What torch allows, with arguments that do harm.
USED: dict[str, bytes] = {
    "bytearray_of_a_terabyte": call("builtins.bytearray", whole(2**40)),
    "bytearray_of_four_gibibytes": call("builtins.bytearray", whole(2**32)),
    "tensor_by_number": call("torch.Tensor", whole(2**40)),
    "new_tensor_by_number": name("torch.FloatTensor") + several(whole(2**36)) + pickle.NEWOBJ,
    "codec_that_takes_long": call("_codecs.encode", text("".join(map(chr, range(256, 60_000))) * 4), text("punycode")),
    "codec_by_name": call("_codecs.encode", text("a"), text(HELPER)),
    "codec_zip": call("_codecs.encode", text("a"), text("zlib")),
    "wrapper": call("torch._utils._rebuild_wrapper_subclass", name("torch.Tensor"), name("torch.float32"), several(whole(2)),
                    several(whole(1)), whole(0), name("torch.strided"), text("cpu"), pickle.NEWFALSE),
    "other_device": call("torch._utils._rebuild_device_tensor_from_numpy", whole(1), name("torch.float32"), text("cuda:99"),
                         pickle.NEWFALSE),
    "meta": call("torch._utils._rebuild_meta_tensor_no_storage", name("torch.float32"), several(whole(2**62)),
                 several(whole(1)), pickle.NEWFALSE),
    "function_as_value": name("torch._utils._rebuild_tensor_v2"),
    "storage_as_value": storage("0", 1),
    "ordered_with_other_methods": call("collections.OrderedDict") + mapping(items=name("builtins.set")) + pickle.BUILD,
    "parameter_with_other_data": call("torch._utils._rebuild_parameter_with_state", tensor(storage("0", 1), 0, [1], [1]),
                                      pickle.NEWFALSE, call("collections.OrderedDict"), mapping(data=whole(1))),
    "hooks": call("torch._utils._rebuild_tensor_v2", storage("0", 1), whole(0), several(whole(1)), several(whole(1)),
                  pickle.NEWTRUE, call("collections.OrderedDict") + whole(0) + whole(1) + pickle.SETITEM),
}  # fmt: skip
for _key, _body in USED.items():
    UNREADABLE[f"allowed_{_key}"] = lambda path, _body=_body: hold(path, _body, r0=bytes(4))
for _key, _letters in {"frame": b"\x95" + bytes(8), "memoize": b"\x94", "inst": b"ios\nsystem\n", "obj": b"o",
"ext": b"\x82\x01",
                       "persid": b"P0\n", "stack_global": text("os") + text("system") + b"\x93", "newobj_ex": b"\x92",
                       "next_buffer": b"\x97", "unknown": b"\xff"}.items():  # fmt: skip
    UNREADABLE[f"opcode_{_key}"] = lambda path, _letters=_letters: hold(path, whole(1) + _letters)


# ---- Memory and time


@unreadable
def nested_lists(path: Path) -> None:
    hold(path, pickle.EMPTY_LIST * 50_000 + pickle.APPEND * 49_999)


@unreadable
def nested_tuples(path: Path) -> None:
    hold(path, pickle.EMPTY_TUPLE + pickle.TUPLE1 * 500_000)


@unreadable
def nested_tuple_as_key(path: Path) -> None:
    """Hashing it takes the stack of the process, which ends."""
    hold(path, pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + pickle.TUPLE1 * 500_000 + whole(1) + pickle.SETITEM)


@unreadable
def nested_marks(path: Path) -> None:
    hold(path, pickle.MARK * 2_000_000)


@unreadable
def nested_dictionaries(path: Path) -> None:
    hold(path, (pickle.EMPTY_DICT + text("a")) * 5_000 + whole(1) + pickle.SETITEM * 5_000)


def doubled(levels: int) -> bytes:
    """A tuple of two, each of which is a tuple of two."""
    return whole(1) + b"".join(pickle.BINPUT + bytes([n]) + pickle.BINGET + bytes([n]) + pickle.TUPLE2 for n in range(levels))


@unreadable
def laughs(path: Path) -> None:
    """Ten lists of ten lists: 10 to the 12th where they are unrolled."""
    body = text("lol")
    for level in range(12):
        references = (pickle.BINGET + bytes([level])) * 10
        body += pickle.BINPUT + bytes([level]) + pickle.EMPTY_LIST + pickle.MARK + references + pickle.APPENDS
    hold(path, pickle.MARK + body + pickle.TUPLE)


@unreadable
def laughs_as_key(path: Path) -> None:
    """Its hash takes some years."""
    hold(path, pickle.EMPTY_DICT + doubled(60) + whole(1) + pickle.SETITEM)


@unreadable
def laughs_as_set(path: Path) -> None:
    hold(path, name("builtins.set") + pickle.EMPTY_LIST + doubled(60) + pickle.APPEND + pickle.TUPLE1 + pickle.REDUCE)


@unreadable
def keys_that_collide(path: Path) -> None:
    """All have one hash: the time grows with the square of their number."""
    keys = b"".join(whole(number * (2**61 - 1)) + pickle.NONE for number in range(2, 60_000))
    hold(path, pickle.EMPTY_DICT + pickle.MARK + keys + pickle.SETITEMS)


@unreadable
def long_text_often(path: Path) -> None:
    """A megabyte of text, a hundred thousand times."""
    body = text("a" * 2**20) + pickle.BINPUT + b"\x00" + pickle.EMPTY_LIST + pickle.MARK
    hold(path, body + (pickle.BINGET + b"\x00") * 100_000 + pickle.APPENDS)


@unreadable
def empty_lists(path: Path) -> None:
    hold(path, pickle.EMPTY_LIST + pickle.MARK + pickle.EMPTY_LIST * 1_500_000 + pickle.APPENDS)


@unreadable
def text_of_four_gibibytes(path: Path) -> None:
    hold(path, pickle.BINUNICODE + b"\xff\xff\xff\xff" + b"a")


@unreadable
def list_that_holds_itself(path: Path) -> None:
    hold(path, pickle.EMPTY_LIST + pickle.BINPUT + b"\x00" + pickle.BINGET + b"\x00" + pickle.APPEND)


@unreadable
def dictionary_that_holds_itself(path: Path) -> None:
    around = pickle.BINPUT + b"\x00" + text("a") + pickle.EMPTY_LIST + pickle.BINGET + b"\x00" + pickle.APPEND
    hold(path, pickle.EMPTY_DICT + around + pickle.SETITEM)


@unreadable
def checkpoint_that_holds_itself(path: Path) -> None:
    around = pickle.BINPUT + b"\x00" + text("state_dict") + pickle.BINGET + b"\x00" + pickle.SETITEM
    archive(path, whole_pickle(pickle.EMPTY_DICT + around))


# ---- Tensors

TENSORS: dict[str, bytes] = {
    "huge": tensor(storage("0", 1), 0, [2**40], [1]),
    "huge_in_many_dimensions": tensor(storage("0", 1), 0, [2**10] * 8, [1] * 8),
    "expanded": tensor(storage("0", 1), 0, [2**40], [0]),
    "overflowing": tensor(storage("0", 1), 0, [2**62, 2**62], [0, 0]),
    "over_64_bits": tensor(storage("0", 1), 0, [2**80], [1]),
    "stride_beyond": tensor(storage("0", 1), 0, [2], [2**40]),
    "stride_overflowing": tensor(storage("0", 1), 0, [3], [2**63 - 1]),
    "negative_stride": tensor(storage("0", 1), 0, [2], [-1]),
    "negative_shape": tensor(storage("0", 1), 0, [-1], [1]),
    "negative_offset": tensor(storage("0", 1), -1, [1], [1]),
    "offset_beyond": tensor(storage("0", 1), 2**40, [1], [1]),
    "offset_overflowing": tensor(storage("0", 1), 2**63 - 1, [2], [1]),
    "more_strides": tensor(storage("0", 1), 0, [1], [1, 1]),
    "many_dimensions": tensor(storage("0", 1), 0, [1] * 5_000, [1] * 5_000),
    "shape_of_text": call("torch._utils._rebuild_tensor_v2", storage("0", 1), whole(0), several(text("a")), several(text("b")),
                          pickle.NEWFALSE, call("collections.OrderedDict")),
    "storage_that_lies": tensor(storage("0", 2**20), 0, [2**20], [1]),
    "storage_of_a_terabyte": tensor(storage("0", 2**38), 0, [1], [1]),
    "storage_of_another_type": tensor(storage("0", 1, "torch.DoubleStorage"), 0, [1], [1]),
    "storage_missing": tensor(storage("1", 1), 0, [1], [1]),
    "storage_outside": tensor(storage("../version", 2), 0, [1], [1]),
    "storage_negative": tensor(storage("0", -1), 0, [1], [1]),
    "wider_type": call("torch._utils._rebuild_tensor_v3", storage("0", 4, "torch.storage.UntypedStorage"), whole(0),
                       several(whole(4)), several(whole(1)), pickle.NEWFALSE, call("collections.OrderedDict"),
                       name("torch.float64")),
    "quantized": call("torch._utils._rebuild_qtensor", storage("0", 4, "torch.QInt8Storage"), whole(0), several(whole(2**40)),
                      several(whole(1)), several(name("torch.per_tensor_affine"), pickle.BINFLOAT + bytes(8), whole(0)),
                      pickle.NEWFALSE, call("collections.OrderedDict")),
}  # fmt: skip
for _key, _body in TENSORS.items():
    UNREADABLE[f"tensor_{_key}"] = lambda path, _body=_body: hold(path, _body, r0=bytes(4))


@unreadable
def sparse_beyond_its_shape(path: Path) -> None:
    """Whoever makes it dense writes where its index says."""
    sparse = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (2,), check_invariants=False)
    torch.save({"state_dict": {"w": sparse}}, path)
    number = torch.tensor([2**40]).numpy().tobytes()
    with zipfile.ZipFile(path) as source:
        records = {each: source.read(each) for each in source.namelist()}
    key = next(each for each, data in records.items() if "/data/" in each and data == bytes(8))
    with zipfile.ZipFile(path, "w") as target:
        for each, data in records.items():
            target.writestr(each, number if each == key else data)


# ---- Archives


def good_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.arange(100.0)}, "epoch": 1}, buffer)
    return buffer.getvalue()


def good_records() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(good_bytes())) as source:
        return {each: source.read(each) for each in source.namelist()}


@unreadable
def zip_bomb(path: Path) -> None:
    """64 mebibytes in as many kilobytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for each, data in good_records().items():
            target.writestr(each, data)
        with target.open("archive/data/9", "w", force_zip64=True) as record:
            for _ in range(4):
                record.write(bytes(2**24))


@unreadable
def zip_in_other_compressions(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as target:
        for each, data in good_records().items():
            target.writestr(each, data)
        target.writestr("archive/data/9", bytes(2**22), zipfile.ZIP_LZMA)


@unreadable
def zip_in_zip(path: Path) -> None:
    archive(path, b"", None, **{"data.pkl": good_bytes()})


def directory(offset: int, entries: list[tuple[str, bytes, int]]) -> bytes:
    """A table of contents: name, content, and where the record begins."""
    table, sums = b"", {id(data): zlib.crc32(data) for data in {id(data): data for _, data, _ in entries}.values()}
    for each, data, begin in entries:
        sizes = struct.pack("<LLLHHHHHLL", sums[id(data)], len(data), len(data), len(each), 0, 0, 0, 0, 0, begin)
        table += b"PK\x01\x02" + struct.pack("<HHHHHH", 20, 20, 0, 0, 0, 33) + sizes + each.encode()
    end = struct.pack("<HHHHLLH", 0, 0, len(entries) % 65536, len(entries) % 65536, len(table), offset, 0)
    return table + b"PK\x05\x06" + end


def record(each: str, data: bytes) -> bytes:
    sizes = struct.pack("<LLLHH", zlib.crc32(data), len(data), len(data), len(each), 0)
    return b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, 0, 0, 33) + sizes + each.encode() + data


def assembled(path: Path, records: dict[str, bytes], again: list[str] = []) -> None:  # noqa: B006
    """Records one after the other, and those in ``again`` once more in the table of contents only."""
    content, entries = b"", []
    for each, data in records.items():
        entries.append((each, data, len(content)))
        content += record(each, data)
    first = entries[-1]
    entries += [(each, first[1], first[2]) for each in again]
    path.write_bytes(content + directory(len(content), entries))


@unreadable
def overlapping_records(path: Path) -> None:
    """One record of 4 MiB that is read ten thousand times: 40 GiB."""
    names = [f"archive/data/{number:05d}" for number in range(10_000)]
    assembled(path, {**good_records(), "archive/data/x": bytes(2**22)}, names)


@unreadable
def records_of_one_name(path: Path) -> None:
    """Two readers find two different ones."""
    evil = whole_pickle(mapping(state_dict=call("os.system", text(shell()))))
    with WithoutWarnings(), zipfile.ZipFile(path, "w") as target:
        for each, data in good_records().items():
            target.writestr(each, data)
        target.writestr("archive/data.pkl", evil)


@unreadable
def records_of_one_name_in_capitals(path: Path) -> None:
    records = good_records()
    assembled(path, {**records, "archive/DATA.PKL": whole_pickle(mapping(state_dict=call("os.system", text(shell()))))})


@unreadable
def two_tables_of_contents(path: Path) -> None:
    """One where the end says it is, and one before the end."""
    records, evil = good_records(), whole_pickle(mapping(state_dict=call("os.system", text(shell()))))
    begin = b"".join(record(each, data) for each, data in {**records, "archive/data.pkl": evil}.items())
    other = directory(len(begin), [("archive/data.pkl", evil, 0)])[:-22]
    assembled(path, records)
    content = path.read_bytes()
    path.write_bytes(begin + other + content)


@unreadable
def comment(path: Path) -> None:
    """With an end of an archive in it."""
    archive(path, whole_pickle(mapping(epoch=whole(1))))
    with zipfile.ZipFile(path, "a") as target:
        target.comment = b"PK\x05\x06" + bytes(18)


@unreadable
def aligned_to_nothing(path: Path) -> None:
    weights = {"0": bytes(4), "1": bytes(4)}
    body = mapping(a=tensor(storage("0", 1), 0, [1], [1]), b=tensor(storage("1", 1), 0, [1], [1]))
    content = whole_pickle(mapping(state_dict=body))
    archive(path, content, weights, **{".format_version": b"1", ".storage_alignment": b"0"})


@unreadable
def named_outside(path: Path) -> None:
    records = {each.replace("archive/", "../../archive/"): data for each, data in good_records().items()}
    assembled(path, records)


@unreadable
def named_absolutely(path: Path) -> None:
    assembled(path, {each.replace("archive/", "/archive/"): data for each, data in good_records().items()})


@unreadable
def torchscript(path: Path) -> None:
    archive(path, whole_pickle(mapping(state_dict=mapping())), None, **{"constants.pkl": whole_pickle(pickle.EMPTY_TUPLE)})


@unreadable
def without_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("archive/version", b"3\n")


@unreadable
def without_records(path: Path) -> None:
    path.write_bytes(b"PK\x05\x06" + bytes(18))


# ---- The format of torch before 1.6


def old_format(*pickles: bytes, after: bytes = b"") -> bytes:
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*head, *pickles]) + after


def old_storage(key: str, count: int, view: bytes = pickle.NONE) -> bytes:
    return several(text("storage"), name("torch.FloatStorage"), text(key), text("cpu"), whole(count), view) + pickle.BINPERSID


OLD: dict[str, bytes] = {
    "code": whole_pickle(mapping(a=call("os.system", text(shell())))),
    "module": whole_pickle(several(text("module"), name("os.system"), text("a.py"), text("source")) + pickle.BINPERSID),
    "huge_storage": whole_pickle(mapping(state_dict=mapping(a=tensor(old_storage("a", 2**38), 0, [1], [1])))),
    "huge_tensor": whole_pickle(mapping(state_dict=mapping(a=tensor(old_storage("a", 1), 0, [2**38], [1])))),
    "view": whole_pickle(mapping(a=tensor(old_storage("a", 1, several(text("b"), whole(0), whole(2**38))), 0, [1], [1]))),
    "storage_twice": whole_pickle(mapping(a=tensor(old_storage("a", 1), 0, [1], [1]),
                                          b=tensor(old_storage("a", 5), 0, [5], [1]))),
    "laughs": whole_pickle(pickle.EMPTY_DICT + doubled(60) + whole(1) + pickle.SETITEM),
}  # fmt: skip
for _key, _body in OLD.items():
    UNREADABLE[f"old_{_key}"] = lambda path, _body=_body: path.write_bytes(
        old_format(_body, whole_pickle(pickle.EMPTY_LIST), after=bytes(12))
    )


@unreadable
def old_and_tar(path: Path) -> None:
    """Begins as the old format does, and is a tape archive as well."""
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as target:
        for each in ("storages", "tensors", "pickle", "../outside"):
            info = tarfile.TarInfo(each)
            info.size = 3
            target.addfile(info, io.BytesIO(b"abc"))
    content = bytearray(buffer.getvalue())
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    content[: len(magic)] = magic
    header = bytes(content[:148]) + b" " * 8 + bytes(content[156:512])
    content[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(content))


# ---- Files of others


@unreadable
def nothing(path: Path) -> None:
    path.write_bytes(b"")


@unreadable
def one_letter(path: Path) -> None:
    path.write_bytes(b"P")


@unreadable
def beginning_only(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04")


@unreadable
def noise(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + random.Random(0).randbytes(100_000))


@unreadable
def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Calls(os.system, shell())}))


@unreadable
def safetensors(path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


@unreadable
def hdf5(path: Path) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))


@unreadable
def numpy_archive(path: Path) -> None:
    import numpy as np

    with open(path, "wb") as file:
        np.savez(file, w=np.zeros(3))


@unreadable
def wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("package/__init__.py", "raise SystemExit")


@unreadable
def folder(path: Path) -> None:
    path.mkdir()


@unreadable
def pipe(path: Path) -> None:
    os.mkfifo(path)


@unreadable
def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@unreadable
def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


@unreadable
def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@unreadable
def large_and_empty(path: Path) -> None:
    """Takes no space on the disk, and says that it has a terabyte."""
    with open(path, "wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(2**40)


for _part in (1, 2, 5, 10, 25, 50, 75, 90, 99):

    def _truncated(path: Path, part: int = _part) -> None:
        content = good_bytes()
        path.write_bytes(content[: len(content) * part // 100])

    UNREADABLE[f"truncated_to_{_part}_percent"] = _truncated


for _kind, _value in {"list": [1], "tensor": torch.zeros(1), "number": 1, "text": "a", "nothing": None}.items():
    UNREADABLE[f"holds_a_{_kind}"] = lambda path, _value=_value: torch.save(_value, path)


class WithoutWarnings:
    """``zipfile`` warns of two records with one name."""

    def __enter__(self) -> None:
        import warnings

        self.block = warnings.catch_warnings()
        self.block.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *about: Any) -> None:
        self.block.__exit__(*about)


def write_good(path: Path) -> None:
    """A checkpoint that nobody refuses."""
    write_checkpoint({"state_dict": {"w": torch.arange(100.0)}, "epoch": 1}, path)
