"""What is wrong with a checkpoint that is readable and is not like those that fulmen writes: the file, the key, the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from fulmen.errors import CheckpointError, FulmenError

_NUMBERS = (bool, int, float, torch.Tensor)
_KINDS: tuple[tuple[tuple[type, ...], str], ...] = (
    ((Mapping,), "a dictionary"), ((list, tuple), "a list"), ((str,), "text"), (_NUMBERS, "a number"),
)  # fmt: skip


def check_like(saved: Any, example: Any, source: str, key: str = "", complete: bool = False) -> None:
    """Raise where ``saved`` is of another kind than ``example``, at any depth. What is ``None`` in one of them may be anything.

    Args:
        saved: A part of a checkpoint.
        example: What would be saved now, or something like it. In a list, all items are like its first.
        source: The path of the checkpoint.
        key: Which part it is.
        complete: Whether every key of the example must be there.

    Raises:
        CheckpointError: It names the file and the key.
    """
    kinds, name = _kind_of(example)
    if saved is None or example is None:
        return
    is_alike = isinstance(saved, kinds) and (not _is_wide(saved) or isinstance(example, torch.Tensor))
    if not is_alike:
        raise CheckpointError(f"{source} cannot be used: {key} is a {type(saved).__name__}, and must be {name}")
    inside: Any = saved
    if isinstance(example, Mapping):
        for inner, value in example.items():
            where = f"{key}.{inner}" if key else str(inner)
            if inner in inside:
                check_like(inside[inner], value, source, where, complete)
            elif complete:
                raise CheckpointError(f"{source} cannot be used: it has no {where}")
    elif isinstance(example, (list, tuple)) and example:
        for index, item in enumerate(inside):
            check_like(item, example[0], source, f"{key}[{index}]", complete)


def _is_wide(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() != 1


def _kind_of(example: Any) -> tuple[tuple[type, ...], str]:
    return next((kind for kind in _KINDS if isinstance(example, kind[0])), ((object,), "anything"))


@contextmanager
def restoring(source: str, key: str) -> Iterator[None]:
    """Around the code that takes over a part of a checkpoint: whatever it raises is the fault of that part."""
    try:
        yield
    except FulmenError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{source} cannot be restored: what it holds as {key} does not do ({text})") from error
