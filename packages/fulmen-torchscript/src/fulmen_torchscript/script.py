"""TorchScript: for runtimes that still need it."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from fulmen import ConfigurationError, Exporter
from fulmen.contracts.exporter import example_arguments, replacing
from fulmen.errors import warn

if TYPE_CHECKING:
    from fulmen import Module


class TorchScriptExporter(Exporter):
    """Exports with ``torch.jit.script`` or ``torch.jit.trace``, which PyTorch has deprecated: prefer ``"torch_export"``.

    Warns with code ``torchscript-deprecated`` each time.

    >>> scripted = module.to_torchscript()  # doctest: +SKIP
    """

    def export(
        self,
        module: Module,
        path: str | os.PathLike[str] | None,
        input_sample: Any = None,
        *,
        method: Literal["script", "trace"] = "script",
        strict: bool = True,
        check_trace: bool = True,
        **unknown: Any,
    ) -> Any:
        """Write ``module`` to ``path``.

        Args:
            module: What to export; its ``forward`` is, and methods marked ``@torch.jit.export`` are with ``"script"``.
            path: The file; ``None``: return the ``torch.jit.ScriptModule``.
            input_sample: Arguments of ``forward``; ``None`` takes ``module.example_input_array``. Only for ``"trace"``.
            method: ``"script"`` compiles the source, with its branches; ``"trace"`` records what happens to the sample.
            strict: Of ``torch.jit.trace``: lists and dictionaries among the outputs are errors.
            check_trace: Of ``torch.jit.trace``: trace a second time and compare.
            **unknown: An error.

        Returns:
            The file; without ``path``, the scripted module.

        Raises:
            ConfigurationError: An option has a wrong value.
        """
        self.refuse(unknown)
        if method not in ("script", "trace"):
            raise ConfigurationError(f"TorchScriptExporter method={method!r} is not allowed; allowed: 'script', 'trace'")
        if method == "script" and not (strict and check_trace):
            name = "check_trace" if strict else "strict"
            raise ConfigurationError(f"TorchScriptExporter {name}=False has no effect with method='script'; leave it out")
        warn(
            "torchscript-deprecated",
            "TorchScript is deprecated in PyTorch and no longer developed; torch.export replaces it: "
            'module.to_torch_export("model.pt2", input_sample) writes a program, and package="aoti" compiles it',
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is", DeprecationWarning)
            warnings.filterwarnings("ignore", "The TorchScript type system doesn't support instance-level", UserWarning)
            if method == "script":
                scripted = torch.jit.script(module)
            else:
                args, kwargs = example_arguments(module, input_sample)
                inputs = {"example_kwarg_inputs": kwargs} if kwargs else {"example_inputs": args}
                scripted = torch.jit.trace(module, **inputs, strict=strict, check_trace=check_trace)
            if path is None:
                return scripted
            with replacing(path) as file:
                buffer = io.BytesIO()  # in memory first: where the disk is full, torch ends the process
                torch.jit.save(scripted, buffer)
                file.write_bytes(buffer.getbuffer())
        return Path(path)
