"""Ranks with other numbers of batches than the rest, and steps without a loss: nobody waits, and all learn the same."""

from __future__ import annotations

import pytest
import torch
from ddp_job import Job, Report, SizedUneven, Skipping, Uneven, samples
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, ModuleError
from fulmen.testing import mse, quiet


def fit(folder, module, data, *, uneven=None, ranks=2, **options):
    """Train on forked ranks; what each of them reports."""
    strategy = {"name": "ddp_fork", "timeout_s": 30, "uneven": uneven}
    callbacks = [Report(str(folder), "uneven"), *options.pop("callbacks", [])]
    options = {"max_epochs": 1, "limit_val_batches": 0, **options}
    trainer = quiet(accelerator="cpu", devices=ranks, strategy=strategy, callbacks=callbacks, **options)
    trainer.fit(module, data)
    reports = [torch.load(folder / f"uneven.{rank}", weights_only=True) for rank in range(ranks)]
    for report in reports[1:]:
        assert far(report["weights"], reports[0]["weights"]) == 0, "the ranks have different weights"
    return reports[0]


def alone(module, data, **options):
    """The same in one process."""
    options = {"max_epochs": 1, "limit_val_batches": 0, **options}
    quiet(accelerator="cpu", strategy="single_device", **options).fit(module, data)
    return module.state_dict()


def far(one, other):
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def fresh(kind=Job, *arguments, **named):
    torch.manual_seed(0)
    return kind(*arguments, **named)


# ---- Steps without a loss


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("sums", [False, True])
def test_batches_that_all_ranks_skip_do_not_count_as_in_one_process(tmp_path, sums, accumulate):
    for how in ("all", "none"):
        found = fit(tmp_path, fresh(Skipping, how, sums), samples(96, 4), accumulate_grad_batches=accumulate)
        expected = alone(fresh(Skipping, how, sums), samples(96, 8), accumulate_grad_batches=accumulate)
        assert far(found["weights"], expected) < 1e-5, how


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("how", ["some", "mixed", "first"])
def test_sums_that_some_ranks_skip_equal_one_process_without_these_samples(tmp_path, how, accumulate):
    class Without(Job):
        """In one process, the last half of the ranks' samples is every second one."""

        def training_step(self, batch, batch_idx):
            all_skip = how == "mixed" and batch_idx % 3 == 1
            some = {"some": batch_idx % 3 == 1, "mixed": batch_idx % 4 == 0, "first": batch_idx < 2}[how]
            kept = [part[::2] for part in batch] if some else batch
            loss = super().training_step(kept, batch_idx)
            return None if all_skip else loss

    found = fit(tmp_path, fresh(Skipping, how, True), samples(96, 4), accumulate_grad_batches=accumulate)
    expected = alone(fresh(Without, True), samples(96, 8), accumulate_grad_batches=accumulate)
    assert far(found["weights"], expected) < 1e-5


@pytest.mark.parametrize("accumulate", [1, 4])
def test_means_that_some_ranks_skip_count_with_a_gradient_of_zero(tmp_path, accumulate):
    class Halved(Job):
        def training_step(self, batch, batch_idx):
            half = batch_idx % 3 == 1
            loss = super().training_step([part[::2] for part in batch] if half else batch, batch_idx)
            return loss / 2 if half else loss

    found = fit(tmp_path, fresh(Skipping, "some"), samples(96, 4), accumulate_grad_batches=accumulate)
    expected = alone(fresh(Halved), samples(96, 8), accumulate_grad_batches=accumulate)
    assert far(found["weights"], expected) < 1e-5


def test_callbacks_see_none_where_a_rank_had_no_loss(tmp_path):
    class Outputs(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            skipped = trainer.global_rank == 1 and batch_idx % 3 == 1
            assert (outputs is None) is skipped, (trainer.global_rank, batch_idx, outputs)

    assert fit(tmp_path, Skipping("some"), samples(96, 4), callbacks=[Outputs()])["batches"] == 12


class Loss(Skipping):
    """Returns the loss in a mapping."""

    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "other": 1}


def test_a_mapping_without_a_loss_is_no_loss(tmp_path):
    found = fit(tmp_path, fresh(Loss, "some"), samples(96, 4))
    assert far(found["weights"], fit(tmp_path, fresh(Skipping, "some"), samples(96, 4))["weights"]) == 0


# ---- Data that cannot be divided


@pytest.mark.parametrize("kind", [Uneven, SizedUneven])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("uneven", "batches"), [(None, 4), ("drop", 4), ("pad", 7), ("join", 7)])
def test_datasets_of_each_rank(tmp_path, kind, accumulate, uneven, batches):
    options = {"max_epochs": 2, "accumulate_grad_batches": accumulate}
    found = fit(tmp_path, fresh(sums=True), DataLoader(kind([14, 7]), 2), uneven=uneven, **options)
    assert found["batches"] == 2 * batches
    expected = alone(fresh(sums=True), together([14, 7], 2, uneven, batches), **options)
    assert far(found["weights"], expected) < 1e-5


def together(counts, batch_size, uneven, batches):
    """The batches of both ranks as one process would have them."""
    ranks = [list(DataLoader(Uneven(counts, rank), batch_size)) for rank in range(2)]
    if uneven == "pad":
        ranks[1] += [ranks[1][-1]] * (batches - len(ranks[1]))
    parts = [[rank[index] for rank in ranks if index < len(rank)] for index in range(batches)]
    return [[torch.cat(part) for part in zip(*each, strict=True)] for each in parts]


@pytest.mark.parametrize(("uneven", "seen"), [(None, 12), ("drop", 9), ("pad", 12), ("join", 11)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_dataset_that_is_shared(tmp_path, uneven, seen, shuffle):
    data = TensorDataset(torch.eye(11)[:, :3], torch.arange(11.0).view(-1, 1))
    loader = DataLoader(data, 1, shuffle=shuffle)
    fit(tmp_path, Recording(tmp_path), loader, uneven=uneven, ranks=3, max_epochs=2)
    for epoch in range(2):
        shares = [torch.load(tmp_path / f"seen.{rank}.{epoch}", weights_only=True) for rank in range(3)]
        every = sorted(number for share in shares for number in share)
        assert len(every) == seen
        assert len(set(every)) == min(seen, 11)


@pytest.mark.parametrize(("uneven", "seen"), [(None, 12), ("drop", 9), ("pad", 12), ("join", 11)])
def test_a_list_of_batches_is_shared_alike(tmp_path, uneven, seen):
    data = [[torch.eye(11)[row : row + 1, :3], torch.full((1, 1), float(row))] for row in range(11)]
    fit(tmp_path, Recording(tmp_path), data, uneven=uneven, ranks=3, max_epochs=2)
    shares = [torch.load(tmp_path / f"seen.{rank}.1", weights_only=True) for rank in range(3)]
    assert shares[0][:3] == [0, 3, 6]
    every = [number for share in shares for number in share]
    assert (len(every), len(set(every))) == (seen, min(seen, 11))


class Recording(Job):
    """Writes down which samples each rank was trained on."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.seen = folder, []

    def training_step(self, batch, batch_idx):
        self.seen += batch[1].flatten().tolist()
        return mse(self.net, batch)

    def on_train_epoch_end(self):
        torch.save(self.seen, self.folder / f"seen.{self.trainer.global_rank}.{self.trainer.current_epoch}")
        self.seen = []


@pytest.mark.filterwarnings(r"ignore:\[resume-replay\]")
@pytest.mark.parametrize("uneven", ["pad", "join"])
def test_a_resume_where_only_one_rank_has_batches_left(tmp_path, uneven):
    loader, strategy = DataLoader(Uneven([14, 5]), 2), {"name": "ddp_fork", "uneven": uneven, "timeout_s": 30}
    whole = fit(tmp_path, fresh(sums=True), loader, uneven=uneven, max_epochs=2)
    fit(tmp_path, fresh(sums=True), loader, uneven=uneven, callbacks=[SaveAt(5, tmp_path / "cut.ckpt")])
    resumed = fresh(sums=True)
    trainer = quiet(accelerator="cpu", devices=2, strategy=strategy, max_epochs=2, limit_val_batches=0)
    trainer.fit(resumed, loader, ckpt_path=tmp_path / "cut.ckpt")
    assert (trainer.progress.batches, far(whole["weights"], resumed.state_dict())) == (14, 0)


class SaveAt(Callback):
    def __init__(self, batch, path):
        self.batch, self.path = batch, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == self.batch:
            trainer.save_checkpoint(self.path)


def test_a_rank_without_any_batch_is_an_error(tmp_path):
    with pytest.raises(ModuleError) as error:
        fit(tmp_path, Job(), DataLoader(Uneven([4, 0]), 2), uneven="join")
    assert str(error.value) == "rank 1 has no training batch, and others have; each rank needs one: give it a share"


def test_a_limit_on_data_that_does_not_know_its_length_hangs_nobody(tmp_path):
    found = fit(tmp_path, Job(), DataLoader(Uneven([14, 8]), 2), limit_train_batches=6)
    assert found["batches"] == 4
