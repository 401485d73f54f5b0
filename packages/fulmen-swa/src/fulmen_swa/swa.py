"""Stochastic weight averaging: the mean of the weights at the ends of the last epochs, at a rate that keeps them moving."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.optim.swa_utils import SWALR

from fulmen import ConfigurationError
from fulmen_swa.averaging import WeightAveraging
from fulmen_swa.weights import AveragedWeights

if TYPE_CHECKING:
    from fulmen import Module, Trainer
    from fulmen.contracts.data_hooks import Stage


class StochasticWeightAveraging(WeightAveraging):
    """Averages the weights at the ends of the last epochs.

    From the start epoch on, the learning rate goes to ``swa_lrs``, the module's own schedulers rest, and the weights at the
    end of each complete epoch, the last included, go into the mean. When the training ends, the mean takes the place of the
    weights, and batch normalisation gets its statistics in one more pass over the training data. Equal to PyTorch's
    ``AveragedModel``, ``SWALR`` and ``update_bn``, bit for bit. Works with one optimizer.

    Args:
        swa_lrs: The learning rate to go to; a list has one for each parameter group.
        swa_epoch_start: The n-th epoch is the first (int from 1), or this fraction of ``max_epochs`` (float from 0 to 1).
        annealing_epochs: In how many epochs the rate gets there; 0: at once.
        annealing_strategy: ``"cos"`` or ``"linear"``.
        avg_fn: ``avg_fn(average, weight, num_averaged) -> Tensor`` instead of the mean.
        device: Where the mean is kept; ``None``: beside the weights.
        use_buffers: Whether buffers are averaged too, instead of new statistics for batch normalisation.
        evaluate_averaged: Whether validations use the mean so far; with batch normalisation, with the training's statistics.
        save_averaged: Whether checkpoints made while averaging have the mean as their ``state_dict``.

    Raises:
        ConfigurationError: An option is out of its range.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", arXiv:1803.05407.
    """

    def __init__(
        self,
        swa_lrs: float | Sequence[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: Callable[..., Tensor] | None = None,
        device: torch.device | str | None = "cpu",
        use_buffers: bool = False,
        evaluate_averaged: bool = False,
        save_averaged: bool = False,
    ) -> None:
        super().__init__(device, use_buffers, evaluate_averaged, save_averaged)
        rates = [swa_lrs] if isinstance(swa_lrs, (int, float)) else list(swa_lrs)
        if not rates or not all(isinstance(rate, (int, float)) and rate > 0 for rate in rates):
            raise ConfigurationError(
                f"swa_lrs={swa_lrs!r} is not allowed; allowed: a number above 0, or one per parameter group"
            )
        whole = isinstance(swa_epoch_start, int)
        if isinstance(swa_epoch_start, bool) or not (swa_epoch_start >= 1 if whole else 0 <= swa_epoch_start <= 1):
            raise ConfigurationError(
                f"swa_epoch_start={swa_epoch_start!r} is not allowed; allowed: a whole number from 1, or a fraction from 0.0 "
                "to 1.0"
            )
        if not isinstance(annealing_epochs, int) or annealing_epochs < 0:
            raise ConfigurationError(f"annealing_epochs={annealing_epochs!r} is not allowed; allowed: a whole number from 0")
        if annealing_strategy not in ("cos", "linear"):
            raise ConfigurationError(f"annealing_strategy={annealing_strategy!r} is not allowed; allowed: 'cos', 'linear'")
        if avg_fn is not None and not callable(avg_fn):
            raise ConfigurationError(f"avg_fn={avg_fn!r} is not allowed; allowed: a function, or None for the mean")
        self.swa_lrs = swa_lrs if isinstance(swa_lrs, (int, float)) else rates
        self.swa_epoch_start, self.annealing_epochs = swa_epoch_start, annealing_epochs
        self.annealing_strategy: Literal["cos", "linear"] = annealing_strategy
        self.avg_fn = avg_fn
        self._scheduler: SWALR | None = None
        self._latest_epoch = -1  # the epoch whose weights were averaged last

    def make_weights(self, module: Module) -> AveragedWeights:
        """A new mean, which holds nothing yet."""
        return AveragedWeights(module, self.device, use_buffers=self.use_buffers, avg_fn=self.avg_fn)

    # ---- The run

    def setup(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Begin anew.

        Raises:
            ConfigurationError: Another callback averages too, or a fraction of endless epochs is asked for.
        """
        super().setup(trainer, module, stage)
        if stage != "fit":
            return
        self._scheduler, self._latest_epoch = None, -1
        if isinstance(self.swa_epoch_start, float) and trainer.max_epochs == -1:
            raise ConfigurationError(
                f"swa_epoch_start={self.swa_epoch_start} is a fraction of max_epochs, and this training has none; give the "
                "number of the epoch, or max_epochs"
            )

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Check the optimizer, and continue with the state of a checkpoint.

        Raises:
            ConfigurationError: There is not exactly one optimizer, or manual optimization advances schedulers itself.
        """
        if len(trainer.optimizers) != 1:
            raise ConfigurationError(
                "StochasticWeightAveraging works with one optimizer, and configure_optimizers gives "
                f"{len(trainer.optimizers)}; EMAWeightAveraging works with any number"
            )
        if trainer.lr_scheduler_configs and not module.automatic_optimization:
            raise ConfigurationError(
                "StochasticWeightAveraging sets the learning rate, and with manual optimization the schedulers are advanced in "
                "training_step: return none of them from configure_optimizers, or use EMAWeightAveraging"
            )
        state = self._loaded or {}
        super().on_fit_start(trainer, module)
        self._latest_epoch = int(state.get("latest_epoch", -1))
        if state.get("scheduler") is not None:
            self._take_over(trainer, state["scheduler"])

    def first_epoch(self, trainer: Trainer) -> int:
        """The index of the first epoch at whose end weights are averaged."""
        start = self.swa_epoch_start
        number = start if isinstance(start, int) else int(start * (trainer.max_epochs or 0))
        return max(0, number - 1)

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Take over the learning rate when the first epoch comes."""
        if self._scheduler is None and trainer.current_epoch >= self.first_epoch(trainer):
            self._take_over(trainer)

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Let a validation at the end of an epoch see the mean with that epoch."""
        if trainer.stage == "fit" and self.evaluate_averaged:
            self._average(trainer, module)
        super().on_validation_start(trainer, module)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Average, and advance the learning rate; not in an epoch that a stop cut short."""
        if self._scheduler is not None and trainer.progress.epoch_is_complete:
            self._average(trainer, module)
            self._scheduler.step()

    def _average(self, trainer: Trainer, module: Module) -> None:
        epoch = trainer.current_epoch
        if self._scheduler is None or not trainer.progress.epoch_is_complete or self._latest_epoch == epoch:
            return
        if self._weights is None:
            self._weights = self.make_weights(module)
        self._weights.update()
        self._latest_epoch = epoch

    def _take_over(self, trainer: Trainer, state: dict[str, Any] | None = None) -> None:
        for config in trainer.lr_scheduler_configs:
            config.suspended = True
        groups = trainer.optimizers[0].param_groups
        if isinstance(self.swa_lrs, list) and len(self.swa_lrs) != len(groups):
            raise ConfigurationError(
                f"swa_lrs has {len(self.swa_lrs)} rates, and the optimizer has {len(groups)} parameter groups; give one, or "
                "one each"
            )
        present = [group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"] for group in groups]
        rates: Any = self.swa_lrs
        self._scheduler = SWALR(trainer.optimizers[0], rates, self.annealing_epochs, self.annealing_strategy)
        if state is None:
            return
        self._scheduler.load_state_dict(state)
        # Making a scheduler sets the rate for its first epoch: put back what the checkpoint gave to the optimizer.
        for group, rate in zip(groups, present, strict=True):
            if isinstance(rate, Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate

    # ---- Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The mean, the latest epoch in it, and the schedule."""
        state = super().state_dict()
        if self._loaded is None and self._scheduler is not None:
            state |= {"latest_epoch": self._latest_epoch, "scheduler": plain(self._scheduler.state_dict())}
        return state


def plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's state without what is no data, such as the methods that PyTorch wraps."""
    return {name: value for name, value in state.items() if not callable(value)}
