"""What a trainer shows of its parts and options, under names that users of Lightning know; and what it has another name for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from fulmen.known import ELSEWHERE

if TYPE_CHECKING:
    from fulmen.contracts.accelerator import Accelerator
    from fulmen.contracts.module import Module
    from fulmen.contracts.precision import Precision
    from fulmen.contracts.strategy import Strategy
    from fulmen.options import Duration, Limit, Options
    from fulmen.runtime import Runtime
    from fulmen.state import Run


class TrainerNames:
    """The part of :class:`fulmen.Trainer` that only passes on what others hold."""

    options: Options
    """The plain options."""
    runtime: Runtime
    """Accelerator, strategy and precision."""
    _run: Run | None

    # ---- Parts

    @property
    def module(self) -> Module | None:
        """The module of the current or latest run."""
        return self._run.module if self._run else None

    model = lightning_module = module

    @property
    def ckpt_path(self) -> str | None:
        """The checkpoint that the current or latest fit went on from; ``None``: it began anew."""
        return (self._run.resumed_from or None) if self._run else None

    @property
    def accelerator(self) -> Accelerator:
        """The kind of device."""
        return self.runtime.accelerator

    @property
    def strategy(self) -> Strategy:
        """How processes share the work."""
        return self.runtime.strategy

    @property
    def precision_plugin(self) -> Precision:
        """The number formats."""
        return self.runtime.precision

    @property
    def precision(self) -> str:
        """The name of the precision, such as ``"bf16-mixed"``."""
        return self.runtime.precision.name

    # ---- Options, to be read

    @property
    def limit_train_batches(self) -> Limit:
        """Batches per epoch: a count (int) or a fraction (float)."""
        return self.options.limit_train_batches

    @property
    def limit_val_batches(self) -> Limit:
        """Batches of each validation loader, likewise."""
        return self.options.limit_val_batches

    @property
    def limit_test_batches(self) -> Limit:
        """Batches of each test loader, likewise."""
        return self.options.limit_test_batches

    @property
    def limit_predict_batches(self) -> Limit:
        """Batches of each prediction loader, likewise."""
        return self.options.limit_predict_batches

    @property
    def overfit_batches(self) -> Limit:
        """Batches to train and validate on, unshuffled; 0: all."""
        return self.options.overfit_batches

    @property
    def val_check_interval(self) -> Limit | Duration | None:
        """Batches, fractions of an epoch or a time between validations; ``None``: at the end of the epoch."""
        return self.options.val_check_interval

    @property
    def check_val_every_n_epoch(self) -> int | None:
        """In which epochs there is a validation; ``None``: batches of the whole training count."""
        return self.options.check_val_every_n_epoch

    @property
    def num_sanity_val_steps(self) -> int:
        """Batches of each validation loader before training starts; -1: all."""
        return self.options.num_sanity_val_steps

    @property
    def log_every_n_steps(self) -> int:
        """At which steps the loggers get single values."""
        return self.options.log_every_n_steps

    @property
    def gradient_clip_val(self) -> float | None:
        """The norm or value that gradients are clipped to; ``None``: they are not."""
        return self.options.gradient_clip_val

    @property
    def gradient_clip_algorithm(self) -> str:
        """``"norm"`` or ``"value"``."""
        return self.options.gradient_clip_algorithm


class _Elsewhere:
    """No attribute, neither of a trainer nor of its class: whoever reads it is told what to use instead."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text

    def __get__(self, trainer: object, owner: type) -> NoReturn:
        raise AttributeError(f"{owner.__name__} has no attribute {self.name!r}; {self.text}")


for _name, _text in ELSEWHERE["attribute"].items():
    setattr(TrainerNames, _name, _Elsewhere(_name, _text))
