"""Anything whose state belongs in a checkpoint."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Stateful(Protocol):
    """An object that can hand out its state and take it back.

    The state must be plain data (numbers, strings, tensors, and lists, tuples, sets and dicts of these), because a
    checkpoint is always readable with ``torch.load(path, weights_only=True)``.

    >>> class Counter:
    ...     count = 0
    ...     def state_dict(self): return {"count": self.count}
    ...     def load_state_dict(self, state): self.count = state["count"]
    >>> isinstance(Counter(), Stateful)
    True
    """

    def state_dict(self) -> dict[str, Any]:
        """The state as plain data."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take over a state that :meth:`state_dict` gave."""
