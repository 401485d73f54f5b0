"""Which GPUs are meant: with counts and environments that are given, so without a GPU."""

from __future__ import annotations

import pytest
from fulmen_cuda import CUDAAccelerator, find_usable_cuda_devices
from fulmen_cuda.devices import usable

from fulmen import ConfigurationError

NAMES = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-1f7a1c6e-27f7-5a5c-9b6a-2f5b8c1d0e11"


class Two(CUDAAccelerator):
    """As with two GPUs."""

    num_available = staticmethod(lambda: 2)


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [("auto", [0, 1]), (-1, [0, 1]), (1, [0]), ("2", [0, 1]), ([1], [1]), ("1,0", [1, 0])],
)
def test_which_devices_are_meant(devices, expected):
    assert Two().parse_devices(devices) == expected


def test_more_than_there_are_says_what_to_do(monkeypatch):
    with pytest.raises(ConfigurationError) as caught:
        Two().parse_devices(3)
    text = (
        "devices=3 does not fit accelerator 'cuda', which has 2; allowed are 'auto' or -1 (all), a count from 1 to 2, or a "
        "list of different indices below 2"
    )
    assert str(caught.value) == f"{text}. To use what is there: devices='auto'"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5")
    with pytest.raises(ConfigurationError) as caught:
        Two().parse_devices(3)
    assert str(caught.value) == f"{text}; CUDA_VISIBLE_DEVICES=4,5 hides others. To use what is there: devices='auto'"


@pytest.mark.parametrize(
    ("devices", "expected"),
    [("GPU-8932f937", [0]), ("MIG-1f7a1c6e-27f7-5a5c-9b6a-2f5b8c1d0e11", [1]), (["MIG-1f7", "GPU-893"], [1, 0])],
)
def test_devices_by_name(monkeypatch, devices, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", NAMES)
    assert Two().parse_devices(devices) == expected


@pytest.mark.parametrize(
    ("visible", "name", "text"),
    [
        ("GPU-12,GPU-34", "MIG-56", "the device 'MIG-56' is not in CUDA_VISIBLE_DEVICES (GPU-12, GPU-34)"),
        ("", "MIG-56", "the device 'MIG-56' is not in CUDA_VISIBLE_DEVICES ((none))"),
        ("GPU-12,GPU-13", "GPU-1", "the device 'GPU-1' is more than once in CUDA_VISIBLE_DEVICES (GPU-12, GPU-13)"),
    ],
)
def test_a_name_must_be_visible_and_alone(monkeypatch, visible, name, text):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigurationError) as caught:
        Two().parse_devices(name)
    assert str(caught.value) == f"{text}; set CUDA_VISIBLE_DEVICES={name} before the program starts and use devices='auto'"


def test_usable_devices_are_tried_in_order_and_no_more_than_needed():
    tried = []

    def works(index):
        tried.append(index)
        return index != 1

    assert usable(2, 5, works) == [0, 2]
    assert tried == [0, 1, 2]
    assert usable(-1, 4, works) == [0, 2, 3]


def test_too_few_usable_devices_are_an_error():
    with pytest.raises(ConfigurationError) as caught:
        usable(3, 4, lambda index: index < 2)
    assert str(caught.value) == (
        "3 usable CUDA devices are needed, and of the 4 visible ones 2 can be used (0, 1); wait until others are free, or ask "
        "for fewer"
    )
    with pytest.raises(ConfigurationError, match="1 usable CUDA devices are needed, and of the 0 visible ones 0"):
        usable(-1, 0, lambda index: True)


@pytest.mark.parametrize("number", [0, -2, True, "2", 1.0])
def test_a_wrong_number_is_refused(number):
    with pytest.raises(ConfigurationError) as caught:
        find_usable_cuda_devices(number)
    assert str(caught.value) == f"num_devices={number!r} is not allowed; allowed: a whole number from 1, or -1 for all"
