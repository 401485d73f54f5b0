"""Switches, errors and figures of the accelerator, as far as they need no GPU."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from fulmen_cuda import CUDAAccelerator
from fulmen_cuda.accelerator import figures

from fulmen import Callback, ConfigurationError, PluginSet, Runtime
from fulmen.testing import FailingModule, Failure, Regression, batches, quiet

no_gpu = pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU")


class OnHost(CUDAAccelerator):
    """Everything but the device: runs on the processor."""

    is_available = staticmethod(lambda: True)
    num_available = staticmethod(lambda: 1)

    def devices(self, indices):
        return [torch.device("cpu") for _ in indices]

    def setup_device(self, device):
        self._set_precision()

    def batches(self, batches, move, ahead):
        return map(move, batches)


def switches():
    cudnn = torch.backends.cudnn
    return {
        "matmul": torch.get_float32_matmul_precision(),
        "tf32": cudnn.allow_tf32,
        "deterministic": cudnn.deterministic,
        "benchmark": cudnn.benchmark,
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


class Look(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen = switches()


def seen_in_a_run(accelerator, **options):
    look, before = Look(), switches()
    quiet(accelerator=accelerator, max_epochs=1, callbacks=look, **options).fit(Regression(), batches(1))
    assert switches() == before
    return {name: value for name, value in look.seen.items() if value != before[name]}


@pytest.mark.parametrize(
    "name", ["cuda", "gpu", "cuda?matmul_precision=high&cudnn_tf32=false&prefetch_batches=2&pin_memory=true"]
)
def test_it_is_found_by_name_and_takes_its_options_in_text(name):
    built = PluginSet.discover().build("accelerator", name)
    assert type(built) is CUDAAccelerator
    expected = ("high", False, 2, True) if "?" in name else (None, None, 1, False)
    assert (built.matmul_precision, built.cudnn_tf32, built.prefetch_batches, built.pin_memory) == expected


@no_gpu
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA")
def test_a_torch_without_cuda_says_so():
    with pytest.raises(ConfigurationError) as caught:
        Runtime(accelerator="cuda")
    assert str(caught.value).startswith("accelerator 'cuda' finds no device on this machine (available: ")
    assert str(caught.value).endswith(
        f"; torch {torch.__version__} is built without CUDA: install a build with it (pytorch.org/get-started), or use 'auto'"
    )


def test_other_reasons_are_told_too(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert CUDAAccelerator.advice() == "see whether `nvidia-smi` lists it; a container needs --gpus"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    assert CUDAAccelerator.advice() == ("CUDA_VISIBLE_DEVICES='9' names none: unset it, or name one that `nvidia-smi -L` lists")


def test_asking_starts_no_context():
    assert CUDAAccelerator.is_available() is (CUDAAccelerator.num_available() > 0)
    assert not torch.cuda.is_initialized() or torch.cuda.is_available()


@pytest.mark.parametrize(
    ("arguments", "options", "changed"),
    [
        ({}, {}, {}),
        ({"matmul_precision": "high"}, {}, {"matmul": "high"}),
        ({"matmul_precision": "medium"}, {}, {"matmul": "medium"}),
        ({"cudnn_tf32": False}, {}, {"tf32": False}),
        ({}, {"deterministic": True}, {"deterministic": True, "workspace": ":4096:8"}),
        ({}, {"deterministic": "warn"}, {"deterministic": True, "workspace": ":4096:8"}),
        ({}, {"benchmark": True}, {"benchmark": True}),
        ({}, {"deterministic": False, "benchmark": True}, {"benchmark": True}),
    ],
)
def test_switches_hold_during_a_run_and_are_put_back(monkeypatch, arguments, options, changed):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert seen_in_a_run(OnHost(**arguments), **options) == changed


def test_a_reproducible_run_does_not_benchmark(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    assert seen_in_a_run(OnHost(), deterministic=True) == {"deterministic": True, "benchmark": False}


def test_switches_are_put_back_after_a_failure():
    before, trainer = switches(), quiet(accelerator=OnHost("high"), max_epochs=1, deterministic=True)
    with pytest.raises(Failure):
        trainer.fit(FailingModule(0), batches(1), batches(1))
    assert switches() == before


def test_reproducible_and_fastest_contradict_each_other():
    before = switches()
    with pytest.raises(ConfigurationError) as caught:
        quiet(accelerator=OnHost(), deterministic="warn", benchmark=True).fit(Regression(), batches(1))
    assert str(caught.value) == (
        "deterministic='warn' and benchmark=True contradict each other: the algorithms that a benchmark chooses can differ "
        "between runs; drop one"
    )
    assert switches() == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"matmul_precision": "tf32"},
            "matmul_precision='tf32' is not allowed; allowed: 'highest', 'high' (TF32), 'medium' (bfloat16), and None",
        ),
        ({"prefetch_batches": -1}, "prefetch_batches=-1 is not allowed; allowed: a whole number from 0"),
        ({"prefetch_batches": True}, "prefetch_batches=True is not allowed; allowed: a whole number from 0"),
    ],
)
def test_wrong_options_say_what_is_allowed(arguments, text):
    with pytest.raises(ConfigurationError) as caught:
        CUDAAccelerator(**arguments)
    assert str(caught.value) == text


def test_figures_are_those_of_the_allocator():
    stats = {"allocated_bytes.all.current": 3, "allocated_bytes.all.peak": 5, "num_ooms": 0, "segment.all.current": 7}
    assert figures(stats) == {"memory_allocated_bytes": 3, "memory_allocated_peak_bytes": 5, "out_of_memory_errors": 0}


@no_gpu
def test_without_cuda_there_are_no_figures_and_no_state():
    accelerator = CUDAAccelerator()
    assert accelerator.random_state() == {}
    assert accelerator.set_random_state({"cuda": [torch.get_rng_state()]}) is None
    assert accelerator.teardown() is None


def test_it_can_be_sent_to_another_process():
    sent = pickle.loads(pickle.dumps(CUDAAccelerator("medium", prefetch_batches=3)))
    assert (sent.matmul_precision, sent.prefetch_batches) == ("medium", 3)
