"""Read event files back as TensorBoard does."""

from __future__ import annotations

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

EVERYTHING = dict.fromkeys(("scalars", "histograms", "images", "audio", "tensors", "compressedHistograms"), 0)


def read(folder) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance=EVERYTHING)
    return found.Reload()


def scalars(folder, tag) -> list[tuple[int, float]]:
    """``(step, value)`` as the page of a run shows them."""
    return [(each.step, each.value) for each in read(folder).Scalars(tag)]


def rows(folder) -> list[dict]:
    """Every scalar as a row of its own."""
    found = read(folder)
    return [{"step": each.step, tag: each.value} for tag in found.Tags()["scalars"] for each in found.Scalars(tag)]


def events(path) -> list:
    """All events of one file."""
    return list(EventFileLoader(str(path)).Load())
