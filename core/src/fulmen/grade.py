"""What keeps a resumed training from being, bit for bit, the one that was never cut; by name, and with the way to get that.

Fulmen keeps the position in the data, all random states of Python, NumPy, torch and the device, and what parts give as their
state. This finds what lies outside: data that cannot say where they stand, random generators that somebody keeps for himself,
and devices that add in another order each time.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from fulmen.contracts.callback import Callback
from fulmen.contracts.module import Module
from fulmen.contracts.stateful import Stateful
from fulmen.gathering import gathering_parts, says_what_it_holds
from fulmen.hooks import overrides
from fulmen.state import Run

_DEPTH = 4
_INSIDE = ("dataset", "datasets", "transform", "transforms", "target_transform", "collate_fn", "sampler", "batch_sampler")
"""Attributes of datasets and loaders in which others are found."""


def obstacles(run: Run) -> list[str]:
    """What makes a resume of this training inexact, and how to mend each; empty: it is exact."""
    loaders = run.loaders["train"]
    found = [text for source in loaders.sources for text in of_loader(source.loader, loaders.name)]
    owners: list[tuple[Any, str, bool]] = [
        (run.module, type(run.module).__name__, overrides(run.module, "on_save_checkpoint", Module)),
        *((each, type(each).__name__, overrides(each, "state_dict", Callback)) for each in run.callbacks),
    ]
    for owner, name, keeps_state in owners:
        if not keeps_state:
            found += [_of_generator(each, "save it in on_save_checkpoint") for each in generators_in(owner, name)]
    found += [
        f"{type(run.module).__name__}.{name} gathers values (update, compute, reset) that are in no checkpoint: give it "
        "buffers, or state_dict and load_state_dict"
        for name, part in gathering_parts(run.module).items()
        if not says_what_it_holds(part)
    ]
    if run.device.type != "cpu" and not run.options.deterministic:
        found.append(f"operations on {run.device.type} may add in another order each time: Trainer(deterministic=True)")
    return found


def of_loader(loader: Any, name: str) -> list[str]:
    """What makes going on in the middle of a training loader inexact.

    Args:
        loader: Any iterable of batches.
        name: What it is called in messages.
    """
    if isinstance(loader, Iterator):
        return [f"{name} is an iterator, which cannot be started again: give what it iterates over"]
    if isinstance(loader, Stateful) or not isinstance(loader, DataLoader):
        return []
    found, dataset = [], loader.dataset
    if isinstance(dataset, IterableDataset) and not (isinstance(dataset, Stateful) and loader.num_workers == 0):
        what = f"{name}: {type(dataset).__name__}"
        if isinstance(dataset, Stateful):
            found.append(f"{what} is read by workers, whose positions nobody knows: num_workers=0, or StatefulDataLoader")
        else:
            found.append(
                f"{what} cannot say where it stands, so it is read again up to there, which is exact only if it gives the same "
                "again: give it state_dict and load_state_dict, or use a map-style dataset"
            )
    parts = [dataset, loader.sampler, loader.batch_sampler, loader.collate_fn]
    kept = [getattr(part, "generator", None) for part in (loader, *parts[1:3])]
    for part in parts:
        if part is not None and not isinstance(part, Stateful):
            inside = generators_in(part, f"{name}: {type(part).__name__}", kept)
            found += [_of_generator(each, "draw from random, numpy.random or torch themselves") for each in inside]
    return list(dict.fromkeys(found))


def _of_generator(name: str, remedy: str) -> str:
    return f"{name} is a random generator of its own, whose state is in no checkpoint: {remedy}"


def generators_in(part: Any, name: str, kept: Iterable[Any] = (), depth: int = _DEPTH) -> list[str]:
    """The names of random generators among the attributes of ``part``, and of what it is made of.

    Args:
        part: Any object.
        name: What it is called.
        kept: Generators whose states are saved.
        depth: How far to look.
    """
    found: list[str] = []
    children = part.named_modules() if isinstance(part, nn.Module) else [("", part)]
    for prefix, each in children:
        for key, value in getattr(each, "__dict__", {}).items():
            where = f"{name}.{prefix}.{key}" if prefix else f"{name}.{key}"
            if isinstance(value, _kinds()):
                found += [where] if not any(value is other for other in kept) else []
            elif key in _INSIDE and depth:
                items = value if isinstance(value, (list, tuple)) else [value]
                found += [text for item in items for text in generators_in(item, where, kept, depth - 1)]
    return found


def _kinds() -> tuple[type, ...]:
    numpy = sys.modules.get("numpy.random")
    return (random.Random, torch.Generator, *((numpy.Generator, numpy.RandomState) if numpy is not None else ()))
