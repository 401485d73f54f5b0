"""The files of a callback: where they lie, what they are called, and which are its own."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from fulmen import Checkpoint, CheckpointError
from fulmen_checkpoint.arguments import yaml_of
from fulmen_checkpoint.names import fields_of, fill
from fulmen_checkpoint.places import Place, RemotePlace, place_of
from fulmen_checkpoint.ranking import Ranking

if TYPE_CHECKING:
    from fulmen import Trainer


class KeptFiles(Checkpoint):
    """What :class:`~fulmen_checkpoint.ModelCheckpoint` knows of its files. Subclasses may change the constants.

    Attributes:
        CHECKPOINT_JOIN_CHAR: Stands between the parts of a name.
        CHECKPOINT_EQUALS_CHAR: Stands between the name of a metric and its value.
        CHECKPOINT_NAME_LAST: The name of the newest state; may have fields like ``filename``.
        FILE_EXTENSION: Ends every name. Only ``.ckpt`` is found by ``ckpt_path="last"``.
        STARTING_VERSION: The version of the first file whose name is taken.
    """

    CHECKPOINT_JOIN_CHAR: ClassVar[str] = "-"
    CHECKPOINT_EQUALS_CHAR: ClassVar[str] = "="
    CHECKPOINT_NAME_LAST: ClassVar[str] = "last"
    FILE_EXTENSION: ClassVar[str] = ".ckpt"
    STARTING_VERSION: ClassVar[int] = 1

    dirpath: str | None
    filename: str | None
    mode: Literal["min", "max"]
    save_top_k: int
    auto_insert_metric_name: bool
    enable_version_counter: bool
    _place: Place | None
    _ranking: Ranking

    @property
    def _there(self) -> Place:
        assert self._place is not None  # set up before anything is saved
        return self._place

    @property
    def _folder(self) -> str:
        return self._there.folder

    def format_checkpoint_name(self, metrics: Mapping[str, Any], filename: str | None = None, ver: int | None = None) -> str:
        """The name of a file, with its extension and without its folder.

        Args:
            metrics: What to fill in: ``epoch``, ``step`` and metrics, as numbers or tensors.
            filename: The template; ``None``: that of this callback.
            ver: A version to append; ``None``: none.
        """
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        name = fill(filename or self._template, values, self.auto_insert_metric_name, self.CHECKPOINT_EQUALS_CHAR)
        return f"{name}{'' if ver is None else f'{self.CHECKPOINT_JOIN_CHAR}v{ver}'}{self.FILE_EXTENSION}"

    @property
    def _template(self) -> str:
        return self.filename or f"{{epoch}}{self.CHECKPOINT_JOIN_CHAR}{{step}}"

    def _name(self, trainer: Trainer, template: str) -> str:
        values = self._values(trainer, fields_of(template))
        return self.format_checkpoint_name(values, template).removesuffix(self.FILE_EXTENSION)

    def _values(self, trainer: Trainer, names: Iterable[str], of_steps: bool = True) -> dict[str, float]:
        """The epoch, the step, and what was measured on the weights as they are.

        Args:
            trainer: Knows them.
            names: Of metrics.
            of_steps: Whether the value of the step stands for one that is logged with ``on_step`` and ``on_epoch``, where the
                epoch has none yet.
        """
        values: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        keys: dict[str, str] = {}
        for name in names:
            candidates = [name, f"{name}_step"] if of_steps else [name]
            fresh = [key for key in candidates if name not in values and trainer.metric_age(key) == 0]
            keys.update({name: fresh[0]} if fresh else {})
        metrics = trainer.callback_metrics if keys else {}
        return {**values, **{name: float(metrics[key]) for name, key in keys.items()}}  # synchronises: once per saving

    def _free_path(self, trainer: Trainer, name: str, replaceable: list[str]) -> str:
        """A path that nothing is lost at: unused, about to be removed, or written by this same training before a resume.

        Raises:
            CheckpointError: Another callback keeps its file there, and versions are not counted.
        """
        others = [each for each in trainer.checkpoint_callbacks if each is not self]
        path, version = self._there.path(f"{name}{self.FILE_EXTENSION}"), self.STARTING_VERSION
        while path not in replaceable:
            held = any(other.holds(path) for other in others)
            if held and not self.enable_version_counter:
                raise CheckpointError(
                    f"{path} is kept by another callback, and enable_version_counter=False: give them different names or "
                    "folders"
                )
            if not held and (not self.enable_version_counter or self._may_write(trainer, path)):
                break
            path = self._there.path(f"{name}{self.CHECKPOINT_JOIN_CHAR}v{version}{self.FILE_EXTENSION}")
            version += 1
        return path

    def _may_write(self, trainer: Trainer, path: str) -> bool:
        if path in self._ranking.files:
            return False
        return not self._there.exists(path) or self._there.training_of(path) == trainer.run_id

    @property
    def best_k_models(self) -> dict[str, Tensor]:
        """The files that are kept by their score, and their scores; empty without a monitor."""
        scored = self._ranking.files.items()
        return {path: torch.tensor(score, dtype=torch.float64) for path, score in scored if score is not None}

    @property
    def kth_best_model_path(self) -> str:
        """The worst of the files that are kept; empty while there are fewer than ``save_top_k``, and without a monitor."""
        return self._ranking.worst if len(self._ranking.files) == self.save_top_k else ""

    @property
    def kth_value(self) -> Tensor:
        """What a score has to be better than to be kept; infinity (of the bad sign) while there is room."""
        score = self._ranking.files.get(self.kth_best_model_path)
        room = math.inf if self.mode == "min" else -math.inf
        return torch.tensor(room if score is None else score, dtype=torch.float64)

    def holds(self, path: str) -> bool:
        """Whether this callback keeps the file at ``path``."""
        return path in self._ranking.files or path == self.last_model_path

    def folders(self, trainer: Trainer) -> list[Path]:
        """The local folders of this experiment's runs."""
        if self.dirpath is not None:
            place = place_of(self.dirpath)
            return [] if isinstance(place, RemotePlace) else [Path(place.folder)]
        experiments = [Path(logger.save_dir) / (logger.name or "") for logger in trainer.loggers if logger.save_dir]
        found = [folder for experiment in experiments for folder in sorted(experiment.glob("*/checkpoints"))]
        return [*found, Path(trainer.default_root_dir) / "checkpoints"]

    def elsewhere(self, trainer: Trainer) -> list[tuple[float, str]]:
        """The complete checkpoints behind the URL."""
        place = None if self.dirpath is None else place_of(self.dirpath)
        return place.complete() if isinstance(place, RemotePlace) else []

    def to_yaml(self, filepath: str | os.PathLike[str] | None = None) -> None:
        """Write the kept files and their scores as a YAML mapping.

        Args:
            filepath: A path or URL; ``None``: ``best_k_models.yaml`` in the folder of the checkpoints.
        """
        text = yaml_of({path: float(score) for path, score in self.best_k_models.items()})
        place = place_of(os.path.dirname(filepath)) if filepath is not None else self._there
        place.write_text(text, os.fspath(filepath) if filepath is not None else place.path("best_k_models.yaml"))
