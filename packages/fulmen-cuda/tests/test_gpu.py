"""On a GPU: training there, copies beside the computation, random numbers, figures."""

from __future__ import annotations

import pytest
import torch
from fulmen_cuda import CUDAAccelerator, find_usable_cuda_devices
from fulmen_cuda.prefetch import SideStream
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, ConfigurationError, Runtime
from fulmen.testing import Regression, batches, quiet, same_weights

pytestmark = pytest.mark.gpu


def to_gpu(batch):
    return [tensor.to("cuda", non_blocking=True) for tensor in batch]


def trained(accelerator, data=None, **options):
    torch.manual_seed(3)
    module = Regression()
    options = {"max_epochs": 2, **options}
    quiet(accelerator=accelerator, devices=1, **options).fit(module, batches(12) if data is None else data)
    return module


@pytest.mark.parametrize("prefetch", [1, 4])
@pytest.mark.parametrize("pin", [False, True])
def test_weights_are_the_same_with_and_without_prefetching(prefetch, pin):
    plain = trained(CUDAAccelerator(prefetch_batches=0), deterministic=True)
    assert same_weights(plain, trained(CUDAAccelerator(prefetch_batches=prefetch, pin_memory=pin), deterministic=True))


def test_a_batch_is_complete_when_it_is_used_and_its_memory_is_kept():
    """Large batches, long computations, and nothing held by the test: a copy that nobody waits for would show."""
    data = [torch.full((2**22,), float(number)).pin_memory() for number in range(20)]
    side = CUDAAccelerator(prefetch_batches=2).batches(iter(data), lambda batch: batch.to("cuda", non_blocking=True), True)
    sums = []
    for batch in side:
        torch.cuda._sleep(2_000_000)
        sums.append(batch.mean())
        del batch
    assert [value.item() for value in sums] == [float(number) for number in range(20)]


def test_copies_run_on_a_stream_of_their_own():
    side = SideStream(to_gpu, pin=False)
    moved, event = side.start(batches(1)[0])
    assert side.stream != torch.cuda.current_stream()
    assert event is not None
    assert all(tensor.is_cuda for tensor in side.finish((moved, event)))


def test_pinning_puts_batches_into_pinned_memory():
    seen = []
    move = lambda batch: seen.append(batch[0].is_pinned()) or to_gpu(batch)  # noqa: E731
    for prefetch in (0, 1):
        for pin in (False, True):
            list(CUDAAccelerator(prefetch_batches=prefetch, pin_memory=pin).batches(iter(batches(1)), move, True))
    assert seen == [False, True, False, True]


class Watch(Callback):
    runs_last = True

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("error")

    def on_train_epoch_end(self, trainer, module):
        torch.cuda.set_sync_debug_mode("default")


class Silent(Regression):
    """Does not read its losses."""

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss


def test_no_step_waits_for_the_device():
    data = TensorDataset(torch.randn(64, 3), torch.randn(64, 1))
    loader, module = DataLoader(data, 4, num_workers=2, pin_memory=True), Silent()
    try:
        trainer = quiet(accelerator="cuda", devices=1, max_epochs=1, callbacks=Watch(), log_every_n_steps=2)
        trainer.fit(module, loader)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.global_step == 16


def test_random_numbers_of_all_devices_come_back():
    accelerator = CUDAAccelerator()
    accelerator.setup_device(torch.device("cuda", 0))
    torch.rand(1, device="cuda")
    state = accelerator.random_state()
    assert len(state["cuda"]) == torch.cuda.device_count()
    first = torch.rand(5, device="cuda")
    accelerator.set_random_state(state)
    assert torch.equal(first, torch.rand(5, device="cuda"))
    accelerator.set_random_state({"cuda": [*state["cuda"], state["cuda"][0]]})  # made where there was one more
    accelerator.teardown()


def test_figures_follow_allocations():
    accelerator, device = CUDAAccelerator(), torch.device("cuda", 0)
    before = accelerator.stats(device).get("memory_allocated_bytes", 0)
    kept = torch.ones(2**20, device=device)
    after = accelerator.stats(device)
    assert after["memory_allocated_bytes"] - before >= kept.nbytes
    assert after["memory_reserved_peak_bytes"] >= after["memory_reserved_bytes"] >= after["memory_allocated_bytes"]


def test_precision_of_products_changes_what_is_computed():
    a, b = torch.rand(512, 512, device="cuda"), torch.rand(512, 512, device="cuda")
    exact, found = a.double() @ b.double(), {}
    for precision in ("highest", "high"):
        accelerator = CUDAAccelerator(matmul_precision=precision)
        accelerator.setup_device(torch.device("cuda", 0))
        found[precision] = (a @ b - exact).abs().max().item()
        accelerator.teardown()
    assert found["highest"] < 1e-3
    assert torch.cuda.get_device_capability()[0] < 8 or found["high"] > found["highest"]


def test_usable_devices_and_too_many():
    assert find_usable_cuda_devices(1) == [0]
    count = torch.cuda.device_count()
    with pytest.raises(ConfigurationError, match=f"which has {count}; allowed are"):
        Runtime(accelerator="gpu", devices=count + 1)


def test_an_own_loop_prefetches_too():
    runtime = Runtime(accelerator="cuda", devices=1)
    loader = runtime.setup_dataloaders(batches(3))
    assert [tuple(tensor.device.type for tensor in batch) for batch in loader] == [("cuda", "cuda")] * 3
    runtime.close()
