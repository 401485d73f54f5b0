"""TPUs, and whatever else torch_xla knows."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch

from fulmen import Accelerator, ConfigurationError
from fulmen_xla import library

DEVICE = "PJRT_DEVICE"


class XLAAccelerator(Accelerator):
    """XLA devices through torch_xla: TPUs, or with ``PJRT_DEVICE=CPU`` the processor, for trying things out.

    Use it with strategy ``"xla"``, which ``"auto"`` means here: it decides where a graph ends.
    """

    name = "xla"
    default_strategy = "xla"
    supports_float64 = False  # TPUs emulate it, slowly
    supports_inference_mode = False

    # ---- What there is

    @staticmethod
    def is_available() -> bool:
        """Whether torch_xla is installed and has a device: one that ``PJRT_DEVICE`` names, or a TPU."""
        return XLAAccelerator.num_available() > 0

    @staticmethod
    def num_available() -> int:
        """How many devices this machine has. Starts no device, after which processes could not be started any more."""
        if importlib.util.find_spec("torch_xla") is None:
            return 0
        kind = os.environ.get(DEVICE, "").upper()
        if kind in ("", "TPU"):
            return library.tpus()
        return int(os.environ.get(f"{kind}_NUM_DEVICES", "1"))

    @staticmethod
    def advice() -> str:
        """Why there may be none."""
        if importlib.util.find_spec("torch_xla") is None:
            return "torch_xla is not installed: pip install torch~=2.9.0 torch_xla[tpu]~=2.9.0"
        return f"there is no TPU; {DEVICE}=CPU tries things out on the processor"

    def parse_devices(self, devices: int | str | Sequence[int]) -> list[int]:
        """The device indices that ``devices`` asks for: one device, or all.

        Raises:
            ConfigurationError: It is something else, or others than there are: torch_xla starts a process for each device
                that the machine shows.
        """
        wanted = super().parse_devices(devices)
        found = self.num_available()
        if len(wanted) not in (1, found):
            raise ConfigurationError(
                f"devices={devices!r} asks for {len(wanted)} of {found} XLA devices, and allowed are one or all; to use some, "
                "show only those to the program: TPU_VISIBLE_CHIPS, or CPU_NUM_DEVICES with PJRT_DEVICE=CPU"
            )
        return wanted

    # ---- A run

    def setup_device(self, device: torch.device) -> None:
        """Seed the device's generator from the host's, differently on each rank."""
        seed = int(torch.randint(2**31, ()))
        library.root().manual_seed(seed + library.runtime().global_ordinal(), device=str(device))

    def configure(self, *, deterministic: bool | str | None, benchmark: bool | None) -> None:
        """Nothing to switch: XLA compiles one program for a graph, and uses it each time."""

    # ---- Figures and random numbers

    def stats(self, device: torch.device) -> dict[str, float]:
        """Bytes in use and at most, where the device tells; how many graphs were compiled, and how often one was ready."""
        metrics = library.metrics()
        compiled = metrics.counter_value("UncachedCompile") or 0
        found: dict[str, float] = {"graphs_compiled": compiled, "graphs_reused": metrics.counter_value("CachedCompile") or 0}
        try:
            memory: dict[str, Any] = dict(library.model().get_memory_info(device))
        except RuntimeError:  # the processor does not tell
            return found
        names = {"bytes_used": "memory_allocated_bytes", "peak_bytes_used": "memory_allocated_peak_bytes"}
        return {**found, **{name: memory[key] for key, name in names.items() if key in memory}}

    def random_state(self) -> dict[str, Any]:
        """The state of the generator of this process's device: one number."""
        return {"xla": library.model().get_rng_state()}

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Put it back. A state that was made without XLA changes nothing."""
        if "xla" in state:
            library.model().set_rng_state(state["xla"])

    def synchronize(self, device: torch.device) -> None:
        """Run what is waiting, and wait until it is done."""
        library.end_graph(wait=True)
