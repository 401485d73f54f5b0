"""Every option changes what happens. Two forked ranks for each group of options."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from ddp_checks import JOB, finished
from ddp_job import Job, Report, Unused, samples
from fulmen_ddp import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, ConfigurationError, FulmenWarning, ModuleError, PluginSet
from fulmen.testing import quiet


def fit(folder, name, module, data=None, *, strategy="ddp_fork", **options):
    """Train on two ranks; the weights of rank 0 at the end."""
    callbacks = [Report(str(folder), name), *options.pop("callbacks", [])]
    options = {"max_epochs": 1, "accelerator": "cpu", "devices": 2, "limit_val_batches": 0, **options}
    trainer = quiet(strategy=strategy, callbacks=callbacks, **options)
    trainer.fit(module, samples(96, 4) if data is None else data)
    return torch.load(folder / f"{name}.0", weights_only=True)["weights"]


def fork(**options):
    return {"name": "ddp_fork", **options}


def far(one, other):
    return max(float((one[key] - other[key]).abs().max()) for key in one if one[key].is_floating_point())


def test_communication_hooks_change_the_gradients_a_little(tmp_path):
    exact = fit(tmp_path, "exact", Job())
    powersgd = {"matrix_approximation_rank": 1, "start_powerSGD_iter": 2, "min_compression_rate": 0.1}
    for name, state in (("bf16", None), ("fp16", None), ("powersgd", powersgd)):
        found = fit(tmp_path, name, Job(), strategy=DDPStrategy("fork", comm_hook=name, comm_state=state))
        assert 0 < far(exact, found) < 0.5, name
    assert far(exact, fit(tmp_path, "own", Job(), strategy=DDPStrategy("fork", comm_hook=halved, comm_state=0.5))) > 1e-3


def halved(state, bucket):
    future = torch.futures.Future()
    future.set_result(bucket.buffer() * state)
    return future


class Buckets(Callback):
    """Counts the buckets of the last exchange, and the stores in which the gradients lie."""

    def __init__(self, folder):
        self.folder = folder

    def on_before_optimizer_step(self, trainer, module, optimizer):
        stores = {p.grad.untyped_storage().data_ptr() for p in module.parameters()}
        if trainer.is_global_zero:
            (self.folder / "buckets").write_text(f"{counted.pop() if counted else 0} {len(stores)}")


counted = []


def counting(state, bucket):
    """A communication hook that notes the number of the bucket, and averages."""
    counted.append(bucket.index() + 1)
    work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def wide():
    torch.manual_seed(0)
    module = Job()
    module.net = nn.Sequential(*[nn.Linear(100, 100) for _ in range(6)], nn.Linear(100, 1))  # 40 kB each
    return module


class Wide(DataLoader):
    def __init__(self):
        x = torch.randn(32, 100, generator=torch.Generator().manual_seed(1))
        super().__init__(TensorDataset(x, x.sum(1, keepdim=True)), 4)


def test_the_size_of_buckets_decides_how_many_exchanges_there_are(tmp_path):
    found = {}
    for size in (None, 0.05, 0.1):
        strategy = DDPStrategy("fork", bucket_cap_mb=size, comm_hook=counting)
        fit(tmp_path, "size", wide(), Wide(), strategy=strategy, callbacks=[Buckets(tmp_path)])
        found[size] = int((tmp_path / "buckets").read_text().split()[0])
    assert found[None] < found[0.1] < found[0.05]


def test_gradients_are_views_of_buckets_unless_told_otherwise(tmp_path):
    found = {}
    for views in (True, False):
        strategy = fork(gradient_as_bucket_view=views)
        fit(tmp_path, "views", wide(), Wide(), strategy=strategy, callbacks=[Buckets(tmp_path)])
        found[views] = int((tmp_path / "buckets").read_text().split()[1])
    assert found[True] <= 2
    assert found[False] == 14  # one for each parameter


class BackendReport(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_fit_start(self, trainer, module):
        self.folder.joinpath(f"found.{trainer.global_rank}").write_text(dist.get_backend_config())


def test_the_backend_of_the_process_group(tmp_path):
    """Another name than gloo for gloo, as the backend of a vendor would be registered."""
    made = []

    def make(store, rank, size, timeout):
        made.append(rank)
        return dist.ProcessGroupGloo(store, rank, size, timeout)

    dist.Backend.register_backend("vendor", make, devices=["cpu"])
    for name, expected in ((None, "cpu:gloo,"), ("cpu:gloo", "cpu:gloo"), ("cpu:vendor", "cpu:vendor")):
        fit(tmp_path, "backend", Job(), strategy=fork(process_group_backend=name), callbacks=[BackendReport(tmp_path)])
        for rank in range(2):
            assert tmp_path.joinpath(f"found.{rank}").read_text().startswith(expected)


def test_unused_parameters(tmp_path):
    with pytest.raises(ModuleError) as error:
        fit(tmp_path, "off", Unused(), strategy=fork(timeout_s=20))
    assert re.sub(r"rank \d", "rank N", str(error.value)) == (
        "some parameters took no part in the loss of the batch before, on rank N, and the gradients of the ranks cannot be "
        "averaged without them: idle.weight, idle.bias. Use strategy='ddp_fork_find_unused_parameters_true', or freeze those "
        "that are never used"
    )
    for name in ("ddp_fork_find_unused_parameters_true", fork(static_graph=True)):
        assert fit(tmp_path, "on", Unused(), strategy=name)


def test_sync_batchnorm_sees_all_ranks(tmp_path):
    torch.manual_seed(0)
    synced = fit(tmp_path, "synced", batchnorm(), strategy=fork(sync_batchnorm=True))
    alone = batchnorm()
    quiet(max_epochs=1, accelerator="cpu", strategy="single_device", limit_val_batches=0).fit(alone, samples(96, 8))
    assert far(synced, alone.state_dict()) < 1e-5
    assert far(fit(tmp_path, "each", batchnorm()), alone.state_dict()) > 1e-3


def batchnorm():
    torch.manual_seed(0)
    return Job(batchnorm=True)


def test_batchnorm_is_what_it_was_after_every_run(script, tmp_path):
    """Also after one that failed; the layer stays the same object with the same parameters, and can be trained again."""
    status, output = finished(script(JOB, "ddp", tmp_path, "synced"))
    assert status == 0, output
    found = json.loads((tmp_path / "synced.0").read_text())
    assert found == ["BatchNorm1d", True, "boom on rank 1", "BatchNorm1d", True, True]


@pytest.mark.parametrize("broadcast", [True, False])
def test_a_validation_in_a_training_has_the_buffers_that_are_saved(tmp_path, broadcast):
    module, strategy = batchnorm(), fork(broadcast_buffers=broadcast)
    trainer = quiet(max_epochs=1, accelerator="cpu", devices=2, strategy=strategy)
    trainer.fit(module, samples(96, 4), samples(53, 4, 5))
    inside = float(trainer.callback_metrics["val_loss"])
    (after,) = trainer.validate(module, samples(53, 4, 5))
    assert (inside == after["val_loss"]) is broadcast


def test_buffers_are_those_of_rank_0_unless_told_otherwise(tmp_path):
    """The running means that a forward pass starts from; each rank then adds its own batch."""
    distances = []
    for name, broadcast in (("same", True), ("own", False)):
        fit(tmp_path, name, batchnorm(), strategy=fork(broadcast_buffers=broadcast))
        ranks = [torch.load(tmp_path / f"{name}.{rank}", weights_only=True)["weights"] for rank in range(2)]
        distances.append(float((ranks[0]["net.1.running_mean"] - ranks[1]["net.1.running_mean"]).abs().max()))
    assert distances[0] != distances[1]


class Gathering(Job):
    """Compares each sample with those of all ranks, as contrastive losses do."""

    def __init__(self, sync_grads=True):
        super().__init__()
        self.sync_grads = sync_grads

    def training_step(self, batch, batch_idx):
        own = {"z": self.net(batch[0])}
        every = self.all_gather(own, sync_grads=self.sync_grads)["z"].reshape(-1, 1)
        return (every - every.T).square().exp().clamp_max(50).log1p().mean() + own["z"].square().mean()


def test_gradients_flow_through_what_is_gathered(tmp_path):
    torch.manual_seed(0)
    alone = Gathering()
    quiet(max_epochs=1, accelerator="cpu", strategy="single_device", limit_val_batches=0).fit(alone, samples(96, 8))
    for sync_grads in (True, False):
        torch.manual_seed(0)
        found = fit(tmp_path, "gathered", Gathering(sync_grads))
        assert (far(found, alone.state_dict()) < 1e-5) is sync_grads


def test_a_training_that_is_cut_under_ddp_goes_on_in_one_process(tmp_path):
    trainer = quiet(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_fork")
    module = Job()
    trainer.fit(module, samples(96, 4), samples(53, 4, 5))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed = Job()
    with pytest.warns(FulmenWarning, match=r"\[resume-ranks\] a training of 2 ranks goes on with 1: every sample is used"):
        quiet(max_epochs=2, accelerator="cpu", strategy="single_device").fit(
            resumed, samples(96, 8), samples(53, 8, 5), ckpt_path=tmp_path / "one.ckpt"
        )
    whole = Job()
    quiet(max_epochs=2, accelerator="cpu", strategy="single_device").fit(whole, samples(96, 8), samples(53, 8, 5))
    assert far(resumed.state_dict(), whole.state_dict()) < 1e-5
    again = Job()
    quiet(max_epochs=2, accelerator="cpu", devices=2, strategy="ddp_fork").fit(
        again, samples(96, 4), samples(53, 4, 5), ckpt_path=tmp_path / "one.ckpt"
    )
    assert far(again.state_dict(), whole.state_dict()) < 1e-5


def test_names_stand_for_arguments():
    plugins = PluginSet.discover()
    spawn = plugins.build("strategy", "ddp_spawn_find_unused_parameters_true")
    assert (spawn.start_method, spawn.find_unused_parameters) == ("spawn", True)
    assert not plugins.build("strategy", "ddp_find_unused_parameters_false").find_unused_parameters
    assert plugins.build("strategy", "ddp_notebook").start_method == "fork"
    assert plugins.build("strategy", "ddp?timeout_s=5").timeout == timedelta(seconds=5)
    assert DDPStrategy(timeout=timedelta(minutes=1)).timeout == timedelta(seconds=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start_method": "thread"}, "start_method='thread' is not allowed; allowed: auto, popen, spawn, forkserver, fork"),
        ({"timeout_s": 0}, "timeout_s=0 is not allowed; allowed: seconds above 0, or a timedelta"),
        ({"stop_timeout_s": -1}, "stop_timeout_s=-1 is not allowed; allowed: seconds above 0, or a timedelta"),
        ({"uneven": "wait"}, "uneven='wait' is not allowed; allowed: 'drop', 'pad', 'join', None"),
        ({"bucket_cap_mb": 0}, "bucket_cap_mb=0 is not allowed; allowed: a size above 0 in MiB, or None"),
        ({"comm_hook": "int8"}, "comm_hook='int8' is not allowed; allowed: 'bf16', 'fp16', 'powersgd', a function, None"),
        (
            {"comm_hook": "bf16", "comm_state": {}},
            "comm_state={} would not be used: comm_hook='bf16' has none; it goes with 'powersgd' or a function",
        ),
        (
            {"comm_hook": "powersgd", "comm_state": 2},
            "comm_state=2 does not fit comm_hook='powersgd'; give a mapping such as {'matrix_approximation_rank': 2}",
        ),
    ],
)
def test_wrong_options(arguments, message):
    with pytest.raises(ConfigurationError) as error:
        DDPStrategy(**arguments)
    assert str(error.value) == message
