"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fulmen import ConfigurationError
from fulmen_swa.averaging import WeightAveraging
from fulmen_swa.weights import AveragedWeights

if TYPE_CHECKING:
    from fulmen import Module, Trainer


class EMAWeightAveraging(WeightAveraging):
    """After each optimizer step, ``average = decay * average + (1 - decay) * weights``.

    Equal to ``torch.optim.swa_utils.AveragedModel`` with ``get_ema_multi_avg_fn(decay)``, bit for bit. The first update copies
    the weights. Never waits for the device, unless the averages are kept on another one.

    Args:
        device: Where the averages are kept; ``None``: beside the weights.
        use_buffers: Whether buffers are averaged too. If not, they are those of the training, and batch normalisation gets
            new statistics at the end.
        decay: From 0 (the latest weights) to 1 (the first ones).
        update_every_n_steps: Update after the steps 0, n, 2n, ... Several optimizers that step in one batch are one step.
        update_starting_at_step: The index of the first step after which to update; ``None``: from the beginning.
        update_starting_at_epoch: The index of the first epoch in which to update; ``None``: from the beginning.
        evaluate_averaged: Whether validations inside a training use the averages.
        save_averaged: Whether checkpoints have the averages as their ``state_dict``, and the training's weights beside them.

    Raises:
        ConfigurationError: An option is out of its range.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    """

    def __init__(
        self,
        device: torch.device | str | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        evaluate_averaged: bool = True,
        save_averaged: bool = True,
    ) -> None:
        super().__init__(device, use_buffers, evaluate_averaged, save_averaged)
        if not 0 <= decay <= 1:
            raise ConfigurationError(f"decay={decay!r} is not allowed; allowed: a number from 0 to 1")
        if not isinstance(update_every_n_steps, int) or update_every_n_steps < 1:
            raise ConfigurationError(
                f"update_every_n_steps={update_every_n_steps!r} is not allowed; allowed: a whole number from 1"
            )
        starts = {"update_starting_at_step": update_starting_at_step, "update_starting_at_epoch": update_starting_at_epoch}
        for name, value in starts.items():
            if value is not None and (not isinstance(value, int) or value < 0):
                raise ConfigurationError(f"{name}={value!r} is not allowed; allowed: a whole number from 0, or None")
        self.decay, self.update_every_n_steps = decay, update_every_n_steps
        self.update_starting_at_step, self.update_starting_at_epoch = update_starting_at_step, update_starting_at_epoch
        self._updates = 0  # steps at the latest look

    def make_weights(self, module: Module) -> AveragedWeights:
        """A new average, which holds nothing yet."""
        average: Any = get_ema_multi_avg_fn(self.decay)
        return AveragedWeights(module, self.device, use_buffers=self.use_buffers, multi_avg_fn=average)

    def should_update(self, step: int, epoch: int) -> bool:
        """Whether to update after the step of this index. Override for a rule of your own."""
        if step < (self.update_starting_at_step or 0) or epoch < (self.update_starting_at_epoch or 0):
            return False
        return step % self.update_every_n_steps == 0

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Begin an average, or continue that of a checkpoint, with a step that it was saved before."""
        self._updates = int((self._loaded or {}).get("updates", trainer.progress.updates))
        super().on_fit_start(trainer, module)
        if self._weights is None:
            self._weights = self.make_weights(module)
        self._follow(trainer)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update after a step."""
        self._follow(trainer)

    def _follow(self, trainer: Trainer) -> None:
        progress, before = trainer.progress, self._updates
        self._updates = progress.updates
        if before != progress.updates and self._weights and self.should_update(progress.updates - 1, progress.epoch):
            self._weights.update()

    def state_dict(self) -> dict[str, Any]:
        """The averages, and the steps that were looked at."""
        return {"updates": self._updates, **super().state_dict()}
