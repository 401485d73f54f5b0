"""Prune parameters while a model trains, by the methods of torch.nn.utils.prune."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from fulmen import Callback, CheckpointError, ConfigurationError
from fulmen_pruning.methods import Method
from fulmen_pruning.parameters import Target, find_targets

if TYPE_CHECKING:
    from fulmen import Module, Trainer
    from fulmen.contracts.data_hooks import Stage

Amount = int | float
Pairs = Sequence[tuple[nn.Module, str]]


class ModelPruning(Callback):
    """Sets a part of the parameters to zero after each epoch, and keeps them there.

    A pruned parameter ``weight`` becomes ``weight_orig``, which the optimizer goes on updating, and ``weight_mask``; the layer
    computes with their product. Each time, ``amount`` of what is left is pruned. The share of zeros is logged as ``sparsity``
    at the end of each epoch. The masks are in checkpoints: a resumed run equals one that never stopped.

    Override :meth:`filter_parameters_to_prune`, :meth:`apply_pruning`, :meth:`apply_lottery_ticket_hypothesis` or
    :meth:`make_pruning_permanent` for rules of your own. With several ranks, the masks and values of rank 0 hold on all.

    Args:
        pruning_fn: ``"l1_unstructured"``, ``"random_unstructured"``, ``"ln_structured"``, ``"random_structured"``, or a
            subclass of ``torch.nn.utils.prune.BasePruningMethod`` that takes ``amount``.
        parameters_to_prune: Pairs ``(layer, "weight")``, or names such as ``"net.0.weight"``; ``None``: by ``parameter_names``.
        parameter_names: Prune the parameters called so in every layer; ``None``: ``weight`` and ``bias``, of structured
            methods those with two dimensions or more.
        use_global_unstructured: Whether entries of all parameters are compared with each other, so that ``amount`` is of all
            together, instead of each parameter's own.
        amount: A fraction (float), a number of entries or slices (int), or a function of the epoch that gives one.
        apply_pruning: Whether to prune, or a function of the epoch that tells.
        make_pruning_permanent: Whether checkpoints hold ``weight`` with its zeros, as of a model that was never pruned, and
            masks are taken away when the training ends. If not, both have ``weight_orig`` and ``weight_mask``.
        use_lottery_ticket_hypothesis: Whether, after pruning, what is left of the pruned parameters starts again from its
            value at the start of the training; or a function of the epoch that tells.
        resample_parameters: Whether it starts from new random values instead, by ``reset_parameters`` of its layer.
        pruning_dim: Of structured methods: the dimension whose slices are pruned.
        pruning_norm: Of ``"ln_structured"``: the norm by which slices are compared.
        verbose: 0: print nothing; 1: print the sparsity whenever something was pruned; 2: also of each parameter.
        prune_on_train_epoch_end: Prune when a training epoch ends; if not, when a validation does.

    Raises:
        ConfigurationError: An option is out of its range, or two do not fit each other.

    Source: Han et al., arXiv:1506.02626; for lottery tickets, Frankle and Carbin, arXiv:1803.03635.
    """

    def __init__(
        self,
        pruning_fn: str | type[BasePruningMethod],
        parameters_to_prune: Sequence[tuple[nn.Module, str] | str] | None = None,
        parameter_names: Sequence[str] | None = None,
        use_global_unstructured: bool = True,
        amount: Amount | Callable[[int], Amount] = 0.5,
        apply_pruning: bool | Callable[[int], bool] = True,
        make_pruning_permanent: bool = True,
        use_lottery_ticket_hypothesis: bool | Callable[[int], bool] = True,
        resample_parameters: bool = False,
        pruning_dim: int | None = None,
        pruning_norm: int | float | str | None = None,
        verbose: int = 0,
        prune_on_train_epoch_end: bool = True,
    ) -> None:
        self.method = Method(pruning_fn, use_global_unstructured, pruning_dim, pruning_norm)
        if parameters_to_prune is not None and parameter_names is not None:
            raise ConfigurationError("parameters_to_prune and parameter_names are both given; give one of them")
        if not callable(amount):
            check_amount(amount)
        if resample_parameters and not use_lottery_ticket_hypothesis:
            raise ConfigurationError(
                "resample_parameters=True does something with use_lottery_ticket_hypothesis only; set both"
            )
        if verbose not in (0, 1, 2):
            raise ConfigurationError(f"verbose={verbose!r} is not allowed; allowed: 0, 1, 2")
        self.parameters_to_prune, self.parameter_names = parameters_to_prune, parameter_names
        self.amount, self._apply_pruning = amount, apply_pruning  # methods have these names, for subclasses
        self._make_pruning_permanent = make_pruning_permanent
        self.use_lottery_ticket_hypothesis = use_lottery_ticket_hypothesis
        self.resample_parameters, self.verbose = resample_parameters, verbose
        self.prune_on_train_epoch_end = prune_on_train_epoch_end
        self._targets: list[Target] = []
        self._initial: dict[str, Tensor] = {}  # full name -> the value at the start, for lottery tickets
        self._layers: dict[int, nn.Module] = {}  # id of a layer -> a copy to draw new values with
        self._state: dict[str, Any] = {}  # what was loaded, or was true when the last training ended

    # ---- What people ask

    def sparsity(self) -> float:
        """The share of zeros among the parameters that may be pruned, from 0 to 1. Waits for the device."""
        return float(self._sparsity_tensor()) if self._targets else 0.0

    def sparsities(self) -> dict[str, float]:
        """The same for each parameter by name. Waits for the device."""
        return {target.full_name: 1 - float(target.mask.float().mean()) for target in self._targets}

    def _sparsity_tensor(self) -> Tensor:
        kept = torch.stack([target.mask.sum(dtype=torch.float32) for target in self._targets]).sum()
        return 1 - kept / sum(target.parameter.numel() for target in self._targets)

    # ---- What subclasses may replace

    def filter_parameters_to_prune(self, parameters_to_prune: Pairs) -> Pairs:
        """Which of these pairs of a layer and a parameter's name to prune; all. Called when a training starts or goes on."""
        return parameters_to_prune

    def apply_pruning(self, amount: Amount) -> None:
        """Give masks that prune ``amount`` more: called when it is time to, without gradients."""
        self.method.apply(self._targets, amount)

    def apply_lottery_ticket_hypothesis(self) -> None:
        """Put what is left back to its values at the start of the training, or to new ones. Called after pruning, if asked."""
        for copied in self._layers.values():
            copied.reset_parameters()  # type: ignore[operator]
        for target in self._targets:
            if self.resample_parameters:
                copied = self._layers[id(target.layer)]
                target.parameter.copy_(Target(target.full_name, copied, target.name).parameter)
            else:
                target.parameter.copy_(self._initial[target.full_name])

    def make_pruning_permanent(self, module: nn.Module) -> None:
        """Write the zeros into the parameters, and forget the masks. Called when the training ends, where asked."""
        for target in self._targets:
            target.make_permanent()

    # ---- The run

    def setup(self, trainer: Trainer, module: Module, stage: Stage) -> None:
        """Begin anew."""
        if stage == "fit":
            self._targets, self._initial, self._layers, self._state = [], {}, {}, {}

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Find the parameters, and remember their values where lottery tickets need them.

        Raises:
            ConfigurationError: There is nothing to prune, or a layer cannot draw new values, or nothing validates.
        """
        if not self.prune_on_train_epoch_end and not trainer.enable_validation:
            raise ConfigurationError(
                "prune_on_train_epoch_end=False prunes after validations, and this training has none: leave it True, or give "
                "validation_step and data"
            )
        self._find(module)
        if self.use_lottery_ticket_hypothesis and not self._initial:
            self._initial = {target.full_name: target.parameter.detach().clone() for target in self._targets}
        self._refresh()

    def _find(self, module: nn.Module) -> None:
        if self._targets:  # found when a checkpoint was loaded
            return
        dims = 2 if self.method.kind == "structured" else 0
        found = find_targets(module, self.parameters_to_prune, self.parameter_names, dims)
        wanted = self.filter_parameters_to_prune([(target.layer, target.name) for target in found])
        self._targets = find_targets(module, list(wanted), None, dims)
        if self.resample_parameters:
            for target in self._targets:
                self._keep_layer(target)

    def _keep_layer(self, target: Target) -> None:
        if not callable(getattr(target.layer, "reset_parameters", None)):
            raise ConfigurationError(
                f"resample_parameters=True calls reset_parameters of each layer, and {type(target.layer).__name__}, which has "
                f"{target.full_name!r}, has no such method; define it, or leave the layer out of parameters_to_prune"
            )
        if target.is_pruned:
            target.refresh()
            setattr(target.layer, target.name, getattr(target.layer, target.name).detach())  # only leaves can be copied
        if id(target.layer) not in self._layers:
            self._layers[id(target.layer)] = deepcopy(target.layer)

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        """Let layers show their parameters, with gradients, to code that does not call them. Costs a product for each.

        ``nn.MultiheadAttention`` is such code: it uses the weights of its ``out_proj``.
        """
        self._refresh()

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """The same for an evaluation."""
        refresh(module)

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        """Likewise."""
        refresh(module)

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        """Likewise."""
        refresh(module)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Prune after a validation inside a training, where that was asked for."""
        if trainer.stage == "fit" and not self.prune_on_train_epoch_end and not trainer.sanity_checking:
            self._prune(trainer, module)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Prune, but not in an epoch that a stop cut short; and log the sparsity."""
        if self.prune_on_train_epoch_end and trainer.progress.epoch_is_complete:
            self._prune(trainer, module)
        module.log("sparsity", self._sparsity_tensor())

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Make the pruning permanent."""
        self._finish(module)

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        """The same where a resumed training had nothing left to do."""
        self._finish(module)

    def _finish(self, module: nn.Module) -> None:
        self._state = self.state_dict()
        if self._make_pruning_permanent and self._targets:
            self.make_pruning_permanent(module)
            self._targets = []

    # ---- Pruning

    def _refresh(self) -> None:
        for target in self._targets:
            target.refresh()

    def _prune(self, trainer: Trainer, module: Module) -> None:
        epoch = trainer.current_epoch
        wanted = self._apply_pruning(epoch) if callable(self._apply_pruning) else self._apply_pruning
        amount = self.amount(epoch) if callable(self.amount) else self.amount
        if not wanted or not amount:
            return
        check_amount(amount)
        with torch.no_grad():
            self._refresh()  # methods look at what layers show
            self.apply_pruning(amount)
            lottery = self.use_lottery_ticket_hypothesis
            if lottery(epoch) if callable(lottery) else lottery:
                self.apply_lottery_ticket_hypothesis()
            if trainer.world_size > 1:  # what was drawn at random differs between ranks
                for target in self._targets:
                    target.mask.copy_(trainer.runtime.broadcast(target.mask))
                    target.parameter.copy_(trainer.runtime.broadcast(target.parameter.detach()))
            self._refresh()
        self._report(module, epoch)

    def _report(self, module: Module, epoch: int) -> None:
        if self.verbose:
            module.print(f"pruned in epoch {epoch}: {self.sparsity():.2%} of {len(self._targets)} parameters are zero")
        if self.verbose > 1:
            width = max(len(target.full_name) for target in self._targets)
            for target in self._targets:
                zeros = int((target.mask == 0).sum())
                share = zeros / target.mask.numel()
                module.print(f"  {target.full_name:<{width}}  {share:>7.2%}  {zeros} of {target.mask.numel()}")

    # ---- Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The masks, the values under them, and those at the start, by name."""
        pruned = [target for target in self._targets if target.is_pruned]
        if not self._targets:
            return self._state
        state: dict[str, Any] = {
            "masks": {target.full_name: target.mask for target in pruned},
            "parameters": {target.full_name: target.parameter.detach() for target in pruned},
        }
        if self._initial:
            state["initial"] = self._initial
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The values at the start. Masks are needed earlier: see :meth:`on_load_checkpoint`."""
        self._state = dict(state_dict)
        devices = {target.full_name: target.parameter.device for target in self._targets}
        initial = state_dict.get("initial", {})
        self._initial = {name: value.to(devices.get(name, value.device)) for name, value in initial.items()}

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """Write the weights as of a model that was never pruned, where pruning is to be permanent."""
        if not self._make_pruning_permanent:
            return
        state, found = checkpoint["state_dict"], {}
        pruned = {f"{target.full_name}_orig": target for target in self._targets if target.is_pruned}
        masks = {f"{target.full_name}_mask" for target in pruned.values()}
        for name, value in state.items():
            if name in pruned:
                target = pruned[name]
                found[target.full_name] = value * state[f"{target.full_name}_mask"].to(value.dtype)
            elif name not in masks:
                found[name] = value
        checkpoint["state_dict"] = found

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """Prepare the module for the weights in a checkpoint. Its optimizers exist: they keep their parameters.

        Raises:
            CheckpointError: The module does not have a parameter that was pruned.
        """
        weights = dict(checkpoint["state_dict"])
        names = [name[:-5] for name in weights if name.endswith("_mask") and f"{name[:-5]}_orig" in weights]
        masks = {name: weights[f"{name}_mask"] for name in names}
        values = {name: weights[f"{name}_orig"] for name in masks}
        if trainer.stage == "fit":  # the file may have its weights as of a model that was never pruned
            self._find(module)
            state = checkpoint.get("callbacks", {}).get(self.state_key, {})
            masks, values = {**masks, **state.get("masks", {})}, {**values, **state.get("parameters", {})}
        for target in pruned_in(module):
            if target.full_name not in masks:
                target.make_permanent()
        layers = dict(module.named_modules())
        for full_name, mask in masks.items():
            path, _, name = full_name.rpartition(".")
            if path not in layers:
                raise CheckpointError(
                    f"the checkpoint has a mask for {full_name!r}, and {type(module).__name__} has no such parameter; build "
                    "the module as it was"
                )
            Target(full_name, layers[path], name).give_mask(mask)
            weights.pop(full_name, None)
            weights[f"{full_name}_orig"], weights[f"{full_name}_mask"] = values[full_name], mask
        checkpoint["state_dict"] = weights


def pruned_in(module: nn.Module) -> list[Target]:
    """Every parameter of ``module`` that has a mask."""
    return [
        Target(f"{path}.{name[:-5]}" if path else name[:-5], layer, name[:-5])
        for path, layer in module.named_modules()
        for name in list(layer._buffers)
        if name.endswith("_mask") and f"{name[:-5]}_orig" in layer._parameters
    ]


def refresh(module: nn.Module) -> None:
    """Let every layer of ``module`` show its pruned parameters as they are now."""
    for target in pruned_in(module):
        target.refresh()


def check_amount(amount: Any) -> None:
    """Refuse what is no amount.

    Raises:
        ConfigurationError: It is neither a fraction nor a count.
    """
    is_fraction = isinstance(amount, float) and 0 <= amount <= 1
    is_count = isinstance(amount, int) and not isinstance(amount, bool) and amount >= 0
    if not (is_fraction or is_count):
        raise ConfigurationError(
            f"amount={amount!r} is not allowed; allowed: a fraction from 0.0 to 1.0, a whole number from 0, or a function of "
            "the epoch that gives one"
        )
