"""``self.log``: values stay on their device, and cost at most three small tensor operations each.

A :class:`Meter` per name keeps the latest value and the weighted sum over the epoch. Nothing is read back while steps
run: at logging steps, values are copied to the host without waiting, and handed to loggers when they have arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fulmen.batches import batch_size_of, warn_if_ambiguous
from fulmen.contracts.accelerator import Accelerator
from fulmen.contracts.logger import Logger, call_loggers
from fulmen.contracts.strategy import Strategy
from fulmen.errors import ModuleError, warn
from fulmen.meter import SUFFIX, Declaration, Meter, Scope, Value, describe, from_object, normal, scalar
from fulmen.metric_ranks import check_same_names, combine_over_ranks, exchange_all
from fulmen.readback import Readback


class Metrics:
    """All meters of a trainer, and what was last published of them."""

    def __init__(self, loggers: list[Logger], accelerator: Accelerator, strategy: Strategy) -> None:
        self.loggers, self.strategy = loggers, strategy
        self.dtype = torch.float64 if accelerator.supports_float64 else torch.float32
        self.batch: Any = None  # the batch that weighs what is logged now
        self.epoch = 0  # goes along with every row
        self.position = 0  # training batches done when epoch values are published
        self.logged: dict[str, float] = {}
        self.never_sent: set[str] = set()  # single values that no logging step has come for yet
        self._scope: Scope | None = None
        self._scopes: dict[tuple[str, bool, str], Scope] = {}
        self._spent: dict[int, Any] = {}  # objects that gather, whose values have been published
        self._published: dict[str, Value] = {}
        self._positions: dict[str, int] = {}  # of what was published
        self._bar: dict[str, Value] = {}
        self._shown: dict[str, float] = {}
        self._arriving: Readback | None = None  # values for the bar on their way from the device
        self._unsent: dict[str, Value] = {}
        self._recorded = 0  # evaluation batches whose single values have been sent
        self._pending: deque[tuple[Readback, int]] = deque()
        self._measured: tuple[Any, int] | None = None

    # ---- Where the run is

    def enter(self, phase: str, *, batches: bool, dataloader_idx: int | None = None) -> None:
        """Say which moment follows: the batches of a phase, or what is around them.

        Args:
            phase: ``"train"``, ``"train_start"``, ``"validate"``, ``"test"`` or ``"sanity_check"``.
            batches: Whether batches follow.
            dataloader_idx: Which loader, where there are several.
        """
        self._settle(another=batches)
        suffix = "" if dataloader_idx is None else f"{SUFFIX}{dataloader_idx}"
        self._scope = self._scopes.setdefault((phase, batches, suffix), Scope(phase, batches, suffix))

    def _settle(self, another: bool) -> None:
        """Fix what objects gathered of a loader that was evaluated; where ``another`` follows, they begin anew."""
        scope = self._scope
        if scope is None or scope.phase == "train" or not scope.batches:
            return
        found = [meter for meter in scope.meters.values() if meter.metric is not None]
        for meter in found:
            meter.settle()
        for metric in {id(meter.metric): meter.metric for meter in found if another and meter.suffix}.values():
            metric.reset()

    def leave(self) -> None:
        """Say that nothing can be logged from now on, and let go of the batch."""
        self._scope = self.batch = self._measured = None

    # ---- Recording

    def log(self, name: str, value: Any, declared: Declaration, batch_size: int | None) -> None:
        """Record a value in the current scope; see :meth:`fulmen.Module.log`."""
        scope = self._scope
        meter = scope.meters.get(name) if scope is not None else None
        if meter is None or meter.declared != declared:
            meter = self._declare(name, declared, meter)
        if isinstance(value, Tensor):
            value = value.detach()
            if value.ndim:
                value = scalar(name, value)
        elif not isinstance(value, (int, float)):
            value = from_object(meter, name, value)
        if meter.on_step:
            meter.keep(value)
        if meter.on_epoch and meter.metric is None:
            meter.accumulate(value, self._weight(meter) if batch_size is None else batch_size, self.dtype)

    def _declare(self, name: str, declared: Declaration, known: Meter | None) -> Meter:
        scope = self._scope
        if scope is None:
            raise ModuleError(
                f"self.log({name!r}) is not possible here: log in a training, validation or test step, or in the hooks "
                "around their batches and epochs"
            )
        if known is not None and normal(known.declared) == normal(declared):  # restored from a checkpoint
            known.declared = declared
            return known
        if known is not None:
            raise ModuleError(
                f"self.log({name!r}) was called before with other arguments in the same kind of hook: "
                f"{describe(known.declared)}, now {describe(declared)}. Use one set of arguments, or two names"
            )
        scope.meters[name] = meter = scope.declare(name, declared)
        if self.strategy.world_size > 1 and meter.sync and not meter.on_epoch:
            warn(
                "sync-dist",
                f"self.log({name!r}, sync_dist=True) keeps each rank's own values: single ones are not exchanged, which would "
                "cost time in every step; for the value over all ranks: on_epoch=True",
            )
        if self.strategy.world_size > 1 and meter.on_epoch and not meter.sync and not declared[7] and scope.phase != "train":
            warn(
                "sync-dist",
                f"self.log({name!r}) keeps each rank's own value; for the value over all ranks: sync_dist=True",
            )
        return meter

    def _weight(self, meter: Meter) -> int:
        """The size of the batch, where the mean needs it. Measured once per batch, however many names are logged."""
        if meter.reduce != "mean" or self.batch is None:
            return 1
        if self._measured is None:
            warn_if_ambiguous(self.batch)
        if self._measured is None or self._measured[0] is not self.batch:
            self._measured = (self.batch, batch_size_of(self.batch))
        return self._measured[1]

    # ---- Publishing

    @property
    def has_step_values(self) -> bool:
        """Whether anything logged in the current scope keeps single values."""
        return self._scope is not None and self._scope.by_step

    def flush_step(self, step: int) -> None:
        """Send the values that were logged since the last flush to the loggers; called at logging steps.

        Args:
            step: Position on the loggers' step axis.
        """
        assert self._scope is not None
        for meter in self._scope.meters.values():
            if meter.fresh and meter.last is not None:
                meter.fresh = False
                self.never_sent.discard(meter.step_key)
                self._publish(meter.step_key, meter.last, meter)
        if self._scope.phase != "train":
            if step < self._recorded:  # a validation that was cut is repeated, and its rows are in the record
                self._unsent = {}
            self._recorded = max(self._recorded, step + 1)
        self.send(step)

    def reduce(self, phase: str, *, batches: bool, keep: bool = False) -> list[dict[str, Value]]:
        """Publish the epoch values of a phase, and start its meters anew. :meth:`send` then sends them.

        Args:
            phase: Which.
            batches: The meters around batches, or those around the epoch.
            keep: Leave the meters as they are, in an epoch that is cut short: a resumed run goes on with them.

        Returns:
            The epoch values under the loggers' names, one mapping for each loader in order.
        """
        scopes = [scope for scope in self._scopes.values() if (scope.phase, scope.batches) == (phase, batches)]
        meters = [meter for scope in scopes for meter in scope.meters.values()]
        values = combine_over_ranks(meters, self.strategy)
        for meter in meters:
            if meter.on_step and meter.last is not None:
                self._published[meter.step_key] = meter.last
                self._positions[meter.step_key] = self.position
                if meter.prog_bar:
                    self._bar[meter.step_key] = meter.last
                if meter.fresh and meter.logger:
                    self.never_sent.add(meter.step_key)
            if meter in values:
                self._publish(meter.epoch_key, values[meter], meter)
                self._published[meter.name + meter.suffix] = values[meter]
                self._positions[meter.name + meter.suffix] = self.position
        results = [{m.epoch_key: values[m] for m in scope.meters.values() if m in values} for scope in scopes]
        if keep:
            return results
        self._spent.update({id(meter.metric): meter.metric for meter in meters if meter.metric is not None})
        for scope in scopes:
            scope.meters = {}
        return results

    def reset_objects(self) -> None:
        """Let objects that gather begin anew whose values were published: when the hooks that may read them are over."""
        for metric in self._spent.values():
            metric.reset()
        self._spent = {}

    def discard(self, phase: str) -> None:
        """Forget what a phase logged."""
        for scope in self._scopes.values():
            if scope.phase == phase:
                for meter in scope.meters.values():
                    if meter.metric is not None:
                        meter.metric.reset()
                scope.meters = {}

    def _publish(self, key: str, value: Value, meter: Meter) -> None:
        self._published[key] = value
        self._positions[key] = self.position
        if meter.prog_bar:
            self._bar[key] = value
        if meter.logger:
            self._unsent[key] = value

    def send(self, step: int) -> None:
        """Send what was published since the last time, as one row."""
        if self._unsent:
            self._pending.append((Readback({**self._unsent, "epoch": self.epoch}), step))
            self._unsent = {}
        self.drain(wait=len(self._pending) > 8)

    def drain(self, wait: bool) -> None:
        """Hand over the rows that have arrived on the host.

        Args:
            wait: Also those that have not: waits for the device.
        """
        while self._pending and (wait or self._pending[0][0].ready):
            readback, step = self._pending.popleft()
            row = readback.result()
            self.logged.update(row)
            at = int(row.pop("step", step))
            if self.strategy.global_rank == 0:
                call_loggers(self.loggers, lambda logger, row=row, at=at: logger.log_metrics(row, at))  # type: ignore[misc]

    # ---- Reading

    def callback_metrics(self) -> dict[str, Tensor]:
        """The latest value of every name, as tensors on their devices. Copies: later values do not show."""
        latest = dict(self._published)
        for scope in self._scopes.values():
            if scope.phase == "train":
                latest.update({m.step_key: m.last for m in scope.meters.values() if m.on_step and m.last is not None})
        return {key: value.clone() if isinstance(value, Tensor) else torch.tensor(value) for key, value in latest.items()}

    def measured_at(self, name: str, now: int) -> int | None:
        """Training batches done when the latest value of a name was measured: ``now`` for single values; ``None``: never."""
        train = (scope for scope in self._scopes.values() if scope.phase == "train")
        live = any(m.on_step and m.last is not None and m.step_key == name for s in train for m in s.meters.values())
        return now if live else self._positions.get(name)

    def showing(self, wait: bool) -> dict[str, float]:
        """The values for the progress bar.

        Args:
            wait: The present ones, waiting for the device; otherwise those that have arrived since the last call.
        """
        latest = dict(self._bar)
        for scope in self._scopes.values():
            latest.update(
                {m.step_key: m.last for m in scope.meters.values() if m.prog_bar and m.on_step and m.last is not None}
            )
        if self._arriving is None or self._arriving.ready:
            self._shown = self._arriving.result() if self._arriving is not None else self._shown
            self._arriving = Readback(latest)
        if wait or self._arriving.ready:
            readback, self._arriving = Readback(latest) if wait else self._arriving, None
            self._shown = readback.result()
        return self._shown

    def show(self, logged: Mapping[str, float], bar: Mapping[str, float]) -> None:
        """Take over what loggers and the progress bar had received in another process."""
        self.logged, self._bar = dict(logged), dict(bar)

    # ---- State

    def state_dict(self, parts: Mapping[str, Any], shared: bool = True) -> dict[str, Any]:
        """The sums of an unfinished training epoch, and what was published.

        Args:
            parts: Objects that gather, by name.
            shared: Of several ranks, such that any number of them can go on; else those of this rank alone.
        """
        names = {id(part): name for name, part in parts.items()}
        scopes = [scope for scope in self._scopes.values() if scope.phase == "train"]
        for meter in (meter for scope in scopes for meter in scope.meters.values() if meter.metric is not None):
            if id(meter.metric) not in names:
                warn(
                    "metric-not-saved",
                    f"self.log({meter.name!r}) was given an object that is neither a submodule nor an attribute of the module: "
                    "what it gathers is in no checkpoint, and a resumed epoch has the rest of it alone",
                )
        totals = self._shared_totals([meter for scope in scopes for meter in scope.meters.values()]) if shared else {}
        return {
            "epoch": [[s.batches, [{**m.state_dict(names), **totals.get(m, {})} for m in s.meters.values()]] for s in scopes],
            "unsent": _copied(self._unsent),
            "recorded": self._recorded,
            "live": [m.step_key for s in scopes for m in s.meters.values() if self._published.get(m.step_key) is m.last],
            "position": self.position,
            "never_sent": sorted(self.never_sent),
            "spent": [names[each] for each in self._spent if each in names],
            "logged": dict(self.logged),
            **self.shown(),
        }

    def shown(self) -> dict[str, Any]:
        """What was published so far."""
        return {
            "published": _copied(self._published),
            "positions": dict(self._positions),
            "bar": _copied(self._bar),
        }

    def _shared_totals(self, meters: list[Meter]) -> dict[Meter, dict[str, Any]]:
        """For meters with ``sync_dist``, a total from which all ranks can go on: together they have what they had together."""
        synced = [m for m in meters if m.on_epoch and m.sync and m.metric is None and m.total is not None]
        if self.strategy.world_size == 1 or not synced:
            return {}
        check_same_names([f"{meter.epoch_key}:{meter.reduce}" for meter in synced], self.strategy)
        kept = [(meter.total, meter.weight) for meter in synced]
        exchange_all(synced, self.strategy)
        found: dict[Meter, dict[str, Any]] = {}
        for meter, before in zip(synced, kept, strict=True):
            parts = 1 if meter.reduce in ("min", "max") else self.strategy.world_size
            assert meter.total is not None
            found[meter] = {"total": meter.total / parts, "weight": meter.weight / parts}
            meter.total, meter.weight = before
        return found

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device, parts: Mapping[str, Any]) -> None:
        """Continue an epoch; ``parts``: objects that gather, by name."""
        self._spent = {id(parts[name]): parts[name] for name in state.get("spent", ()) if name in parts}
        published, bar, unsent = (state.get(key, {}) for key in ("published", "bar", "unsent"))
        self._published, self._bar, self._unsent = (_copied(values, device) for values in (published, bar, unsent))
        self._positions, self.logged = dict(state.get("positions", {})), dict(state.get("logged", {}))
        self._recorded, self.never_sent = state.get("recorded", 0), set(state.get("never_sent", ()))
        self.position = state.get("position", 0)
        for batches, meters in state["epoch"]:
            self.enter("train", batches=batches)
            assert self._scope is not None
            for saved in meters:
                meter = self._scope.declare(saved["name"], tuple(saved["declared"]))
                meter.load_state_dict(saved, device, parts)
                self._scope.meters[meter.name] = meter
                if meter.step_key in state.get("live", ()) and meter.last is not None:  # shows later values too
                    self._published[meter.step_key] = meter.last
                    self._bar.update({meter.step_key: meter.last} if meter.step_key in self._bar else {})
        self.leave()


def _copied(values: Mapping[str, Value], device: torch.device | None = None) -> dict[str, Value]:
    return {key: value.detach().to(device, copy=True) if isinstance(value, Tensor) else value for key, value in values.items()}
