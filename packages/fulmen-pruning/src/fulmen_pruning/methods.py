"""Which entries of parameters are pruned: the methods of torch.nn.utils.prune, by name or as classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.nn.utils import prune

from fulmen import ConfigurationError
from fulmen.errors import did_you_mean, listing
from fulmen_pruning.parameters import Target

METHODS: dict[str, type[prune.BasePruningMethod]] = {
    "l1_unstructured": prune.L1Unstructured,
    "random_unstructured": prune.RandomUnstructured,
    "ln_structured": prune.LnStructured,
    "random_structured": prune.RandomStructured,
}


@dataclass(frozen=True)
class Method:
    """A way to choose what is pruned.

    Args:
        pruning_fn: A name of :data:`METHODS`, or a class of one's own.
        whole: Whether all parameters are compared with each other, instead of each within itself.
        dim: Of structured methods: the dimension whose slices are pruned.
        norm: Of ``"ln_structured"``: the norm that slices are compared by.

    Raises:
        ConfigurationError: These do not fit each other.
    """

    pruning_fn: str | type[prune.BasePruningMethod]
    whole: bool
    dim: int | None = None
    norm: int | float | str | None = None

    def __post_init__(self) -> None:
        fn = self.pruning_fn
        if isinstance(fn, str) and fn not in METHODS:
            raise ConfigurationError(
                f"pruning_fn={fn!r} is not known{did_you_mean(fn, METHODS)}; allowed: {listing(METHODS)}, or a subclass of "
                "torch.nn.utils.prune.BasePruningMethod"
            )
        if not isinstance(fn, str) and not (isinstance(fn, type) and issubclass(fn, prune.BasePruningMethod)):
            raise ConfigurationError(
                f"pruning_fn={fn!r} is not allowed; allowed: {listing(METHODS)}, or a subclass of "
                "torch.nn.utils.prune.BasePruningMethod"
            )
        if self.whole and self.kind != "unstructured":
            raise ConfigurationError(
                f"{self.label} prunes whole slices, which cannot be compared over all parameters: use_global_unstructured=False"
            )
        by_name = isinstance(fn, str) and self.kind == "structured"
        if by_name and self.dim is None:
            raise ConfigurationError(
                f"pruning_fn={fn!r} needs pruning_dim, the dimension whose slices are pruned: 0 for outputs"
            )
        if fn == "ln_structured" and self.norm is None:
            raise ConfigurationError("pruning_fn='ln_structured' needs pruning_norm, such as 1, 2 or float('inf')")
        if self.dim is not None and not by_name:
            raise ConfigurationError(f"pruning_dim={self.dim!r} is given, and {self.label} has none; leave it out")
        if self.norm is not None and fn != "ln_structured":
            raise ConfigurationError(f"pruning_norm={self.norm!r} is given, and {self.label} has none; leave it out")

    @property
    def cls(self) -> Any:
        """The class of torch.nn.utils.prune."""
        return METHODS[self.pruning_fn] if isinstance(self.pruning_fn, str) else self.pruning_fn

    @property
    def label(self) -> str:
        """For people."""
        return repr(self.pruning_fn) if isinstance(self.pruning_fn, str) else self.pruning_fn.__name__

    @property
    def kind(self) -> str:
        """``"unstructured"`` or ``"structured"``."""
        return str(getattr(self.cls, "PRUNING_TYPE", "unstructured"))

    def apply(self, targets: Sequence[Target], amount: int | float) -> None:
        """Prune ``amount`` more of what is left: a fraction (float), or so many entries or slices (int)."""
        if self.whole:
            prune.global_unstructured([(each.layer, each.name) for each in targets], pruning_method=self.cls, amount=amount)
            return
        more: dict[str, Any] = {} if self.dim is None else {"dim": self.dim}
        if self.norm is not None:
            more["n"] = self.norm
        for target in targets:
            self.cls.apply(target.layer, target.name, amount=amount, **more)
