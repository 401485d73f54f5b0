"""Where a process stands among the processes of a job: torchrun, SLURM, or a launcher of our own."""

from __future__ import annotations

from abc import ABC, abstractmethod


class ClusterEnvironment(ABC):
    """What the scheduler or launcher says about this process."""

    @staticmethod
    @abstractmethod
    def detect() -> bool:
        """Whether this process runs in such an environment. Reads environment variables only."""

    @property
    @abstractmethod
    def creates_processes_externally(self) -> bool:
        """Whether the processes exist already (torchrun, srun), so that no launcher has to make them."""

    @property
    @abstractmethod
    def main_address(self) -> str:
        """The host name or address of rank 0."""

    @property
    @abstractmethod
    def main_port(self) -> int:
        """The TCP port on which rank 0 listens."""

    @abstractmethod
    def world_size(self) -> int:
        """How many processes take part."""

    @abstractmethod
    def global_rank(self) -> int:
        """The index of this process among all, from 0."""

    @abstractmethod
    def local_rank(self) -> int:
        """The index of this process among those on its node."""

    @abstractmethod
    def node_rank(self) -> int:
        """The index of this node."""

    def requeue(self) -> bool:
        """Have the scheduler start this job again, where it can; whether it was asked to.

        Called on rank 0 after SIGUSR1 has stopped a training and its state is on the disk.
        """
        return False

    def teardown(self) -> None:
        """Undo changes to the process environment."""
