"""Several loaders as one: nested in dictionaries, lists and tuples, and combined in one of four modes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

from torch.utils.data import DataLoader

from fulmen.errors import ConfigurationError, ModuleError

Mode = Literal["min_size", "max_size_cycle", "max_size", "sequential"]
Item = tuple[Any, int, int]
_CONTAINERS = (list, tuple, Mapping)


class CombinedLoader:
    """Iterates over several loaders together and yields ``(batch, batch_idx, dataloader_idx)``.

    Args:
        iterables: Loaders in dictionaries, lists or tuples, nested as deep as you like; batches have the same shape.
        mode: ``"min_size"`` ends with the shortest loader; ``"max_size_cycle"`` ends with the longest and starts the
            others again; ``"max_size"`` ends with the longest and gives ``None`` for the others; ``"sequential"`` visits
            one after the other.

    >>> list(CombinedLoader({"a": range(3), "b": range(2)}, "max_size"))[-1]
    ({'a': 2, 'b': None}, 2, 0)
    """

    def __init__(self, iterables: Any, mode: Mode = "min_size") -> None:
        if mode not in get_args(Mode):
            raise ConfigurationError(f"mode={mode!r} is not one of {', '.join(get_args(Mode))}")
        self.iterables, self.mode = iterables, mode
        self.leaves: list[Any] = list(_flatten(iterables, top=True))

    def __iter__(self) -> Iterator[Item]:
        return self.combine([iter(leaf) for leaf in self.leaves], lambda index: iter(self.leaves[index]))

    def __len__(self) -> int:
        return self.combined_length([len(leaf) for leaf in self.leaves])

    def combined_length(self, lengths: list[int]) -> int:
        """How many batches loaders of these lengths give together."""
        if self.mode == "sequential":
            return sum(lengths)
        return (min if self.mode == "min_size" else max)(lengths, default=0)

    def combine(
        self, iterators: list[Iterator[Any]], restart: Callable[[int], Iterator[Any]], start: int = 0
    ) -> Iterator[Item]:
        """Combine running iterators, one for each of :attr:`leaves`.

        Args:
            iterators: They may stand anywhere in their loaders.
            restart: Gives a new iterator for the loader of that index.
            start: The index of the first batch.
        """
        if self.mode == "sequential":
            return self._sequential(iterators)
        return self._together(iterators, restart, start)

    def _sequential(self, iterators: list[Iterator[Any]]) -> Iterator[Item]:
        for dataloader_idx, iterator in enumerate(iterators):
            for batch_idx, batch in enumerate(iterator):
                yield batch, batch_idx, dataloader_idx

    def _together(self, iterators: list[Iterator[Any]], restart: Callable[[int], Iterator[Any]], start: int) -> Iterator[Item]:
        ended = [False] * len(iterators)
        batch_idx = start
        while iterators:
            values = []
            for index, iterator in enumerate(iterators):
                value = next(iterator, _END)
                if value is _END:
                    ended[index] = True
                    if self.mode == "min_size" or all(ended):
                        return
                    value = None
                    if self.mode == "max_size_cycle":
                        iterators[index] = restart(index)
                        value = next(iterators[index], _END)
                        if value is _END:
                            raise ModuleError(f"loader {index} of a combination gave no batch when it was started again")
                values.append(value)
            yield _rebuild(self.iterables, iter(values), top=True), batch_idx, 0
            batch_idx += 1


_END = object()


def is_collection(value: Any) -> bool:
    """Whether ``value`` is a collection of loaders rather than one loader.

    A list of batches is a loader like any other iterable; a list, tuple or dictionary is a collection where everything in
    it is a loader and at least one is no list. To combine plain lists, wrap them: ``CombinedLoader([[...], [...]])``.
    """
    if not isinstance(value, _CONTAINERS) or not value:
        return False
    children = list(value.values() if isinstance(value, Mapping) else value)
    return all(_is_loader(child) or is_collection(child) for child in children)


def _is_loader(value: Any) -> bool:
    if isinstance(value, (DataLoader, CombinedLoader)):
        return True
    is_data = isinstance(value, (*_CONTAINERS, str, bytes)) or hasattr(value, "shape")
    return isinstance(value, Iterable) and not is_data


def _flatten(value: Any, top: bool = False) -> Iterator[Any]:
    if (top and isinstance(value, _CONTAINERS)) or is_collection(value):
        for child in value.values() if isinstance(value, Mapping) else value:
            yield from _flatten(child)
    else:
        yield value


def _rebuild(structure: Any, values: Iterator[Any], top: bool = False) -> Any:
    if not ((top and isinstance(structure, _CONTAINERS)) or is_collection(structure)):
        return next(values)
    if isinstance(structure, Mapping):
        return {key: _rebuild(child, values) for key, child in structure.items()}
    children = [_rebuild(child, values) for child in structure]
    if hasattr(structure, "_fields"):
        return type(structure)(*children)
    return type(structure)(children)
