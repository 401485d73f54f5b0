"""Small real trainings: modules, batches and a trainer that writes nothing."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fulmen import Module, Trainer

Trained = TypeVar("Trained", bound=nn.Module)

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def quiet(**options: Any) -> Trainer:
    """A trainer that writes and prints nothing."""
    return Trainer(**{**QUIET, **options})


def batches(count: int = 8, size: int = 4, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """``count`` pairs of inputs [size, 3] and targets [size, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 3, generator=generator), torch.randn(size, 1, generator=generator)) for _ in range(count)]


def network(seed: int = 0) -> nn.Module:
    """The same weights for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 1))


def mse(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of a batch."""
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def without_dropout(module: Trained) -> Trained:
    """``module`` with its dropout switched off, so that devices, processes and formats can be compared."""
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return module


class Regression(Module):
    """Trains :func:`network` and keeps its losses."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = network()
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        """The prediction [N, 1] for ``x`` [N, 3]."""
        prediction: Tensor = self.net(x)
        return prediction

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss of a batch, which is kept in ``losses``."""
        loss = mse(self.net, batch)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        """SGD with momentum, whose state a resume has to restore."""
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


class Validated(Regression):
    """Also logs, validates, tests and predicts."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss, also logged as ``train_loss``."""
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val_loss``."""
        self.log("val_loss", mse(self.net, batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``test_loss``."""
        self.log("test_loss", mse(self.net, batch))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """The prediction for the inputs of the batch."""
        return self(batch[0])


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether all parameters are equal, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
