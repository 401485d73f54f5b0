"""Turn a trained module into a file that runs without fulmen."""

from __future__ import annotations

import inspect
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fulmen.batches import map_tensors
from fulmen.durable import flush_folder
from fulmen.errors import ConfigurationError, did_you_mean, listing
from fulmen.rng import isolated
from fulmen.storage import is_url

if TYPE_CHECKING:
    from fulmen.contracts.module import Module


class Exporter(ABC):
    """One format."""

    @abstractmethod
    def export(self, module: Module, path: str | os.PathLike[str] | None, input_sample: Any = None, **options: Any) -> Any:
        """Write ``module`` to ``path``. Use :func:`example_arguments` and :func:`replacing`.

        Args:
            module: In evaluation mode and without gradients; both are put back afterwards, by the caller.
            path: The file to write; ``None``: return the exported object, where the format has one.
            input_sample: Arguments of ``forward`` as a tensor, tuple or mapping; ``None`` takes
                ``module.example_input_array``.
            **options: Of the format. An unknown one is an error.

        Returns:
            The file that was written, as a ``Path``; without ``path``, the exported object.
        """

    def refuse(self, unknown: Mapping[str, Any]) -> None:
        """Raise :class:`~fulmen.ConfigurationError` for options that :meth:`export` does not name."""
        options = [name for name, p in inspect.signature(self.export).parameters.items() if p.kind is p.KEYWORD_ONLY]
        for name in unknown:
            raise ConfigurationError(
                f"{type(self).__name__} has no option {name!r}{did_you_mean(name, options)}; it has: {listing(options)}"
            )


@contextmanager
def ready_to_export(module: Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule is in exactly the mode it was in.

    Random numbers drawn meanwhile are not missing from a training that goes on.
    """
    modes = [(part, part.training) for part in module.modules()]
    ours: list[Any] = [part for part, _ in modes if hasattr(part, "_exporting")]
    try:
        with torch.no_grad(), isolated():
            module.eval()
            for part in ours:
                part._exporting = True
            yield
    finally:
        for part, training in modes:
            part.training = training
        for part in ours:
            vars(part).pop("_exporting", None)


def example_arguments(module: Module, input_sample: Any = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for ``module.forward``, on the module's device.

    Args:
        module: Supplies ``example_input_array`` where there is no sample.
        input_sample: A tensor or any other single argument, a tuple of arguments, or a mapping of keyword arguments.

    Raises:
        ConfigurationError: There is no sample.
    """
    sample = module.example_input_array if input_sample is None else input_sample
    if sample is None:
        raise ConfigurationError(
            f"exporting {type(module).__name__} needs an example of its input: pass input_sample=..., or set "
            "self.example_input_array in the module (a tensor, a tuple of arguments, or a mapping of keyword arguments)"
        )
    sample = map_tensors(sample, lambda tensor: tensor.to(module.device))
    if isinstance(sample, Mapping):
        return (), dict(sample)
    return (tuple(sample) if isinstance(sample, tuple) else (sample,)), {}


def check_dynamic_shapes(module: Module, shapes: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Whether the keys of ``dynamic_shapes``, where it is a mapping, are arguments of ``forward``.

    Args:
        module: What is exported.
        shapes: The option, as ``torch.export.export`` takes it.
        args: The positional arguments of the sample.
        kwargs: The keyword arguments of the sample.

    Raises:
        ConfigurationError: One of them is not.
    """
    if not isinstance(shapes, Mapping):
        return
    names = [*inspect.signature(module.forward).bind(*args, **kwargs).arguments, *kwargs]
    for key in shapes:
        if key not in names:
            raise ConfigurationError(
                f"dynamic_shapes has the key {key!r}{did_you_mean(key, names)}; keys are the names of forward's arguments, "
                f"and {type(module).__name__}.forward gets: {listing(dict.fromkeys(names))}"
            )


def local_path(path: Any) -> Path:
    """The file to export to.

    Raises:
        ConfigurationError: It is a URL or an open file.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigurationError(f"cannot export to {path!r}: only to a local path; read the bytes of the file that is written")
    if is_url(path):
        raise ConfigurationError(f"cannot export to {path}: only to a local path; copy the file from there")
    return Path(path)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write the file of this path in the block; it takes its place, flushed to disk, when the block ends without an error.

    The path in the block has the same name, in a temporary folder beside it. What else is written to that folder comes
    along, before it. After an error, everything is what it was. Folders are made.

    Raises:
        ConfigurationError: ``path`` is a URL or an open file.
    """
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder:
        yield Path(folder) / path.name
        for file in sorted(Path(folder).iterdir(), key=lambda each: each.name == path.name):
            descriptor = os.open(file, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(file, path.with_name(file.name))
    flush_folder(path.parent)
