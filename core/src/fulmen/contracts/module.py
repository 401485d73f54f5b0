"""What a user writes: a model together with how it is trained, validated, tested and used."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.contracts.data_hooks import DataHooks
from fulmen.contracts.exporter import ready_to_export
from fulmen.contracts.hyperparameters import HasHyperparameters, of_class, read_hparams_file, rebuild
from fulmen.contracts.module_hooks import ModuleHooks
from fulmen.errors import CheckpointError, ModuleError, did_you_mean, listing, warn
from fulmen.likeness import check_like, restoring
from fulmen.storage import plain_data_only, read_checkpoint

if TYPE_CHECKING:
    from fulmen.contracts.callback import Callback
    from fulmen.contracts.logger import Logger
    from fulmen.state import Run
    from fulmen.trainer import Trainer

Self = TypeVar("Self", bound="Module")
NOT_IN_LOG = {
    "enable_graph": "values are detached; keep the tensor itself where you need its graph",
    "sync_dist_group": "sync_dist=True combines over all ranks; for fewer, reduce the value with torch.distributed before",
    "metric_attribute": "",
}
"""Arguments of Lightning's ``self.log`` that ask for nothing with ``None`` or ``False``: what to do instead of others.

Without a remedy, no value asks for anything: an object that computes a metric is known from the call itself.
"""


class Module(nn.Module, ModuleHooks, DataHooks, HasHyperparameters):
    """An ``nn.Module`` with steps. A useful one has ``training_step`` and ``configure_optimizers``.

    >>> class Regression(Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(16, 1)
    ...     def training_step(self, batch, batch_idx):
    ...         x, y = batch
    ...         loss = nn.functional.mse_loss(self.layer(x), y)
    ...         self.log("train_loss", loss)
    ...         return loss
    ...     def configure_optimizers(self):
    ...         return torch.optim.SGD(self.parameters(), lr=0.01)
    """

    automatic_optimization: bool = True
    """``False``: ``training_step`` calls ``manual_backward`` and the optimizers' ``step`` and ``zero_grad`` itself."""

    example_input_array: Any = None
    """Arguments of ``forward`` for a summary with sizes, graphs and exports: a tensor, tuple or mapping."""

    strict_loading: bool = True
    """Whether checkpoints must have exactly this module's keys."""

    _run: Run | None = None  # the current or latest run; set by the trainer
    _exporting: bool = False  # set by ready_to_export

    # ---- Steps

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss of one batch.

        Returns:
            A scalar tensor; a mapping with it under ``"loss"``; ``None`` to skip the update; or the *sum* of the loss
            and the weight that it is a sum over, as a tuple ``(loss_sum, weight)`` or a mapping with ``"loss_sum"``
            and ``"weight"``. In the last case the update is divided by the weight of all accumulated batches on all
            ranks, so that N accumulated batches equal one that is N times as large, ragged ends included. With manual
            optimization, anything.
        """
        raise ModuleError(
            f"{type(self).__name__} has no training_step, which fit needs: def training_step(self, batch, batch_idx)"
        )

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Evaluate one batch; with several loaders it takes ``dataloader_idx`` too. Log what matters."""

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """Like :meth:`validation_step`, for ``trainer.test``."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """The prediction for one batch; the default is ``self(batch)``."""
        return self(batch)

    # ---- Configuration

    def configure_model(self) -> None:
        """Build layers here where they are to be made directly on their device. Called once per run, before optimizers."""

    def configure_optimizers(self) -> Any:
        """The optimizers and learning-rate schedulers.

        Returns:
            One optimizer; a list or tuple of them; two lists, optimizers and schedulers; a dictionary with
            ``"optimizer"`` and, optionally, ``"lr_scheduler"``; a tuple of such dictionaries; or ``None`` to train
            without one. A scheduler may be a dictionary with ``scheduler``, ``interval`` (``"epoch"`` or ``"step"``),
            ``frequency``, ``monitor``, ``strict``, ``name`` and ``reduce_on_plateau``.
        """
        raise ModuleError(
            f"{type(self).__name__} has no configure_optimizers, which fit needs: return an optimizer, or None to train without"
        )

    def configure_callbacks(self) -> Callback | list[Callback]:
        """Callbacks that this module brings; each replaces those of the same class that the trainer was given."""
        return []

    # ---- Logging

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool = True,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        *,
        sync_dist: bool = False,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        rank_zero_only: bool = False,
        **unknown: NoReturn,
    ) -> None:
        """Record a scalar. Never waits for the device.

        Args:
            name: The key. With both ``on_step`` and ``on_epoch``, the loggers see ``name_step`` and ``name_epoch``.
            value: A number, a tensor with one element, or an object with ``update``, ``compute`` and ``reset``.
            prog_bar: Show it in the progress bar.
            logger: Send it to the loggers.
            on_step: Keep each value. ``None``: yes in hooks around a training batch, no elsewhere.
            on_epoch: Keep the value over the epoch. ``None``: no in hooks around a training batch, yes elsewhere.
            reduce_fx: How values of an epoch become one: ``"mean"`` (weighted by batch size), ``"sum"``, ``"min"``, ``"max"``.
            sync_dist: Combine epoch values over all ranks, in one exchange per epoch.
            add_dataloader_idx: With several loaders, append ``/dataloader_idx_N`` to the name.
            batch_size: The weight in the mean; ``None`` takes the first dimension of the first tensor in the batch.
            rank_zero_only: Rank 0 alone logs this key, and no exchange happens.
            **unknown: Nothing: an error that says what was meant. Arguments of Lightning that ask for nothing are let through.

        Raises:
            ModuleError: The key, an argument, the value or the moment does not allow it; the message says which.
        """
        if unknown:
            check_log_arguments(name, unknown)
        run = self._run
        if run is None:
            return warn(
                "log-without-trainer", f"{type(self).__name__}.log({name!r}): no trainer runs this module, so nothing is kept"
            )
        declared = (prog_bar, logger, on_step, on_epoch, reduce_fx, sync_dist, add_dataloader_idx, rank_zero_only)
        run.metrics.log(name, value, declared, batch_size)

    def log_dict(
        self,
        dictionary: Mapping[str, Any],
        prog_bar: bool = False,
        logger: bool = True,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        **options: Any,
    ) -> None:
        """:meth:`log` for each key and value, with its arguments in its order; ``options`` are the others of them."""
        for name, value in dictionary.items():
            self.log(name, value, prog_bar, logger, on_step, on_epoch, reduce_fx, **options)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """``print`` on rank 0, above the progress bar."""
        self.trainer.print(*args, **kwargs)

    # ---- Optimization

    def optimizers(self, wrapped: bool = True) -> Any:
        """The optimizer, or the list of them where there are several.

        Args:
            wrapped: With manual optimization, hand out objects whose ``step`` counts and respects the precision.
                ``False`` gives PyTorch's own.
        """
        found = self._running().optimizer_handles if wrapped else self._running().optimizers
        return found[0] if len(found) == 1 else list(found)

    def lr_schedulers(self) -> Any:
        """The learning-rate scheduler, the list of them where there are several, or ``None``."""
        found = [config.scheduler for config in self._running().schedulers]
        return found[0] if len(found) == 1 else found or None

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass of manual optimization, in the run's precision and strategy."""
        if self.automatic_optimization:
            raise ModuleError("manual_backward is for manual optimization: set self.automatic_optimization = False in __init__")
        self._running().backward(loss, *args, **kwargs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients; ``loss`` is scaled as accumulation and precision need it."""
        loss.backward(*args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any]) -> None:
        """Update the parameters.

        An override must call ``optimizer.step(closure=optimizer_closure)``, or ``optimizer_closure()`` alone to skip the
        update: the closure runs ``training_step``, ``zero_grad`` and the backward pass.
        """
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Reset the gradients, at the start of each accumulation window."""
        optimizer.zero_grad()

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Advance one scheduler; ``metric`` is the value that a reduce-on-plateau scheduler monitors."""
        scheduler.step() if metric is None else scheduler.step(metric)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip before a step; override for a scheme of your own."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def clip_gradients(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients of ``optimizer`` by ``"norm"`` (default) or ``"value"``; ``None`` takes the trainer's setting."""
        run = self._running()
        value = run.options.gradient_clip_val if gradient_clip_val is None else gradient_clip_val
        if value is not None:
            run.runtime.clip_gradients(optimizer, value, gradient_clip_algorithm or run.options.gradient_clip_algorithm)

    def toggle_optimizer(self, optimizer: Any) -> None:
        """Let only the parameters of ``optimizer`` require gradients, until :meth:`untoggle_optimizer`."""
        self._running().toggle(optimizer)

    def untoggle_optimizer(self, optimizer: Any) -> None:
        """Undo :meth:`toggle_optimizer`."""
        self._running().untoggle()

    @contextmanager
    def toggled_optimizer(self, optimizer: Any) -> Iterator[None]:
        """:meth:`toggle_optimizer` for the length of a ``with`` block."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    # ---- Where it runs

    @property
    def trainer(self) -> Trainer:
        """The trainer of the current or latest run.

        Raises:
            ModuleError: There is none yet.
        """
        if self._exporting and self._run is None:
            return None  # type: ignore[return-value]  # TorchScript looks at every attribute
        return self._running().trainer

    @property
    def current_epoch(self) -> int:
        """The index of the running epoch; 0 without a trainer."""
        return self._run.progress.epoch if self._run else 0

    @property
    def global_step(self) -> int:
        """How many optimizer steps were made; 0 without a trainer."""
        return self._run.progress.step if self._run else 0

    @property
    def logger(self) -> Logger | None:
        """The first logger, or ``None``."""
        return next(iter(self.loggers), None)

    @property
    def loggers(self) -> list[Logger]:
        """All loggers of the trainer."""
        return self._run.loggers if self._run else []

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        if self._run is not None and self._run.active:
            return self._run.device
        return next((tensor.device for tensor in self._tensors()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the floating-point parameters."""
        return next((tensor.dtype for tensor in self._tensors() if tensor.is_floating_point()), torch.get_default_dtype())

    @property
    def global_rank(self) -> int:
        """The index of this process among all."""
        return self._run.runtime.global_rank if self._run else 0

    @property
    def local_rank(self) -> int:
        """The index of this process on its node."""
        return self._run.runtime.local_rank if self._run else 0

    def all_gather(self, data: Any, sync_grads: bool = False) -> Any:
        """Tensors of all ranks, stacked in a new first dimension; collections of tensors likewise.

        ``sync_grads``: whether gradients flow through it, as losses over the samples of all ranks need it.
        """
        return self._running().runtime.all_gather(data, sync_grads)

    def freeze(self: Self) -> Self:
        """Stop training every parameter, and switch to evaluation mode."""
        self.requires_grad_(False)
        return self.eval()

    def unfreeze(self: Self) -> Self:
        """Train every parameter, and switch to training mode."""
        self.requires_grad_(True)
        return self.train()

    # ---- Files

    @of_class
    def load_from_checkpoint(
        cls: type[Self],  # noqa: N805  a class method in all but its name
        checkpoint_path: str | os.PathLike[str] | IO[bytes],
        map_location: Any = "cpu",
        hparams_file: str | os.PathLike[str] | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build the module with the hyper-parameters in a checkpoint, and load its weights. Runs nothing in the file.

        Args:
            checkpoint_path: A path or URL, or an open file.
            map_location: The device of the weights.
            hparams_file: Hyper-parameters to use instead of those in the checkpoint: JSON, or YAML with PyYAML.
            strict: Whether the keys must match exactly; ``None`` asks ``strict_loading``.
            weights_only: Has no other value than ``True``: what is not plain data is never read.
            **kwargs: Constructor arguments that win over the saved ones.

        Raises:
            CheckpointError: The file cannot be read, or does not fit.
            ConfigurationError: One of ``kwargs`` is no argument of the constructor, or ``weights_only`` is ``False``.
            ModuleError: It is called on an object, which it would leave as it is.
        """
        plain_data_only(weights_only)
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        if "state_dict" not in checkpoint:
            raise CheckpointError(f"{checkpoint_path} has no 'state_dict'; it holds: {listing(checkpoint)}")
        check_like(checkpoint, {"state_dict": {}, "hyper_parameters": {}, "hparams_name": ""}, str(checkpoint_path))
        saved = read_hparams_file(hparams_file) if hparams_file else checkpoint.get("hyper_parameters") or {}
        with restoring(str(hparams_file or checkpoint_path), "hyper_parameters"):
            module = rebuild(cls, saved, checkpoint.get("hparams_name"), kwargs, str(hparams_file or checkpoint_path))
        with restoring(str(checkpoint_path), "what on_load_checkpoint takes"):
            module.on_load_checkpoint(checkpoint)
        load_weights(
            module, checkpoint["state_dict"], module.strict_loading if strict is None else strict, str(checkpoint_path)
        )
        return module.to(map_location) if isinstance(map_location, (str, torch.device)) else module

    def export(self, format: str, path: str | os.PathLike[str] | None, input_sample: Any = None, **options: Any) -> Any:
        """Write this module in another format, by the exporter of that name; ``fulmen plugins`` lists them.

        Args:
            format: The name of an exporter, such as ``"onnx"``.
            path: The file to write; ``None``: return the exported object, where the format has one.
            input_sample: Arguments of ``forward``: a tensor, a tuple, or a mapping of keyword arguments; ``None`` takes
                :attr:`example_input_array`.
            **options: Of the format.

        Returns:
            The path of the file; without ``path``, the exported object.

        Raises:
            PluginError: Nothing that is installed provides that format; the message says what does.
        """
        from fulmen.plugins import PluginSet

        plugins = PluginSet.discover() if self._run is None else self._run.trainer.plugins
        exporter = plugins.build("exporter", format)
        with ready_to_export(self):
            return exporter.export(self, path, input_sample, **options)

    def to_onnx(self, file_path: str | os.PathLike[str] | None, input_sample: Any = None, **options: Any) -> Any:
        """:meth:`export` as ``"onnx"``."""
        return self.export("onnx", file_path, input_sample, **options)

    def to_torchscript(
        self,
        file_path: str | os.PathLike[str] | None = None,
        method: str = "script",
        example_inputs: Any = None,
        **options: Any,
    ) -> Any:
        """:meth:`export` as ``"torchscript"``; without ``file_path``, the scripted module itself."""
        return self.export("torchscript", file_path, example_inputs, method=method, **options)

    def to_torch_export(self, file_path: str | os.PathLike[str] | None = None, input_sample: Any = None, **options: Any) -> Any:
        """:meth:`export` as ``"torch_export"``; without ``file_path``, the ``torch.export.ExportedProgram`` itself."""
        return self.export("torch_export", file_path, input_sample, **options)

    def _running(self) -> Run:
        if self._run is None:
            raise ModuleError(
                f"{type(self).__name__} is not attached to a trainer yet: pass it to trainer.fit, validate, test or predict"
            )
        return self._run

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.parameters()
        yield from self.buffers()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles stand alone: they leave the trainer behind."""
        return {key: value for key, value in self.__dict__.items() if key != "_run"}


# TorchScript compiles properties and reads annotations; those of this class are for Python alone.
_FOR_PYTHON = [name for name, value in inspect.getmembers(Module) if isinstance(value, property)]
Module.__jit_unused_properties__ = _FOR_PYTHON  # type: ignore[attr-defined]
Module.__jit_ignored_attributes__ = [*_FOR_PYTHON, *Module.__annotations__]  # type: ignore[attr-defined]


def check_log_arguments(name: str, unknown: Mapping[str, Any]) -> None:
    """Refuse arguments that ``self.log`` does not have.

    Raises:
        ModuleError: One of them asks for something.
    """
    known = inspect.signature(Module.log).parameters
    for argument, value in unknown.items():
        remedy = NOT_IN_LOG.get(argument)
        if remedy is None or (remedy and value not in (None, False)):
            hint = f": {remedy}" if remedy else did_you_mean(argument, known)
            raise ModuleError(f"self.log({name!r}) has no argument {argument}={value!r}{hint}")


def load_weights(
    module: nn.Module, state: Mapping[str, Any], strict: bool, source: str, load: Callable[..., Any] | None = None
) -> None:
    """``module.load_state_dict`` with an error that says which keys or shapes do not fit.

    Args:
        module: Receives the weights.
        state: A ``state_dict``.
        strict: Whether missing and unexpected keys are errors.
        source: Where ``state`` comes from, for the message.
        load: Called as ``load(state, strict=strict)`` instead of ``module.load_state_dict``.

    Raises:
        CheckpointError: They do not fit.
    """
    try:
        with restoring(source, "state_dict"):
            (load or module.load_state_dict)(state, strict=strict)
    except CheckpointError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        own = module.state_dict()
        missing = [key for key in own if key not in state]
        unexpected = [key for key in state if key not in own]
        shapes = [
            f"{k} {_shape(state[k])} for {_shape(own[k])}" for k in own if k in state and _shape(state[k]) != _shape(own[k])
        ]
        if not (missing or unexpected or shapes):
            raise
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}: missing keys: {listing(missing)}; unexpected keys: "
            f"{listing(unexpected)}; wrong shapes: {listing(shapes)}. Build the module with the arguments it was saved "
            "with, or set strict_loading = False to load what fits by name"
        ) from error.__cause__


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
