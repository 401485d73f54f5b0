"""Train with fulmen on NVIDIA GPUs.

>>> from fulmen_cuda import CUDAAccelerator
>>> accelerator = CUDAAccelerator(matmul_precision="high")

Names are imported when they are first used: looking for plugins imports this package, and must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import attributes

if TYPE_CHECKING:
    from fulmen_cuda.accelerator import CUDAAccelerator
    from fulmen_cuda.devices import find_usable_cuda_devices

__all__ = ["CUDAAccelerator", "find_usable_cuda_devices"]

__getattr__, __dir__ = attributes(__name__, {"CUDAAccelerator": "accelerator", "find_usable_cuda_devices": "devices"})
