"""The order of the samples, and the losses, do not depend on the number of ranks, and a resume may change it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).with_name("elastic_job.py")


def run(folder, *cases):
    """Run trainings one after the other in a process of their own; what it printed."""
    text = json.dumps([{"folder": str(folder), **case} for case in cases])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(JOB.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(JOB), text],
        cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def steps(folder, name, ranks):
    """(epoch, step) -> the samples of that optimizer step, with their losses, over all ranks; and the weights."""
    records = [json.loads((folder / f"{name}.{rank}").read_text()) for rank in range(ranks)]
    for record in records[1:]:
        assert record["weights"] == records[0]["weights"]
    found = {}
    for record in records:
        for epoch, step, indices, losses in record["seen"]:
            found.setdefault((epoch, step), []).extend(zip(indices, losses, strict=True))
    return {key: sorted(pairs) for key, pairs in found.items()}, records[0]["weights"]


def check_same(first, second, losses=True):
    assert first[0].keys() == second[0].keys()
    for key, pairs in first[0].items():
        assert [index for index, _ in pairs] == [index for index, _ in second[0][key]], key
        if losses:
            assert [loss for _, loss in pairs] == pytest.approx([loss for _, loss in second[0][key]], abs=1e-6), key
    if losses:
        for name, value in first[1].items():
            assert flat(value) == pytest.approx(flat(second[1][name]), abs=1e-6), name


def flat(value):
    return [number for each in value for number in flat(each)] if isinstance(value, list) else [value]


def union(before, after):
    return {**before[0], **after[0]}, after[1]


def test_a_fresh_start_has_the_same_order_on_one_two_and_four_ranks(tmp_path):
    samplers = ("shuffled", "weighted", "generator", "in order")
    run(tmp_path, *[
        {"name": f"{sampler}-{ranks}", "ranks": ranks, "batch_size": 8 // ranks, "sampler": sampler, "max_epochs": 2}
        for sampler in samplers for ranks in (1, 2, 4)
    ])  # fmt: skip
    for sampler in samplers:
        whole = steps(tmp_path, f"{sampler}-1", 1)
        assert len(whole[0]) == 12
        assert ([i for i, _ in whole[0][0, 0]] == [i for i, _ in whole[0][1, 6]]) is (sampler == "in order")
        check_same(whole, steps(tmp_path, f"{sampler}-2", 2))
        check_same(whole, steps(tmp_path, f"{sampler}-4", 4))


def test_an_epoch_that_cannot_be_divided(tmp_path):
    """50 samples: the last step has 2. On two ranks each has one of them; on four ranks two of the others are repeated."""
    cases = [{"ranks": ranks, "batch_size": 8 // ranks, "size": 50, "max_epochs": 2, "sums": True} for ranks in (1, 2, 4)]
    dropped = [{**case, "drop_last": True, "name": f"dropped-{case['ranks']}"} for case in cases]
    run(tmp_path, *[{**case, "name": f"all-{case['ranks']}"} for case in cases], *dropped)
    check_same(steps(tmp_path, "all-1", 1), steps(tmp_path, "all-2", 2))
    one, four = steps(tmp_path, "all-1", 1)[0], steps(tmp_path, "all-4", 4)[0]
    for key, pairs in one.items():
        assert {index for index, _ in pairs} <= {index for index, _ in four[key]}
        assert len(four[key]) == (8 if len(pairs) == 8 else 4)
    assert len(one[0, 6]) == 2
    for ranks in (2, 4):
        check_same(steps(tmp_path, "dropped-1", 1), steps(tmp_path, f"dropped-{ranks}", ranks))
    assert len(steps(tmp_path, "dropped-1", 1)[0]) == 12


def test_accumulation_takes_the_place_of_ranks(tmp_path):
    """The same samples per step, also where the cut is inside of an accumulation window."""
    run(
        tmp_path,
        {"name": "whole", "ranks": 1, "batch_size": 8},
        {"name": "a", "ranks": 4, "batch_size": 2, "stop": 4},
        {"name": "b", "ranks": 2, "batch_size": 2, "accumulate_grad_batches": 2, "stop": 7, "path": "a.ckpt"},
        {"name": "c", "ranks": 1, "batch_size": 2, "accumulate_grad_batches": 4, "path": "b.ckpt"},
    )
    parts = [steps(tmp_path, name, ranks) for name, ranks in (("a", 4), ("b", 2), ("c", 1))]
    found: dict = {}
    for part in parts:
        for key, pairs in part[0].items():
            found[key] = sorted(found.get(key, []) + pairs)
    check_same(steps(tmp_path, "whole", 1), (found, parts[-1][1]))


def test_dropout_and_workers_leave_the_order_as_it_is(tmp_path):
    """Random numbers in the model are others on another number of ranks, and the order of all epochs is the same."""
    cases = [{"name": f"{ranks}", "ranks": ranks, "batch_size": 8 // ranks, "dropout": True} for ranks in (1, 2)]
    resumed = {"name": "b", "ranks": 2, "batch_size": 4, "dropout": True, "path": "a.ckpt", "workers": 1}
    run(tmp_path, *cases, {"name": "a", "ranks": 4, "batch_size": 2, "dropout": True, "stop": 4}, resumed)
    whole = steps(tmp_path, "1", 1)
    check_same(whole, steps(tmp_path, "2", 2), losses=False)
    check_same(whole, union(steps(tmp_path, "a", 4), steps(tmp_path, "b", 2)), losses=False)


def test_a_resume_goes_from_four_ranks_to_two_to_one_and_back(tmp_path):
    def case(name, ranks, stop=None, path=None):
        return {"name": name, "ranks": ranks, "batch_size": 8 // ranks, "stop": stop, "path": path and f"{path}.ckpt"}

    run(tmp_path, case("whole", 1))
    printed = run(
        tmp_path, case("a", 4, 3), case("b", 2, 8, "a"), case("c", 1, 10, "b"), case("d", 2, 14, "c"), case("e", 4, None, "d")
    )
    parts = [steps(tmp_path, name, ranks) for name, ranks in (("a", 4), ("b", 2), ("c", 1), ("d", 2), ("e", 4))]
    assert [len(part[0]) for part in parts] == [3, 5, 2, 4, 4]
    found = parts[0]
    for part in parts[1:]:
        assert not found[0].keys() & part[0].keys()
        found = union(found, part)
    check_same(steps(tmp_path, "whole", 1), found)
    assert printed.count("[resume-ranks]") == 4
