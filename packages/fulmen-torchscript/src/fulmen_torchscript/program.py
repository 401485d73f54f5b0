"""``torch.export``: a whole-graph program, and the same compiled ahead of time."""

from __future__ import annotations

import io
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.export import Dim
from torch.utils import _pytree as pytree

from fulmen import ConfigurationError, Exporter
from fulmen.contracts.exporter import check_dynamic_shapes, example_arguments, local_path, replacing

if TYPE_CHECKING:
    from fulmen import Module


class TorchExportExporter(Exporter):
    """Exports with ``torch.export.export``.

    The program (``torch.export.load``) runs where PyTorch does, on any device. The package that AOTInductor compiles
    (``torch._inductor.aoti_load_package``) runs from C++ too, on the kind of device and processor it was made on.

    >>> path = module.to_torch_export("model.pt2", torch.zeros(2, 3))  # doctest: +SKIP
    """

    def export(
        self,
        module: Module,
        path: str | os.PathLike[str] | None,
        input_sample: Any = None,
        *,
        dynamic_shapes: Any = None,
        strict: bool = False,
        package: Literal["aoti"] | None = None,
        inductor_configs: dict[str, Any] | None = None,
        **unknown: Any,
    ) -> Any:
        """Write ``module`` to ``path``.

        Args:
            module: What to export; its ``forward`` is.
            path: The file, which must end in ``.pt2``; ``None``: return the ``torch.export.ExportedProgram``.
            input_sample: Arguments of ``forward``; ``None`` takes ``module.example_input_array``.
            dynamic_shapes: Which dimensions may have any size: ``{"x": {0: "batch"}}``, or as ``torch.export.export`` takes
                it; with a name alone, torch finds the limits. A dimension that torch cannot leave open is an error, except
                with ``Dim.AUTO``. Sizes of 1 in the sample are taken for fixed.
            strict: Whether to analyse the Python code of ``forward`` instead of running it; stricter about side effects.
            package: ``"aoti"``: compile with AOTInductor, which takes a minute and needs a C++ compiler.
            inductor_configs: Options of the compiler, as for ``torch._inductor.aoti_compile_and_package``.
            **unknown: An error.

        Returns:
            The file; without ``path``, the program.

        Raises:
            ConfigurationError: An option has a wrong value, or there is no compiler.
        """
        self.refuse(unknown)
        _check_options(path, package, inductor_configs)
        args, kwargs = example_arguments(module, input_sample)
        check_dynamic_shapes(module, dynamic_shapes, args, kwargs)
        shapes = pytree.tree_map(lambda dim: Dim.DYNAMIC if isinstance(dim, str) else dim, dynamic_shapes)
        program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=strict)
        if path is None:
            return program
        with replacing(path) as file:
            if package == "aoti":
                with warnings.catch_warnings():
                    for category in (DeprecationWarning, FutureWarning):  # torch's own calls of what it deprecates
                        warnings.simplefilter("ignore", category)
                    torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=inductor_configs)
            else:
                buffer = io.BytesIO()  # in memory first: where the disk is full, torch ends the process
                torch.export.save(program, buffer)
                file.write_bytes(buffer.getbuffer())
        return Path(path)


def _check_options(path: Any, package: Any, inductor_configs: Any) -> None:
    if package not in (None, "aoti"):
        raise ConfigurationError(f"TorchExportExporter package={package!r} is not allowed; allowed: 'aoti', None")
    if package is None and inductor_configs is not None:
        raise ConfigurationError(
            "TorchExportExporter inductor_configs has no effect without package='aoti'; add that, or leave it out"
        )
    if path is not None and local_path(path).suffix != ".pt2":
        raise ConfigurationError(f"TorchExportExporter writes files that end in .pt2, and not {os.fspath(path)!r}")
    if package == "aoti" and path is None:
        raise ConfigurationError("TorchExportExporter package='aoti' needs a path: the result is a file")
    if package == "aoti" and (compiler := missing_compiler()) is not None:
        raise ConfigurationError(
            f"TorchExportExporter package='aoti' needs a C++ compiler, and {compiler!r} is not there; install one "
            "(apt-get install g++), name it in the environment variable CXX, or leave package out to write the program"
        )


def missing_compiler() -> str | None:
    """The C++ compiler that AOTInductor would call and that does not exist; ``None``: it exists."""
    wanted = os.environ.get("CXX") or ("clang++" if shutil.which("clang++") and not shutil.which("g++") else "g++")
    return None if shutil.which(wanted) else wanted
