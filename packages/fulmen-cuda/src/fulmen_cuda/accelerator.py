"""NVIDIA GPUs, and those of AMD where torch is built for ROCm, which uses the same names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from fulmen import Accelerator, ConfigurationError
from fulmen_cuda.devices import VISIBLE, indices_of, names_in, visible_names
from fulmen_cuda.prefetch import SideStream, pinned_batch, prefetched

MATMUL_PRECISIONS = ("highest", "high", "medium")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIGURES = {
    "memory_allocated_bytes": "allocated_bytes.all.current",
    "memory_allocated_peak_bytes": "allocated_bytes.all.peak",
    "memory_reserved_bytes": "reserved_bytes.all.current",
    "memory_reserved_peak_bytes": "reserved_bytes.all.peak",
    "memory_allocation_retries": "num_alloc_retries",
    "out_of_memory_errors": "num_ooms",
}
"""Name among our statistics -> name among those of PyTorch's allocator."""


class CUDAAccelerator(Accelerator):
    """GPUs through CUDA.

    What it switches in PyTorch it puts back when the run ends. Asking what there is starts no CUDA context.

    Args:
        matmul_precision: How single-precision matrices are multiplied: ``"highest"`` in full, ``"high"`` in TF32,
            ``"medium"`` in bfloat16. ``None`` leaves PyTorch's setting. See :func:`torch.set_float32_matmul_precision`.
        cudnn_tf32: Whether convolutions and recurrent layers of cuDNN may use TF32. ``None`` leaves PyTorch's setting.
        prefetch_batches: How many batches are copied to the device before they are used, where that leaves no trace
            after a resume: with a ``DataLoader`` that has workers, or a list of batches. Others are copied when they are
            asked for. In both cases the copy runs beside the computation, on a stream of its own. 0: copies and
            computation take turns. Costs the device memory of as many batches.
        pin_memory: Copy batches into pinned memory before they go to the device, in this process. A ``DataLoader`` with
            ``pin_memory=True`` does it better, in a thread; this is for other loaders.

    Raises:
        ConfigurationError: An argument has a wrong value.
    """

    name = "cuda"

    def __init__(
        self,
        matmul_precision: Literal["highest", "high", "medium"] | None = None,
        cudnn_tf32: bool | None = None,
        prefetch_batches: int = 1,
        pin_memory: bool = False,
    ) -> None:
        if matmul_precision is not None and matmul_precision not in MATMUL_PRECISIONS:
            raise ConfigurationError(
                f"matmul_precision={matmul_precision!r} is not allowed; allowed: 'highest', 'high' (TF32), 'medium' "
                "(bfloat16), and None"
            )
        if isinstance(prefetch_batches, bool) or not isinstance(prefetch_batches, int) or prefetch_batches < 0:
            raise ConfigurationError(f"prefetch_batches={prefetch_batches!r} is not allowed; allowed: a whole number from 0")
        self.matmul_precision, self.cudnn_tf32 = matmul_precision, cudnn_tf32
        self.prefetch_batches, self.pin_memory = prefetch_batches, pin_memory
        self._undo: list[tuple[str, Any]] = []  # what to put back, the latest change last

    # ---- What there is

    @staticmethod
    def is_available() -> bool:
        """Whether a GPU is visible, by the driver's management library where it is there: no context is started."""
        return torch.cuda.device_count() > 0

    @staticmethod
    def num_available() -> int:
        """How many GPUs this process may use: those in ``CUDA_VISIBLE_DEVICES``, or all."""
        return torch.cuda.device_count()

    @staticmethod
    def advice() -> str:
        """Why there may be none."""
        if torch.version.cuda is None and torch.version.hip is None:
            return f"torch {torch.__version__} is built without CUDA: install a build with it (pytorch.org/get-started)"
        if VISIBLE in os.environ:
            return f"{VISIBLE}={os.environ[VISIBLE]!r} names none: unset it, or name one that `nvidia-smi -L` lists"
        return "see whether `nvidia-smi` lists it; a container needs --gpus"

    def parse_devices(self, devices: int | str | Sequence[int | str]) -> list[int]:
        """The device indices that ``devices`` asks for, among the visible GPUs.

        Args:
            devices: ``"auto"`` or ``-1`` for all, a count (``2`` or ``"2"``), indices (``[1, 3]`` or ``"1,3"``), or names in
                ``CUDA_VISIBLE_DEVICES`` (``"GPU-..."``, ``"MIG-..."``).

        Raises:
            ConfigurationError: It is none of these, or asks for more than there are.
        """
        if (names := names_in(devices)) is not None:
            return indices_of(names)
        try:
            return super().parse_devices(devices)  # type: ignore[arg-type]
        except ConfigurationError as error:
            limit = f"; {VISIBLE}={','.join(visible_names())} hides others" if visible_names() else ""
            raise ConfigurationError(f"{error}{limit}. To use what is there: devices='auto'") from None

    # ---- A run

    def setup_device(self, device: torch.device) -> None:
        """Make ``device`` the current one, and set how matrices are multiplied."""
        torch.cuda.set_device(device)
        self._set_precision()

    def _set_precision(self) -> None:
        if self.matmul_precision is not None:
            self._undo.append(("matmul", torch.get_float32_matmul_precision()))
            torch.set_float32_matmul_precision(self.matmul_precision)
        if self.cudnn_tf32 is not None:
            self._set_cudnn("allow_tf32", self.cudnn_tf32)

    def configure(self, *, deterministic: bool | str | None, benchmark: bool | None) -> None:
        """Set the switches of cuDNN and cuBLAS for a run.

        Raises:
            ConfigurationError: Both are asked for: which algorithm is fastest differs from one time to the next.
        """
        if deterministic and benchmark:
            raise ConfigurationError(
                f"deterministic={deterministic!r} and benchmark=True contradict each other: the algorithms that a benchmark "
                "chooses can differ between runs; drop one"
            )
        if deterministic is not None:
            self._set_cudnn("deterministic", bool(deterministic))
            benchmark = False if deterministic else benchmark
        if deterministic and WORKSPACE not in os.environ:
            self._undo.append((WORKSPACE, None))
            os.environ[WORKSPACE] = ":4096:8"  # cuBLAS reads it when it starts; without it, sums may differ between streams
        if benchmark is not None:
            self._set_cudnn("benchmark", benchmark)

    def _set_cudnn(self, name: str, value: bool) -> None:
        self._undo.append((name, getattr(torch.backends.cudnn, name)))
        setattr(torch.backends.cudnn, name, value)

    def teardown(self) -> None:
        """Put back what was switched, and give memory that is not used any more to others."""
        while self._undo:
            name, value = self._undo.pop()
            if name == "matmul":
                torch.set_float32_matmul_precision(value)
            elif name == WORKSPACE:
                os.environ.pop(WORKSPACE, None)
            else:
                setattr(torch.backends.cudnn, name, value)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # synchronises: the run is over

    def batches(self, batches: Iterator[Any], move: Callable[[Any], Any], ahead: bool) -> Iterator[Any]:
        """``batches`` copied beside the computation; see ``prefetch_batches``."""
        if not self.prefetch_batches:
            return map(move, map(pinned_batch, batches) if self.pin_memory else batches)
        side = SideStream(move, self.pin_memory)
        return prefetched(batches, side.start, side.finish, self.prefetch_batches if ahead else 0)

    # ---- Figures and random numbers

    def stats(self, device: torch.device) -> dict[str, float]:
        """What PyTorch's allocator knows about ``device``: bytes now and at most, and failures. The device is not asked."""
        return figures(torch.cuda.memory_stats(device))

    def random_state(self) -> dict[str, Any]:
        """The states of the generators of all visible devices; empty where CUDA was not used."""
        return {"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_initialized() else {}

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Put back the states of the devices that are here too. A state that was made without GPUs changes nothing."""
        for index, each in enumerate(state.get("cuda", [])[: self.num_available()]):
            torch.cuda.set_rng_state(each.cpu(), index)

    def synchronize(self, device: torch.device) -> None:
        """Wait until ``device`` has done all its work."""
        torch.cuda.synchronize(device)


def figures(stats: Mapping[str, Any]) -> dict[str, float]:
    """Those of PyTorch's statistics that matter, under plain names."""
    return {name: stats[key] for name, key in FIGURES.items() if key in stats}
