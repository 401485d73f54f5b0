"""What the calls in a pickle would make, noted and judged without making it: the second half of :mod:`fulmen.screening`."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

DEPTH = 100
"""Levels of nesting: half of what the deepest recursion over a checkpoint can take."""
CONTAINERS = 1_000_000
"""Lists, tuples and dictionaries; a tensor needs five. They take hundreds of times the bytes that ask for them."""
KEY_SIZE = 100
"""Values in a tuple that is a key: it is hashed each time it is used, with everything in it."""
ODD_KEYS = 10_000
"""Keys whose hashes a file can choose to be equal: all but text, bytes and whole numbers of a usual size."""
LONGEST_NAME = 500
"""Bytes of the name of a module, and of a class in it."""
EXPANDED = 2**28
"""Bytes of tensors that repeat their storage, such as a mask that was expanded, beyond 64 times the storage itself."""

_ITEM_SIZES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    "ComplexDouble": 16, "ComplexFloat": 8, "QInt8": 1, "QUInt8": 1, "QInt32": 4, "QUInt4x2": 1, "QUInt2x4": 1,
}  # fmt: skip
STORAGES = {**{f"torch.{name}Storage": size for name, size in _ITEM_SIZES.items()}, "torch.storage.UntypedStorage": 1}
_SCALARS = (int, float, bool, type(None), str, bytes)

Kind = Literal["tuple", "list", "dict", "ordered", "counter", "code", "storage", "tensor", "other"]


class Made:
    """What an instruction would make: as much of it as is needed to judge those that use it."""

    __slots__ = ("depth", "is_raw", "is_used", "items", "kind", "size")

    def __init__(self, kind: Kind, items: Any = (), depth: int = 0, size: int = 1, is_raw: bool = False) -> None:
        self.kind, self.items, self.depth, self.size, self.is_raw = kind, items, depth, size, is_raw
        self.is_used = False  # in something else, which would not notice a change


class RefusedError(ValueError):
    """A pickle asks for more than a checkpoint needs."""


TENSOR = Made("tensor")


class Notes:
    """What one pickle has asked for so far."""

    def __init__(self, length: int, sizes: Mapping[str, int] | None) -> None:
        self.sizes, self.length = sizes, length
        self.most_values = 2_000_000 + 8 * length
        self.containers = self.odd_keys = 0
        self.storages: dict[str, int] = {}
        self.stored = 0  # bytes of all storages
        self.repeated = 0  # bytes of all tensors, each as if it had a storage of its own
        self.allowed = _allowed_by_user()
        self.makers: dict[str, Callable[..., Any]] = {name: getattr(self, maker) for name, maker in MAKERS.items()}

    # ---- Sizes

    def container(self, kind: Kind) -> Made:
        """A new one, which may grow."""
        self.count()
        return Made(kind, [])

    def count(self) -> None:
        """Note one more container."""
        self.containers += 1
        if self.containers > CONTAINERS:
            raise RefusedError(f"it holds more than {CONTAINERS} lists, tuples and dictionaries")

    def measured(self, items: list[Any]) -> tuple[int, int, bool]:
        """How deep a container of these is, how many values it unrolls to, and whether it holds what is no data."""
        depth, size, is_raw = 0, 1 + len(items), False
        for item in items:
            kind = type(item)
            if kind is Made:
                item.is_used = True
                size += item.size
                if item.is_raw:
                    is_raw = True
                if item.depth > depth:
                    depth = item.depth
            elif kind is str or kind is bytes:
                size += len(item) >> 5
            elif kind is tuple:
                size += len(item)
                depth = depth or 1
        if depth > DEPTH:
            raise RefusedError(f"a value is nested more than {DEPTH} levels deep")
        if size > self.most_values:
            raise RefusedError(f"a value repeats parts of itself until it holds {size} values")
        return depth + 1, size, is_raw

    def made(self, items: list[Any]) -> tuple[int, int]:
        """As :meth:`measured`, of what must be data."""
        depth, size, is_raw = self.measured(items)
        if is_raw:
            raise pickle.UnpicklingError("Unsupported value: a class, a function or a bare storage where data belong")
        return depth, size

    def check_keys(self, keys: Any) -> None:
        """What will be hashed."""
        for key in keys:
            kind = type(key)
            if kind is str or kind is bytes or (kind is int and -(2**60) < key < 2**60):
                continue
            if kind is Made and key.kind not in ("tuple", "tensor", "other"):
                raise RefusedError("a key is a container that can change")
            if (key.size if kind is Made else len(key) if kind is tuple else 1) > KEY_SIZE:
                raise RefusedError(f"a key holds more than {KEY_SIZE} values")
            self.odd_keys += not (kind is Made and any(type(item) is str for item in key.items))
            if self.odd_keys > ODD_KEYS:
                raise RefusedError(f"it has more than {ODD_KEYS} keys that are neither text nor whole numbers of a usual size")

    # ---- Calls

    def make(self, function: Any, args: Any) -> Any:
        """What a function makes of arguments."""
        if type(function) is not Made or function.kind != "code" or not (type(args) is tuple or args.kind == "tuple"):
            raise pickle.UnpicklingError("Unsupported call of what is no function of torch.save")
        if function.items in self.makers:
            made = self.makers[function.items](*(args if type(args) is tuple else args.items))
        elif function.items in self.allowed:
            made = None
        else:
            raise pickle.UnpicklingError(f"Unsupported call of {function.items}")
        return made if made is not None else self.other_of(args)

    def other_of(self, args: Any) -> Made:
        """An object that was made of arguments."""
        depth, size, _ = self.measured([args])
        return Made("other", (), depth, size)

    def make_ordered(self) -> Made:
        """It is filled afterwards."""
        return self.container("ordered")

    def make_counter(self, counts: Any = None) -> Made:
        """From a dictionary."""
        if counts is not None and counts.kind != "dict":
            raise RefusedError("a Counter is made of a dictionary")
        return Made("counter", [], *((counts.depth, counts.size) if counts is not None else ()))

    def make_set(self, items: Any) -> None:
        """From a list, whose items will be hashed."""
        if items.kind != "list":
            raise RefusedError("a set is made of a list")
        self.check_keys(items.items)

    def make_bytes(self, text: str, encoding: str) -> bytes:
        """From text: Python 2 had no bytes, and protocol 2 is of that time."""
        if type(text) is not str or encoding not in ("latin1", "latin-1"):  # others import modules, or take long
            raise RefusedError("bytes are written as latin1")
        return text.encode("latin-1")

    def make_scalar(self, *args: Any) -> None:
        """A number, device or layout."""
        if any(type(arg) not in _SCALARS for arg in args):
            raise RefusedError("a number, device or layout is made of scalars")

    def make_size(self, numbers: Any) -> Made:
        """From a tuple."""
        return Made("other", self.whole_numbers(numbers), 1, len(numbers))

    # ---- Tensors

    def make_storage(self, word: str, kind: Made, key: str, location: Any, count: int, *view: Any) -> Made:
        """A record of the file, by its key."""
        if word != "storage" or type(key) is not str or type(count) is not int or count < 0 or view not in ((), (None,)):
            raise RefusedError("a storage is described in a wrong way")
        item_size = STORAGES[kind.items]
        size = count * item_size
        known = self.storages.get(key)
        record = known if self.sizes is None else self.sizes.get(key, "no")
        if size != record and (known is not None or self.sizes is not None):
            raise RefusedError(f"the storage {key!r} has {record} bytes, and the pickle says {size}")
        if known is None:
            self.stored, self.storages[key] = self.stored + size, size
        if self.sizes is None and self.stored > self.length:
            raise RefusedError("its storages are larger than the file")
        return Made("storage", (size, item_size), is_raw=True)

    def make_tensor(
        self, storage: Made, offset: int, shape: Any, stride: Any, needs: Any = None, hooks: Any = None, *rest: Any
    ) -> Made:
        """A tensor must lie in its storage: torch makes the storage larger where it does not."""
        if storage.kind != "storage" or type(offset) is not int or offset < 0:
            raise RefusedError("a tensor is described in a wrong way")
        lengths, steps = self.whole_numbers(shape), self.whole_numbers(stride)
        size, item_size = storage.items
        for dtype in rest:  # where the storage has none
            if type(dtype) is Made and type(dtype.items) is str:
                item_size = getattr(torch, dtype.items[6:]).itemsize
        self.check_no_hooks(hooks)
        last, count = offset, 1
        for length, step in zip(lengths, steps, strict=True):
            last += (length - 1) * step
            count *= length
        if count and (last + 1) * item_size > size:
            raise RefusedError(f"a tensor of shape {lengths} reaches beyond its storage of {size} bytes")
        self.repeated += count * item_size
        return TENSOR

    def make_quantized(self, storage: Made, offset: int, shape: Made, stride: Made, parameters: Made, *rest: Any) -> Made:
        """It must lie in its storage too."""
        return self.make_tensor(storage, offset, shape, stride)

    def make_parameter(self, tensor: Made, requires_grad: bool, hooks: Any, state: Any = None) -> Made:
        """From a tensor."""
        self.check_no_hooks(hooks)
        return self.with_attributes(self.same_tensor(tensor), state)

    def make_typed(self, function: Made, kind: Made, args: Made, state: Any) -> Made:
        """A tensor with attributes."""
        if kind.items not in ("torch.Tensor", "torch.nn.parameter.Parameter", *self.allowed):
            raise pickle.UnpicklingError(f"Unsupported type {kind.items}")
        return self.with_attributes(self.same_tensor(self.make(function, args)), state)

    def make_sparse(self, layout: Any, data: Made) -> Made:
        """From its indices and values."""
        *_, values, shape = [item for item in data.items if type(item) is not bool]
        self.whole_numbers(shape)
        return self.same_tensor(values)

    def make_without_values(self, *args: Any) -> None:
        """Nothing could be loaded from it."""
        raise RefusedError("a tensor on the device 'meta' has no values")

    def same_tensor(self, made: Any) -> Made:
        """What must be a tensor."""
        if made.kind != "tensor":
            raise RefusedError("a parameter is made of a tensor")
        return made  # type: ignore[no-any-return]

    def check_no_hooks(self, hooks: Any) -> None:
        """They would be called with gradients."""
        if type(hooks) is Made and hooks.items:
            raise RefusedError("a tensor has hooks, which torch.save leaves out")

    def with_attributes(self, tensor: Made, state: Any) -> Made:
        """Attributes that a user gave a tensor are data, and must not replace those that it has."""
        if type(state) is not Made:
            return tensor
        if state.kind != "dict" or any(hasattr(torch.nn.Parameter, str(key)) for key in state.items):
            raise RefusedError("a tensor has attributes that replace its own")
        return Made("tensor", (), *self.made([tensor, state]))

    def whole_numbers(self, numbers: Any) -> Any:
        """A shape, or strides."""
        found = numbers if type(numbers) is tuple else numbers.items
        for number in found:
            if type(number) is not int or not 0 <= number < 2**63:
                raise RefusedError("the shape of a tensor is not made of whole numbers")
        if len(found) > 64:
            raise RefusedError(f"a tensor has {len(found)} dimensions")
        return found


def _allowed_by_user() -> set[str]:
    """What the user has allowed for ``torch.load``, with everything that it may do."""
    found = torch.serialization.get_safe_globals()
    return {each[1] if isinstance(each, tuple) else f"{each.__module__}.{each.__qualname__}" for each in found}


CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter")
MAKERS = {
    "collections.OrderedDict": "make_ordered",
    "collections.Counter": "make_counter",
    "builtins.set": "make_set",
    "builtins.complex": "make_scalar",
    "_codecs.encode": "make_bytes",
    "torch.Size": "make_size",
    "torch.device": "make_scalar",
    "torch.serialization._get_layout": "make_scalar",
    "torch._utils._rebuild_tensor": "make_tensor",
    "torch._utils._rebuild_tensor_v2": "make_tensor",
    "torch._utils._rebuild_tensor_v3": "make_tensor",
    "torch._utils._rebuild_qtensor": "make_quantized",
    "torch._utils._rebuild_parameter": "make_parameter",
    "torch._utils._rebuild_parameter_with_state": "make_parameter",
    "torch._tensor._rebuild_from_type_v2": "make_typed",
    "torch._utils._rebuild_sparse_tensor": "make_sparse",
    "torch._utils._rebuild_meta_tensor_no_storage": "make_without_values",
}
"""What makes plain data -> what makes a note of it here."""
