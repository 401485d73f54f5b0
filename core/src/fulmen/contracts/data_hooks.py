"""Where data comes from and how a batch reaches the device: shared by :class:`fulmen.Module` and :class:`fulmen.DataModule`.

Where both override the same method, the data module's wins.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from fulmen.batches import map_tensors as map_tensors
from fulmen.batches import move_to_device as move_to_device

Stage = Literal["fit", "validate", "test", "predict"]


class DataHooks:
    """The methods that prepare data, give loaders and move batches. All optional."""

    def prepare_data(self) -> None:
        """Download or preprocess. Runs once per node, in one process; do not set attributes here."""

    def setup(self, stage: Stage) -> None:
        """Build datasets. Runs on every rank, at the start of each run.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """

    def teardown(self, stage: Stage) -> None:
        """Undo :meth:`setup`. Runs on every rank, at the end of each run, also after an exception."""

    def train_dataloader(self) -> Any:
        """Any iterable of batches, or a mapping or sequence of them."""

    def val_dataloader(self) -> Any:
        """Any iterable of batches, or a sequence of them, visited one after the other."""

    def test_dataloader(self) -> Any:
        """Like :meth:`val_dataloader`, for ``trainer.test``."""

    def predict_dataloader(self) -> Any:
        """Like :meth:`val_dataloader`, for ``trainer.predict``."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch before it is moved, on the host. Returns the batch."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch of a type that fulmen does not know; others: ``return super()...``.

        Tensors, objects with ``.to(device)``, and dictionaries, lists, tuples and dataclasses of them are known.
        """
        return move_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch after it was moved, on the device: the place for augmentation there. Returns the batch."""
        return batch
