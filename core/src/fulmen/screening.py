"""Judge a pickle by its instructions, before anything follows them.

``torch.load(weights_only=True)`` runs no code of a file. It does follow a few hundred bytes that ask for all memory, that
hash a tuple of tuples for years, that nest until the interpreter's stack is gone, or that describe a tensor beyond the end
of its storage. Here each instruction costs the same whatever it asks for: nothing is made but notes of what would be made.
What is admitted is what ``torch.save`` writes for plain data, and the classes that the user has allowed for
``torch.load``. It takes a fifth of the time that torch needs for the pickle, which is short where the tensors are large.
"""

from __future__ import annotations

import mmap
import pickle
import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from fulmen.pickled import CLASSES, DEPTH, EXPANDED, LONGEST_NAME, MAKERS, STORAGES, Kind, Made, Notes, RefusedError

# What instructions that make no sense raise.
_DAMAGED = (TypeError, ValueError, LookupError, AttributeError, OverflowError, struct.error)
_CUT = "its pickle ends in the middle of a value"


def screen(data: bytes | mmap.mmap, sizes: Mapping[str, int] | None, start: int = 0) -> int:
    """Raise where following a pickle could do harm; else say where it ends.

    Args:
        data: The pickle, and what follows it.
        sizes: The bytes of each storage by its key; ``None``: they are not known.
        start: Where it begins.

    Raises:
        pickle.UnpicklingError: It names a class or function that is not plain data.
        RefusedError: It is damaged, or asks for more memory, time or nesting than its size explains.
    """
    screening = _Screening(data, sizes)
    try:
        return screening.follow(start)
    except RefusedError:
        raise
    except _DAMAGED as error:
        raise RefusedError(f"its pickle makes no sense at byte {screening.position}") from error


class _Screening(Notes):
    """One pickle, instruction by instruction."""

    def __init__(self, data: bytes | mmap.mmap, sizes: Mapping[str, int] | None) -> None:
        super().__init__(len(data), sizes)
        self.data, self.position = data, 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.steps: dict[int, Callable[[int], int]] = {code[0]: getattr(self, name) for code, name in _STEPS.items()}
        self.steps.update({code[0]: partial(self.push, value) for code, value in _CONSTANTS.items()})

    def follow(self, at: int) -> int:
        """All instructions up to the end, which is returned. The frequent ones are done here, to save the call."""
        data, steps, memo, stack = self.data, self.steps, self.memo, self.stack
        try:
            while (code := data[at]) != _STOP:
                if code == _PUT_LONG:
                    memo[_unsigned(data, at + 1)[0]] = stack[-1]
                    at += 5
                elif code == _PUT:
                    memo[data[at + 1]] = stack[-1]
                    at += 2
                elif code == _GET:
                    stack.append(memo[data[at + 1]])
                    at += 2
                elif code == _INT1:
                    stack.append(data[at + 1])
                    at += 2
                elif code == _GET_LONG:
                    stack.append(memo[_unsigned(data, at + 1)[0]])
                    at += 5
                else:
                    at = steps[code](at + 1)
                    stack = self.stack
        except KeyError:
            if data[at] in steps or data[at] in (_PUT, _GET, _PUT_LONG, _GET_LONG):
                raise
            raise pickle.UnpicklingError(f"Unsupported operand {data[at]} of a pickle") from None
        finally:
            self.position = at
        self.made([stack[-1]])
        if self.stored * 64 + EXPANDED < self.repeated:
            raise RefusedError(f"its tensors repeat {self.stored} bytes until they are {self.repeated}")
        return at + 1

    # ---- The stack

    def protocol(self, at: int) -> int:
        if self.data[at] != 2:
            raise pickle.UnpicklingError(f"Unsupported protocol {self.data[at]} of a pickle, where torch.save writes 2")
        return at + 1

    def mark(self, at: int) -> int:
        self.marks.append(self.stack)
        self.stack = []
        if len(self.marks) > 10 * DEPTH:
            raise RefusedError(f"it opens {len(self.marks)} containers and closes none")
        return at

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def take(self, at: int, count: int) -> bytes:
        found = self.data[at : at + count]
        if len(found) != count:
            raise RefusedError(_CUT)
        return found

    # ---- Scalars

    def push(self, value: Any, at: int) -> int:
        self.stack.append(value)
        return at

    def int2(self, at: int) -> int:
        self.stack.append(int.from_bytes(self.take(at, 2), "little"))
        return at + 2

    def int4(self, at: int) -> int:
        self.stack.append(int.from_bytes(self.take(at, 4), "little", signed=True))
        return at + 4

    def long1(self, at: int) -> int:
        end = at + 1 + self.data[at]
        self.stack.append(int.from_bytes(self.take(at + 1, self.data[at]), "little", signed=True))
        return end

    def float8(self, at: int) -> int:
        self.stack.append(struct.unpack_from(">d", self.data, at)[0])
        return at + 8

    def text(self, at: int) -> int:
        end: int = at + 4 + _unsigned(self.data, at)[0]
        if end > self.length:
            raise RefusedError(_CUT)
        self.stack.append(str(self.data[at + 4 : end], "utf-8", "surrogatepass"))
        return end

    def short_text(self, at: int) -> int:
        self.stack.append(self.take(at + 1, self.data[at]).decode())
        return at + 1 + self.data[at]

    # ---- Containers

    def new_list(self, at: int) -> int:
        self.stack.append(self.container("list"))
        return at

    def new_dict(self, at: int) -> int:
        self.stack.append(self.container("dict"))
        return at

    def new_set(self, at: int) -> int:
        self.stack.append(self.container("other"))
        return at

    def tuple_of(self, items: list[Any]) -> None:
        """One of whole numbers, as shapes are, stands for itself."""
        self.count()
        for item in items:
            if type(item) is not int:
                self.stack.append(Made("tuple", tuple(items), *self.measured(items)))
                return
        self.stack.append(tuple(items))

    def new_tuple(self, at: int) -> int:
        self.tuple_of(self.pop_mark())
        return at

    def tuple1(self, at: int) -> int:
        self.tuple_of([self.stack.pop()])
        return at

    def tuple2(self, at: int) -> int:
        second, first = self.stack.pop(), self.stack.pop()
        self.tuple_of([first, second])
        return at

    def tuple3(self, at: int) -> int:
        third, second, first = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.tuple_of([first, second, third])
        return at

    def grow(self, items: list[Any], *kinds: Kind) -> Any:
        """The container on the stack, which takes more items: it must be complete before others use it."""
        target = self.stack[-1]
        if type(target) is not Made or target.kind not in kinds:
            raise RefusedError("it adds to what is no container of that kind")
        depth, size = self.made(items)
        if target.is_used:
            raise RefusedError("a container changes after it was used, as in one that holds itself")
        target.depth, target.size = max(depth, target.depth), target.size + size
        return target

    def append(self, at: int) -> int:
        items = [self.stack.pop()]
        self.grow(items, "list").items.extend(items)
        return at

    def appends(self, at: int) -> int:
        items = self.pop_mark()
        self.grow(items, "list").items.extend(items)
        return at

    def set_item(self, at: int) -> int:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_pairs([key, value])
        return at

    def set_items(self, at: int) -> int:
        self.set_pairs(self.pop_mark())
        return at

    def set_pairs(self, items: list[Any]) -> None:
        keys = items[::2]
        target = self.grow(items, "dict", "ordered", "counter")
        self.check_keys(keys)
        target.items.extend(keys)

    # ---- Classes, functions and what they make

    def code(self, at: int) -> int:
        """A class or function, by name."""
        middle = self.data.find(b"\n", at, at + LONGEST_NAME)
        end = self.data.find(b"\n", middle + 1, middle + LONGEST_NAME)
        if middle < 0 or end < 0:
            raise RefusedError(f"the name of a class has no end within {LONGEST_NAME} bytes")
        name = f"{self.data[at:middle].decode()}.{self.data[middle + 1 : end].decode()}"
        name = name.replace("__builtin__.", "builtins.", 1) if name.startswith("__builtin__.") else name
        if name.startswith("torch.") and isinstance(getattr(torch, name[6:], None), (torch.dtype, torch.qscheme)):
            self.stack.append(Made("other", name))
            return end + 1
        if name not in STORAGES and name not in MAKERS and name not in self.allowed and name not in CLASSES:
            raise pickle.UnpicklingError(f"Unsupported global: {name} was not an allowed global by default")
        self.stack.append(Made("code", name, is_raw=True))
        return end + 1

    def reduce(self, at: int) -> int:
        args = self.stack.pop()
        self.stack[-1] = self.make(self.stack[-1], args)
        return at

    def storage(self, at: int) -> int:
        self.stack.append(self.make_storage(*self.stack.pop().items))
        return at

    def build(self, at: int) -> int:
        """Attributes of an object: the versions in a ``state_dict``."""
        state, target = self.stack.pop(), self.stack[-1]
        depth, size = self.made([state])
        if target.kind == "ordered" and state.kind == "dict" and list(state.items) == ["_metadata"] and not target.is_used:
            target.depth, target.size = max(depth, target.depth), target.size + size
        elif not (target.kind == "other" and self.allowed):
            raise pickle.UnpicklingError("Unsupported attributes: only a state_dict has some, its _metadata")
        return at

    def new_object(self, at: int) -> int:
        args, function = self.stack.pop(), self.stack.pop()
        if function.items not in self.allowed:
            raise pickle.UnpicklingError(f"Unsupported class {function.items}")
        self.stack.append(self.other_of(args))
        return at


_STOP, _PUT, _GET, _INT1 = pickle.STOP[0], pickle.BINPUT[0], pickle.BINGET[0], pickle.BININT1[0]
_PUT_LONG, _GET_LONG = pickle.LONG_BINPUT[0], pickle.LONG_BINGET[0]
_unsigned = struct.Struct("<I").unpack_from
_STEPS = {
    pickle.PROTO: "protocol", pickle.MARK: "mark", pickle.BININT2: "int2", pickle.BININT: "int4", pickle.LONG1: "long1",
    pickle.BINFLOAT: "float8", pickle.BINUNICODE: "text", pickle.SHORT_BINSTRING: "short_text", pickle.EMPTY_LIST: "new_list",
    pickle.EMPTY_DICT: "new_dict", pickle.EMPTY_SET: "new_set", pickle.TUPLE: "new_tuple",
    pickle.TUPLE1: "tuple1", pickle.TUPLE2: "tuple2", pickle.TUPLE3: "tuple3", pickle.APPEND: "append",
    pickle.APPENDS: "appends", pickle.SETITEM: "set_item", pickle.SETITEMS: "set_items", pickle.GLOBAL: "code",
    pickle.REDUCE: "reduce", pickle.BUILD: "build", pickle.NEWOBJ: "new_object", pickle.BINPERSID: "storage",
}  # fmt: skip
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}
