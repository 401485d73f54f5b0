"""What a profiler measures."""

from __future__ import annotations

import pytest

from fulmen import Profiler


class Notes(Profiler):
    def __init__(self):
        self.notes = []

    def start(self, action):
        self.notes.append(f"start {action}")

    def stop(self, action):
        self.notes.append(f"stop {action}")

    def summary(self):
        return "\n".join(self.notes)


def test_a_profiler_measures_blocks_functions_and_iterators():
    profiler = Notes()
    with pytest.raises(KeyError), profiler.profile("a"):
        raise KeyError
    assert profiler.notes == ["start a", "stop a"]
    profiler.notes = []
    assert profiler.wrap("b", len)("xyz") == 3
    with pytest.raises(TypeError):
        profiler.wrap("c", len)(3)
    assert profiler.notes == ["start b", "stop b", "start c", "stop c"]
    profiler.notes = []
    assert list(profiler.iterate("d", iter([1, 2]))) == [1, 2]
    assert profiler.notes == ["start d", "stop d"] * 3  # the third finds the end
    assert profiler.teardown() is None
