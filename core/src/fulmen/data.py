"""The loaders of one stage: how many batches they give, where they stand, and how a batch reaches the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from fulmen.batches import move_to_device
from fulmen.combined import CombinedLoader, Mode, is_collection
from fulmen.contracts.accelerator import Accelerator
from fulmen.contracts.data_hooks import DataHooks
from fulmen.contracts.datamodule import DataModule
from fulmen.contracts.module import Module
from fulmen.contracts.precision import Precision
from fulmen.errors import ConfigurationError, ModuleError
from fulmen.hooks import overrides
from fulmen.likeness import restoring
from fulmen.rank_state import own_part
from fulmen.rng import isolated
from fulmen.source import Source, dealt, distributed, has_none, in_order, is_indexed

if TYPE_CHECKING:
    from fulmen.contracts.strategy import Strategy
    from fulmen.state import Run

Move = Callable[[Any], Any]
Limit = int | float
LOADER_METHODS = {
    "train": "train_dataloader",
    "validate": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}
"""Phase -> the method that gives its loaders."""
TRANSFER = "transfer_batch_to_device"


class Loaders:
    """All loaders of a phase.

    Args:
        loaders: Any iterable of batches, a :class:`CombinedLoader`, or loaders in dictionaries, lists and tuples.
        phase: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        limit: Use so many batches (int), or this fraction of them (float), of each loader.
        keep_order: Replace shuffling, as ``overfit_batches`` needs it.
        strategy: Gives each rank its share; ``None`` leaves the samplers alone.
    """

    def __init__(
        self, loaders: Any, phase: str, limit: Limit, *, keep_order: bool = False, strategy: Strategy | None = None
    ) -> None:
        self.given, self.phase, self.name = loaders, phase, LOADER_METHODS[phase]
        self.combined = _as_combined(loaders, phase)
        arguments = strategy.sampler_arguments() if strategy is not None else None
        leaves = [in_order(leaf) if keep_order else leaf for leaf in self.combined.leaves]
        if arguments is not None and phase == "predict":
            leaves = [dealt(leaf, arguments) for leaf in leaves]
        elif arguments is not None:
            uneven = strategy.uneven if strategy is not None else None
            leaves = [distributed(leaf, arguments, shuffle=phase == "train", seed=0, uneven=uneven) for leaf in leaves]
        self.sources = [Source(leaf, self.name, strategy if phase == "train" else None) for leaf in leaves]
        self.lengths = [_length(source) for source in self.sources]
        self.num_batches = self._limits(limit)
        self.is_sure = True  # whether every rank gives as many

    # ---- Sizes

    def _limits(self, limit: Limit) -> list[float]:
        """How many batches each loader gives (evaluation), or all together (training); infinity where nobody knows."""
        if self.combined.mode == "sequential":
            pairs = zip(self.sources, self.lengths, strict=True)
            return [0 if has_none(s.loader) else limited(length, limit, self.name, self.phase) for s, length in pairs]
        known = [length for length in self.lengths if length is not None]
        every = len(known) == len(self.lengths)
        enough = every or (known and self.combined.mode == "min_size" and not every)
        together = self.combined.combined_length(known) if every else None
        return [limited(together if enough else None, limit, self.name, self.phase)]

    @property
    def total(self) -> float:
        """Batches in one pass over all loaders; infinity where nobody knows."""
        return sum(self.num_batches)

    # ---- Training

    def iterate(self, epoch: int, done: int) -> Iterator[Any]:
        """The batches of an epoch, from batch ``done`` on."""
        iterators = [source.begin(epoch) for source in self.sources]
        remaining = None if self.total == float("inf") else max(0, int(self.total) - done)
        if self._single:
            batches: Iterator[Any] = iterators[0]
        else:
            counted = [_counted(source, iterator) for source, iterator in zip(self.sources, iterators, strict=True)]
            restart = lambda index: _counted(self.sources[index], self.sources[index].begin(epoch))  # noqa: E731
            batches = (batch for batch, _, _ in self.combined.combine(counted, restart, done))
        return islice(batches, remaining)

    def gives_ahead(self, index: int = 0) -> bool:
        """Whether a batch of a loader may be taken before it is used; see :attr:`Source.gives_ahead`."""
        alone = self._single or self.combined.mode == "sequential"
        return alone and self.sources[index].gives_ahead

    @property
    def _single(self) -> bool:
        return len(self.sources) == 1 and self.combined.iterables is self.combined.leaves[0]

    def close(self) -> None:
        """End worker processes. The position is kept."""
        for source in self.sources:
            source.close()

    # ---- Evaluation

    def each(self, epoch: int, limit: int | None = None) -> Iterator[tuple[int, Iterator[Any]]]:
        """The index and the batches of each loader, one loader after the other; ``limit`` lowers the limit of each."""
        stops = [_stop(number if limit is None else min(number, limit)) for number in self.num_batches]
        if self.combined.mode != "sequential":
            iterators = [source.begin(epoch) for source in self.sources]
            combined = self.combined.combine(iterators, lambda index: self.sources[index].begin(epoch))
            yield 0, islice((batch for batch, _, _ in combined), stops[0])
            return
        for index, source in enumerate(self.sources):
            yield index, islice(source.begin(epoch), stops[index])

    # ---- State

    def state_dict(self, done: int, inside: bool = False) -> list[dict[str, Any]]:
        """Where the loaders stand after ``done`` batches of this epoch; ``inside``: the next was taken, and comes again."""
        if self.phase != "train" or not done:
            return [source.state_dict(batches=0) for source in self.sources]
        return [source.state_dict(done if self._single else source.batches - inside) for source in self.sources]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Let the next epoch continue there.

        Raises:
            ModuleError: There is another number of loaders now.
        """
        if len(state) != len(self.sources):
            raise ModuleError(
                f"{self.name} gives {len(self.sources)} loaders, and the checkpoint was made with {len(state)}: "
                "the position in the data cannot be restored"
            )
        for source, saved in zip(self.sources, state, strict=True):
            source.load_state_dict(saved)

    @property
    def is_indexed(self) -> bool:
        """Whether all samples are taken by indices that a sampler gives, so that any number of ranks can go on with them."""
        return all(is_indexed(source.loader) for source in self.sources)

    @property
    def ratio(self) -> float:
        """Batches now for each batch before a resume: 1, unless batch size and number of ranks have changed."""
        return self.sources[0].ratio if self.sources else 1.0

    def converted(self, done: int) -> int:
        """A number of batches before a resume as batches of now."""
        if self.ratio == 1 or not done:
            return done
        return self.sources[0].batches if self._single else round(done * self.ratio)


def _as_combined(loaders: Any, phase: str) -> CombinedLoader:
    if isinstance(loaders, CombinedLoader):
        if phase == "train" and loaders.mode == "sequential":
            raise ConfigurationError(
                "train_dataloader cannot be combined in mode 'sequential'; use 'max_size_cycle' or 'min_size'"
            )
        return loaders
    mode: Mode = "max_size_cycle" if phase == "train" else "sequential"
    if is_collection(loaders):
        return CombinedLoader(loaders, mode)
    combined = CombinedLoader([], mode)
    combined.iterables, combined.leaves = loaders, [loaders]
    return combined


def _counted(source: Source, iterator: Iterator[Any]) -> Iterator[Any]:
    for batch in iterator:
        source.batches += 1
        yield batch


def _stop(limit: float) -> int | None:
    return None if limit == float("inf") else int(limit)


def _length(source: Source) -> int | None:
    if not hasattr(type(source.loader), "__iter__") and not hasattr(type(source.loader), "__getitem__"):
        raise ModuleError(
            f"{source.name} gave a {type(source.loader).__name__}, which is no loader; allowed is any iterable of batches, "
            "or a dictionary, list or tuple of them"
        )
    try:
        return len(source)
    except (TypeError, NotImplementedError):  # an iterable that does not know its length
        return None


def limited(length: int | None, limit: Limit, name: str, phase: str) -> float:
    """How many of ``length`` batches ``limit`` leaves.

    Raises:
        ModuleError: There are none, or a fraction leaves none or cannot be taken.
    """
    option = f"limit_{'val' if phase == 'validate' else phase}_batches"
    if limit == 0:
        return 0
    if length == 0:
        raise ModuleError(
            f"{name} is empty: it gives no batch. Check the dataset, its filter and drop_last; 0 as {option} skips it"
        )
    if length is None:
        if isinstance(limit, float) and limit != 1.0:
            raise ModuleError(
                f"{option}={limit} is a fraction, and {name} does not know its length; give a number of "
                "batches, or define __len__"
            )
        return float("inf") if isinstance(limit, float) else limit
    if isinstance(limit, int):
        return min(limit, length)
    count = int(length * limit + 1e-9)  # 0.29 * 100 is a little less than 29
    if count == 0:
        raise ModuleError(
            f"{option}={limit} of the {length} batches of {name} is none; "
            f"give at least {1 / length:.3g}, or a number of batches"
        )
    return count


def data_owner(method: str, module: Module, datamodule: DataModule | None) -> DataHooks:
    """Who answers a data hook: the data module where it overrides it, else the module."""
    if datamodule is not None and overrides(datamodule, method, DataModule):
        return datamodule
    return module


def make_move(
    module: Module, datamodule: DataModule | None, device: torch.device, precision: Precision, dataloader_idx: int
) -> Move | None:
    """The function that brings a batch to the device; ``None`` where there is nothing to do."""
    copy = _user_steps(TRANSFER, module, datamodule, (device, dataloader_idx), always=device.type != "cpu")
    before = _user_steps("on_before_batch_transfer", module, datamodule, (dataloader_idx,))
    return _in_sequence([*before, *copy, *_finishing(module, datamodule, precision, dataloader_idx)])


def _finishing(module: Module, datamodule: DataModule | None, precision: Precision, dataloader_idx: int) -> list[Move]:
    """What is done to a batch on its device."""
    converts = [precision.convert_input] if overrides(precision, "convert_input", Precision) else []
    return [*converts, *_user_steps("on_after_batch_transfer", module, datamodule, (dataloader_idx,))]


def _user_steps(
    name: str, module: Module, datamodule: DataModule | None, arguments: tuple[Any, ...], always: bool = False
) -> list[Move]:
    """A data hook where somebody overrides it, or ``always``."""
    owner = data_owner(name, module, datamodule)
    acts = always or overrides(owner, name, DataHooks)
    return [_with_arguments(getattr(owner, name), arguments, name)] if acts else []


def _in_sequence(steps: list[Move]) -> Move | None:
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else lambda batch: _chain(steps, batch)


def _with_arguments(method: Callable[..., Any], arguments: tuple[Any, ...], name: str) -> Move:
    def call(batch: Any) -> Any:
        moved = method(batch, *arguments)
        if moved is None and batch is not None:
            raise ModuleError(f"{name} returned None; it must return the batch")
        return moved

    return call


def _chain(steps: list[Move], batch: Any) -> Any:
    for step in steps:
        batch = step(batch)
    return batch


# ---- The loaders of a run


def has_loader(run: Run, phase: str) -> bool:
    """Whether the caller, the data module or the module gives loaders for a phase."""
    if run.given.get(phase) is not None:
        return True
    method = LOADER_METHODS[phase]
    owner = data_owner(method, run.module, run.datamodule)
    return overrides(owner, method, DataModule if isinstance(owner, DataModule) else Module)


def loaders_of(run: Run, phase: str) -> Loaders:
    """The loaders of a phase, made when they are first asked for.

    Raises:
        ModuleError: Nobody gives any, or they are empty.
    """
    phase = "validate" if phase == "sanity_check" else phase
    if phase not in run.loaders:
        run.loaders[phase] = _make_loaders(run, phase)
        saved = own_data(run, phase)
        if saved is not None:
            with restoring(run.resumed_from, f"data.{phase}"):
                run.loaders[phase].load_state_dict(saved)
        if saved is not None and phase == "train":
            run.progress.batch = run.loaders[phase].converted(run.progress.batch)
    return run.loaders[phase]


def own_data(run: Run, phase: str) -> Any:
    """Where this rank stood in a phase when the checkpoint was made; that of rank 0 with another number of ranks."""
    return own_part(run, run.resumed or {}, "data").get(phase)


def _make_loaders(run: Run, phase: str) -> Loaders:
    method = LOADER_METHODS[phase]
    owner = data_owner(method, run.module, run.datamodule)
    found = run.given.get(phase)
    found = getattr(owner, method)() if found is None else found
    if found is None:
        raise ModuleError(f"{type(owner).__name__}.{method} returned None; it must return a loader, or a collection of them")
    return Loaders(
        found,
        phase,
        run.options.limit(phase),
        keep_order=bool(run.options.overfit_batches) and phase == "train",
        strategy=run.runtime.strategy if run.options.use_distributed_sampler or run.runtime.world_size == 1 else None,
    )


def last_batch(run: Run) -> Any:
    """The last training batch of this rank in the epoch, by one more pass over its data.

    Raises:
        ModuleError: It has none.
    """
    loaders = _make_loaders(run, "train")
    for source, present in zip(loaders.sources, run.loaders["train"].sources, strict=True):
        source.repeat(present)
    with isolated():
        found = deque(loaders.iterate(run.progress.epoch, 0), maxlen=1)
        loaders.close()
    if not found:
        raise ModuleError(
            f"rank {run.runtime.global_rank} has no training batch, and others have; each rank needs one: give it a share"
        )
    return found[0]


def another_pass(run: Run) -> Iterator[Any]:
    """The batches of one more pass over the training data, on their device. The training's own position stays where it is."""
    loaders = _make_loaders(run, "train")
    try:
        yield from on_device(run, loaders.iterate(run.progress.epoch, 0), loaders)
    finally:
        loaders.close()


def reload_loaders(run: Run) -> bool:
    """Ask for new loaders where ``reload_dataloaders_every_n_epochs`` says so; whether there are new ones to train with."""
    every = run.options.reload_dataloaders_every_n_epochs
    if every and run.progress.epoch and run.progress.epoch % every == 0:
        for phase in [phase for phase in run.loaders if run.given.get(phase) is None]:
            run.loaders[phase] = _make_loaders(run, phase)
        return run.given.get("train") is None
    return False


def on_device(run: Run, batches: Iterator[Any], loaders: Loaders, index: int = 0) -> Iterator[Any]:
    """The batches of a loader on the device of a run, brought there by its accelerator where that has a way of its own."""
    module, datamodule, accelerator, precision = run.module, run.datamodule, run.runtime.accelerator, run.runtime.precision
    own_copy = overrides(data_owner(TRANSFER, module, datamodule), TRANSFER, DataHooks)
    if own_copy or not overrides(accelerator, "batches", Accelerator):
        move = make_move(module, datamodule, run.device, precision, index)
        return batches if move is None else map(move, batches)
    prepare = _in_sequence(_user_steps("on_before_batch_transfer", module, datamodule, (index,)))
    ahead = prepare is None and loaders.gives_ahead(index)
    prepared = batches if prepare is None else map(prepare, batches)
    moved = accelerator.batches(prepared, lambda batch: move_to_device(batch, run.device), ahead)
    finish = _in_sequence(_finishing(module, datamodule, precision, index))
    return moved if finish is None else map(finish, moved)
