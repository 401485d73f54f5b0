"""Which package is known to provide a name, so that an error can say how to install it. Data, nothing else."""

from __future__ import annotations

KNOWN: dict[str, dict[str, str]] = {
    "accelerator": {"cuda": "cuda", "gpu": "cuda", "mps": "mps", "xla": "xla", "tpu": "xla"},
    "strategy": {
        "ddp": "ddp",
        "ddp_spawn": "ddp",
        "ddp_notebook": "ddp",
        "ddp_fork": "ddp",
        "ddp_find_unused_parameters_true": "ddp",
        "ddp_find_unused_parameters_false": "ddp",
        "dp": "dp",
        "xla": "xla",
    },
    "precision": {"16-mixed": "precision", "bf16-mixed": "precision", "16-true": "precision"},
    "logger": {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "comet": "comet"},
    "callback": {
        "checkpoint": "checkpoint",
        "early_stopping": "early-stopping",
        "pruning": "pruning",
        "swa": "swa",
        "ema": "swa",
        "optuna": "optuna",
    },
    "exporter": {"onnx": "onnx", "torchscript": "torchscript", "torch_export": "torchscript"},
}
"""Kind of part -> name -> extra: ``cuda`` is in ``fulmen-cuda``, which ``fulmen[cuda]`` installs too."""

CLASSES: dict[str, str] = {
    "ModelCheckpoint": "checkpoint",
    "EarlyStopping": "early-stopping",
    "ModelPruning": "pruning",
    "StochasticWeightAveraging": "swa",
    "EMAWeightAveraging": "swa",
    "OptunaPruning": "optuna",
    "TensorBoardLogger": "tensorboard",
    "WandbLogger": "wandb",
    "MLFlowLogger": "mlflow",
    "CometLogger": "comet",
}
"""Class name, as in ``from fulmen.callbacks import EarlyStopping``, -> extra."""

COUNTERPARTS: dict[str, str] = {
    "LightningModule": "Module",
    "LightningDataModule": "DataModule",
    "Fabric": "Runtime",
    "TQDMProgressBar": "ConsoleProgress",
    "RichProgressBar": "ConsoleProgress",
    "RichModelSummary": "ModelSummary",
    "OnExceptionCheckpoint": "RecoveryCheckpoint",
    "WeightAveraging": "EMAWeightAveraging",
    "PyTorchLightningPruningCallback": "OptunaPruning",
}
"""Name in PyTorch Lightning -> what does the same here."""


def install_line(extra: str) -> str:
    """The line that installs the package behind an extra."""
    return f"pip install fulmen-{extra}"


def extra_for(name: str, kind: str | None = None) -> str | None:
    """The extra that is known to bring a part, a class or a plugin of that name; ``None`` where none is known.

    >>> extra_for("early_stopping"), extra_for("EarlyStopping"), extra_for("early-stopping")
    ('early-stopping', 'early-stopping', 'early-stopping')
    """
    if kind is not None:
        return KNOWN.get(kind, {}).get(name)
    tables = (*KNOWN.values(), CLASSES)
    found = next((table[name] for table in tables if name in table), None)
    return name if found is None and any(name in table.values() for table in tables) else found
