"""Change the number of batches per optimizer step from epoch to epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fulmen.contracts.callback import Callback
from fulmen.errors import ConfigurationError
from fulmen.optimizers import needs_closure

if TYPE_CHECKING:
    from fulmen.contracts.data_hooks import Stage
    from fulmen.contracts.module import Module
    from fulmen.trainer import Trainer


class GradientAccumulationScheduler(Callback):
    """Sets ``trainer.accumulate_grad_batches`` when an epoch starts.

    ``Trainer(accumulate_grad_batches={0: 1, 4: 8})`` does the same, and is also known to
    ``trainer.estimated_stepping_batches``.

    Args:
        scheduling: Epoch, counted from 0 -> batches per optimizer step from that epoch on; 1 before the first.

    Raises:
        ConfigurationError: ``scheduling`` is something else.
    """

    def __init__(self, scheduling: Mapping[int, int]) -> None:
        self.scheduling = check_scheduling(scheduling)

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """Batches per optimizer step in an epoch."""
        started = [start for start in self.scheduling if start <= epoch]
        return self.scheduling[max(started)] if started else 1

    def going_to_accumulate_grad_batches(self) -> bool:
        """Whether any epoch has several batches per step."""
        return any(count > 1 for count in self.scheduling.values())

    def setup(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Find contradictions before training.

        Raises:
            ConfigurationError: The trainer has a number too, or the module does its optimization itself.
        """
        if stage != "fit":
            return
        given = trainer.options.accumulate_grad_batches
        if given != 1:
            raise ConfigurationError(
                f"Trainer(accumulate_grad_batches={given!r}) and GradientAccumulationScheduler({self.scheduling!r}) both set "
                "the batches per optimizer step; drop one of them"
            )
        if not module.automatic_optimization:
            raise ConfigurationError(
                f"GradientAccumulationScheduler({self.scheduling!r}) has no effect, because {type(module).__name__} sets "
                "automatic_optimization = False: step the optimizer at every n-th batch in training_step instead"
            )

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Look at the optimizer, now that there is one.

        Raises:
            ConfigurationError: It cannot accumulate.
        """
        if self.going_to_accumulate_grad_batches() and trainer.optimizers and needs_closure(trainer.optimizers[0]):
            raise ConfigurationError(
                f"{type(trainer.optimizers[0]).__name__} evaluates each batch several times and cannot accumulate gradients "
                "over batches: drop GradientAccumulationScheduler"
            )

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Set the number for this epoch."""
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(trainer.current_epoch)


def check_scheduling(scheduling: Any) -> dict[int, int]:
    """A copy of ``scheduling``, which must map epochs from 0 to whole numbers from 1."""
    form = "give {epoch: batches per optimizer step}, such as {0: 1, 4: 8}"
    if not isinstance(scheduling, Mapping) or not scheduling:
        raise ConfigurationError(f"scheduling={scheduling!r} is not allowed; {form}")
    for epoch, count in scheduling.items():
        if type(epoch) is not int or epoch < 0:
            raise ConfigurationError(f"scheduling has the epoch {epoch!r}; epochs are whole numbers from 0: {form}")
        if type(count) is not int or count < 1:
            raise ConfigurationError(f"scheduling has {count!r} batches per step from epoch {epoch} on; at least 1 is needed")
    return dict(scheduling)
