"""What all averages of weights have in common: when they take the place of the weights, and how they are saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fulmen import Callback, ConfigurationError
from fulmen_swa.batch_norm import has_batch_norm, update_batch_norm
from fulmen_swa.weights import AveragedWeights

if TYPE_CHECKING:
    from torch import Tensor

    from fulmen import Module, Trainer
    from fulmen.contracts.data_hooks import Stage

TRAINED = "current_model_state"
"""The key of the training's weights in a checkpoint whose ``state_dict`` holds the averages; Lightning calls it so too."""


class WeightAveraging(Callback):
    """Keeps an average of the weights beside those of the training. Subclasses say when and how it is updated.

    When the training ends, the averages take the place of the module's weights, and the statistics of batch normalisation
    are computed anew over the training data where there are such layers and their statistics are not averaged themselves. A
    run that is ended by a signal keeps the weights of the training. :meth:`trained_weights` and :meth:`averaged_weights` give
    either at any time.

    With several ranks, the buffers of rank 0 hold on all, as with DDP: they are sent to the others whenever the averages come
    into use, in validations and at the end. Checkpoints hold those of rank 0 at any time.

    Args:
        device: Where the averages are kept; ``None``: beside the weights. Another device than theirs costs a copy, and a
            wait for the device, at each update.
        use_buffers: Whether buffers are averaged too, such as the statistics of batch normalisation.
        evaluate_averaged: Whether validations inside a training use the averages.
        save_averaged: Whether checkpoints have the averages as their ``state_dict``. The training's weights are then under
            ``current_model_state``, from where a resumed run takes them.
    """

    def __init__(
        self,
        device: torch.device | str | None = None,
        use_buffers: bool = True,
        evaluate_averaged: bool = True,
        save_averaged: bool = True,
    ) -> None:
        self.device = None if device is None else torch.device(device)
        self.use_buffers = use_buffers
        self.evaluate_averaged, self.save_averaged = evaluate_averaged, save_averaged
        self._weights: AveragedWeights | None = None
        self._loaded: dict[str, Any] | None = None  # the state of a checkpoint, until the run is set up
        self._ended = False  # whether the averages have taken the place of the weights for good

    def make_weights(self, module: Module) -> AveragedWeights:
        """A new average of the weights of ``module``, which holds nothing yet."""
        return AveragedWeights(module, self.device, use_buffers=self.use_buffers)

    # ---- What people ask

    @property
    def num_averaged(self) -> int:
        """How many updates the average has seen."""
        return 0 if self._weights is None else self._weights.num_averaged

    def averaged_weights(self) -> dict[str, Tensor]:
        """The averages by name; empty before the first update. Copy what you want to keep: they change in place."""
        return self._weights.named(self._weights.averaged) if self._weights is not None and self.num_averaged else {}

    def trained_weights(self) -> dict[str, Tensor]:
        """The weights of the training by name, also after the averages took their place. They change in place too."""
        return {} if self._weights is None else self._weights.named(self._weights.trained)

    # ---- The run

    def setup(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Begin anew.

        Raises:
            ConfigurationError: Another callback averages weights too.
        """
        if stage != "fit":
            return
        others = [type(callback).__name__ for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]
        if len(others) > 1:
            raise ConfigurationError(
                f"{' and '.join(others)} would both put their averages in the place of the weights; keep one of them"
            )
        self._weights, self._loaded, self._ended = None, None, False

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Continue with the averages of a checkpoint."""
        if self._loaded is not None and "averaged" in self._loaded:
            self._weights = self.make_weights(module)
            self._weights.load_state_dict(self._loaded)
        self._loaded = None

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Put the averages in, for a validation inside a training."""
        if trainer.stage == "fit" and self.evaluate_averaged and self.num_averaged and not self._ended:
            self._put_averages(trainer)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Put the weights of the training back."""
        if trainer.stage == "fit" and not self._ended:
            self._put_back()

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Let the averages take the place of the weights."""
        self._end(trainer, module)

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        """The same where a resumed training had nothing left to do."""
        self._end(trainer, module)

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """Put the weights of the training back."""
        if trainer.stage == "fit" and not self._ended:
            self._put_back()

    def teardown(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Free the device; what was averaged stays."""
        if stage == "fit" and self._weights is not None:
            self._weights.to_host()

    def _put_averages(self, trainer: Trainer) -> None:
        if self._weights is not None and not self._weights.swapped:
            if trainer.world_size > 1:
                self._weights.share_buffers(trainer.runtime.broadcast)
            self._weights.swap()

    def _put_back(self) -> None:
        if self._weights is not None and self._weights.swapped:
            self._weights.swap()

    def _end(self, trainer: Trainer, module: Module) -> None:
        if self._ended or not self.num_averaged or trainer.interrupted:
            return
        self._put_averages(trainer)
        if has_batch_norm(module) and not self.use_buffers:
            try:
                done = update_batch_norm(trainer, module)
            except BaseException:
                self._put_back()
                raise
            if not done:  # a signal came
                return self._put_back()
        self._ended = True

    # ---- Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The averages and how many updates they are of; nothing before the first."""
        if self._loaded is not None:
            return self._loaded
        return self._weights.state_dict() if self._weights is not None and self.num_averaged else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep them until the module is known to be complete."""
        self._loaded = dict(state_dict)

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """Choose the weights of the file."""
        weights = self._weights
        if weights is None or weights.module is not module or not self.num_averaged:
            return
        trained, state = weights.named(weights.trained), checkpoint["state_dict"]
        trained = {name: trained.get(name, value) for name, value in state.items()}
        if not (self.save_averaged or self._ended):
            checkpoint["state_dict"] = trained
            return
        averaged = weights.named(weights.averaged)
        checkpoint["state_dict"] = {name: averaged.get(name, value) for name, value in state.items()}
        if "callbacks" in checkpoint:  # a file of weights only is not continued
            checkpoint[TRAINED] = trained

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """A training continues with its own weights; everything else uses the averages."""
        if trainer.stage == "fit" and TRAINED in checkpoint:
            checkpoint["state_dict"] = checkpoint[TRAINED]
