"""A data set with everything around it, kept apart from the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.data import DataLoader, Dataset, IterableDataset

from fulmen.contracts.data_hooks import DataHooks
from fulmen.contracts.hyperparameters import HasHyperparameters, of_class, rebuild
from fulmen.likeness import check_like, restoring
from fulmen.storage import read_checkpoint

if TYPE_CHECKING:
    import os

    from fulmen.trainer import Trainer

Self = TypeVar("Self", bound="DataModule")


class DataModule(DataHooks, HasHyperparameters):
    """Override the methods of :class:`~fulmen.contracts.data_hooks.DataHooks` that you need.

    >>> class Digits(DataModule):
    ...     def train_dataloader(self): return [1, 2, 3]
    >>> Digits().train_dataloader()
    [1, 2, 3]
    """

    trainer: Trainer | None = None
    """The trainer of the current or latest run; set when a run starts."""

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint, as plain data; kept under the class's qualified name."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""

    def on_exception(self, exception: BaseException) -> None:
        """A run failed. Runs before :meth:`teardown`."""

    @classmethod
    def from_datasets(
        cls: type[Self],
        train_dataset: Dataset[Any] | Sequence[Dataset[Any]] | Mapping[str, Dataset[Any]] | None = None,
        val_dataset: Dataset[Any] | Sequence[Dataset[Any]] | None = None,
        test_dataset: Dataset[Any] | Sequence[Dataset[Any]] | None = None,
        predict_dataset: Dataset[Any] | Sequence[Dataset[Any]] | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> Self:
        """A data module that serves these data sets; the training data are shuffled.

        Args:
            train_dataset: One data set, or several; the others likewise.
            batch_size: Samples per batch.
            num_workers: Loader processes per loader.
            **kwargs: Passed to ``cls``.
        """
        module = cls(**kwargs)
        given = {"train": train_dataset, "val": val_dataset, "test": test_dataset, "predict": predict_dataset}
        for stage, datasets in given.items():
            if datasets is not None:
                method = _loader_method(datasets, stage == "train", batch_size, num_workers)
                setattr(module, f"{stage}_dataloader", method)
        return module

    @of_class
    def load_from_checkpoint(cls: type[Self], checkpoint_path: str | os.PathLike[str], **kwargs: Any) -> Self:  # noqa: N805
        """Build the data module with the hyper-parameters in a checkpoint; ``kwargs`` win over them."""
        checkpoint = read_checkpoint(checkpoint_path, map_location="cpu")
        check_like(checkpoint, {"datamodule_hyper_parameters": {}, "datamodule_hparams_name": ""}, str(checkpoint_path))
        saved = checkpoint.get("datamodule_hyper_parameters") or {}
        with restoring(str(checkpoint_path), "datamodule_hyper_parameters"):
            module = rebuild(cls, saved, checkpoint.get("datamodule_hparams_name"), kwargs, str(checkpoint_path))
        with restoring(str(checkpoint_path), cls.__qualname__):
            module.load_state_dict(checkpoint.get(cls.__qualname__, {}))
        return module


def _loader_method(datasets: Any, shuffle: bool, batch_size: int, num_workers: int) -> Any:
    def loader(dataset: Dataset[Any]) -> DataLoader[Any]:
        in_order = not shuffle or isinstance(dataset, IterableDataset)
        return DataLoader(dataset, batch_size, shuffle=not in_order, num_workers=num_workers, pin_memory=False)

    def loaders() -> Any:
        if isinstance(datasets, Mapping):
            return {key: loader(dataset) for key, dataset in datasets.items()}
        if isinstance(datasets, Sequence) and not hasattr(datasets, "__getitems__") and _all_datasets(datasets):
            return [loader(dataset) for dataset in datasets]
        return loader(datasets)

    return loaders


def _all_datasets(values: Sequence[Any]) -> bool:
    return all(isinstance(value, Dataset) for value in values)
