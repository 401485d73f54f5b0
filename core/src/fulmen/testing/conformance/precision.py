"""The suite for precisions."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fulmen import Callback, FulmenError, Precision, Runtime
from fulmen.testing.conformance.measure import Between, DeviceReads, Lines
from fulmen.testing.conformance.suite import Suite, only_if, process_is_left_as_it_was, same, through_a_file, unless
from fulmen.testing.fakes import FailingModule, Failure
from fulmen.testing.training import Validated, batches, mse, network, same_weights, without_dropout


class PrecisionSuite(Suite):
    """Subclass it, give ``name``, :meth:`make` and the two dtypes."""

    kind = "precision"

    parameter_dtype: torch.dtype = torch.float32
    """The format in which parameters are kept."""

    compute_dtype: torch.dtype = torch.float32
    """The format that a linear layer gives inside a step."""

    tolerance: float = 1e-5
    """How far losses may be from those in 32 bits (relative, and absolute near 0)."""

    accelerator: str = "cpu"
    """Where these tests train; they are skipped where it is not available."""

    takes_closure: bool = True
    """Whether optimizers that need a closure (LBFGS) work. Off: they must be an error."""

    reads_device: bool = False
    """Whether a step waits for the device by its nature, as an overflow check on the host does."""

    has_state: bool = False
    """Whether it has state for the checkpoint, such as a gradient scale."""

    @pytest.fixture(autouse=True)
    def _where_available(self) -> None:
        try:
            Runtime(accelerator=self.accelerator)
        except FulmenError as error:
            pytest.skip(str(error))

    def place(self, part: Any) -> dict[str, Any]:
        """The precision, on the accelerator of these tests."""
        return {"precision": part, "accelerator": self.accelerator, "devices": 1}

    # ---- Behaviour

    def test_it_has_the_name_it_is_registered_under(self, tmp_path: Path) -> None:
        """Checkpoints and summaries show it."""
        part = self.make(tmp_path)
        assert isinstance(part, Precision) and part.name == self.name

    def test_steps_of_every_kind_run_in_it(self, tmp_path: Path) -> None:
        """Parameters have ``parameter_dtype``; layers give ``compute_dtype`` in training, validation, test and prediction."""
        seen: dict[str, set[torch.dtype]] = {}

        class Look(Validated):
            def on_fit_start(self) -> None:
                kinds = {parameter.dtype for parameter in self.parameters()}
                seen["parameters"] = kinds
                self.get_submodule("net.0").register_forward_hook(self.keep)

            def keep(self, layer: Any, arguments: Any, output: Tensor) -> None:
                seen.setdefault(str(self.trainer.phase), set()).add(output.dtype)

        module, trainer = Look(), self.trainer(self.make(tmp_path), max_epochs=1)
        trainer.fit(module, batches(4), batches(2))
        trainer.validate(module, batches(2))
        trainer.test(module, batches(2))
        trainer.predict(module, batches(2))
        phases = {phase: {self.compute_dtype} for phase in ("train", "sanity_check", "validate", "test", "predict")}
        assert seen == {"parameters": {self.parameter_dtype}, **phases}

    def test_it_learns_what_32_bits_learn(self, tmp_path: Path) -> None:
        """The losses of a training without dropout follow those in 32 bits within ``tolerance``."""
        losses = []
        for part in (self.make(tmp_path), Precision()):
            module = without_dropout(Validated())
            self.train(part, module)
            losses.append(torch.tensor(module.losses))
        torch.testing.assert_close(*losses, rtol=self.tolerance, atol=self.tolerance)

    def test_gradients_are_unscaled_where_people_look_and_clip(self, tmp_path: Path) -> None:
        """In ``on_before_optimizer_step`` they have the size that they have in 32 bits; clipping then holds."""
        norms: dict[str, list[Tensor]] = {}

        class Look(Callback):
            def __init__(self, who: str) -> None:
                self.found = norms.setdefault(who, [])

            def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
                self.found.append(torch.stack([p.grad.float().norm() for p in module.parameters()]).norm().cpu())

            def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
                left = [p.grad.float().norm() for p in module.parameters() if p.grad is not None]  # from the step before
                norm = torch.stack(left).norm() if left else torch.zeros(())
                assert norm <= 0.0101, "gradients were larger than gradient_clip_val when the optimizer stepped"

        for who, part in (("ours", self.make(tmp_path)), ("32 bits", Precision())):
            module = without_dropout(Validated())
            options: dict[str, Any] = {"gradient_clip_val": 0.01, "max_epochs": 1, "callbacks": [Look(who)]}
            self.train(part, module, **options)
        ours, theirs = (torch.stack(found) for found in norms.values())
        rough = max(10 * self.tolerance, 1e-4)
        torch.testing.assert_close(ours, theirs, rtol=rough, atol=rough)

    def test_input_is_converted_where_it_has_to_be(self, tmp_path: Path) -> None:
        """Whole numbers, flags and things that are no tensors stay what they are, and the batch keeps its shape."""
        batch = {"x": torch.ones(2, 3), "index": torch.arange(2), "mask": torch.tensor([True]), "names": ["a"], "n": 3}
        found = self.make(tmp_path).convert_input(batch)
        assert {name: getattr(found[name], "dtype", None) for name in ("index", "mask")} == {
            "index": torch.int64,
            "mask": torch.bool,
        }
        assert (found["names"], found["n"], found["x"].shape) == (["a"], 3, (2, 3))
        assert found["x"].is_floating_point()

    def test_a_loop_of_ones_own_can_use_it(self, tmp_path: Path) -> None:
        """Through :class:`fulmen.Runtime`: set up, backward, step."""
        runtime = Runtime(accelerator=self.accelerator, devices=1, precision=self.make(tmp_path))
        model, optimizer = runtime.setup(network(), torch.optim.SGD, lr=0.1)
        losses = []
        for _ in range(8):
            x, y = runtime.to_device(batches(1)[0])
            with runtime.autocast():  # PyTorch 2.6 cannot differentiate a loss of two formats outside of it
                loss = mse(model, (x, y.to(self.parameter_dtype)))
            runtime.backward(loss)
            runtime.step(optimizer)
            optimizer.zero_grad()
            losses.append(loss.item())
        runtime.close()
        assert losses[-1] < losses[0]

    def test_closures_work_or_are_refused(self, tmp_path: Path) -> None:
        """LBFGS evaluates the loss several times in a step."""

        class Closure(Validated):
            def configure_optimizers(self) -> Any:
                return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

        module = Closure()
        if self.takes_closure:
            self.train(self.make(tmp_path), module, max_epochs=1)
            assert module.losses[-1] == module.losses[-1]
        else:
            with pytest.raises((ValueError, RuntimeError, TypeError), match=r"(?i)closure|LBFGS"):
                self.train(self.make(tmp_path), module, max_epochs=1)

    def test_the_process_is_left_as_it_was(self, tmp_path: Path) -> None:
        """Default dtype, autocast and backend switches, after a training, after one that fails, and after two teardowns."""
        part = self.make(tmp_path)
        with process_is_left_as_it_was():
            self.train(part, max_epochs=1)
            with pytest.raises(Failure):
                self.train(self.make(tmp_path), FailingModule(at=3))
            for _ in range(2):
                part.teardown()
            with part.forward_context(), part.init_context():
                torch.nn.Linear(2, 2)

    # ---- Cost

    def test_a_step_costs_the_same_after_many(self, tmp_path: Path) -> None:
        """Lines of Python per step do not grow with the steps before."""
        early, late = Lines(), Lines()
        callbacks = [Between(early, 20, 40), Between(late, 420, 440)]
        self.train(self.make(tmp_path), max_epochs=1, data=batches(4) * 111, callbacks=callbacks, log_every_n_steps=0)
        assert (late.count - early.count) / 20 <= 100, f"20 steps run {early.count} lines at first and {late.count} later"

    @unless("reads_device")
    def test_it_never_waits_for_the_device(self, tmp_path: Path) -> None:
        """No ``.item()`` or the like beyond those of the same training in 32 bits."""
        found = {}
        for who, part in (("ours", self.make(tmp_path)), ("theirs", Precision())):
            found[who] = DeviceReads()
            self.train(part, max_epochs=1, callbacks=[Between(found[who], 2, 6)], log_every_n_steps=0)
        assert found["ours"].count <= found["theirs"].count, f"it waits for the device: {found['ours'].places}"

    # ---- State

    def test_its_state_is_plain_data_and_comes_back(self, tmp_path: Path) -> None:
        """A checkpoint can hold it, and a new precision takes it."""
        part = self.make(tmp_path)
        self.train(part, max_epochs=1)
        state, other = through_a_file(part.state_dict()), self.make(tmp_path)
        assert bool(state) == self.has_state
        other.load_state_dict(state)
        assert same(through_a_file(other.state_dict()), state) or not self.has_state

    def test_a_training_that_was_cut_and_resumed_equals_one_that_was_not(self, tmp_path: Path) -> None:
        """Weights bit for bit, and its state."""
        whole, part = self.whole(tmp_path)
        resumed, other = self.cut_and_resumed(tmp_path)
        assert whole.module and resumed.module and same_weights(whole.module, resumed.module)
        assert same(part.state_dict(), other.state_dict())

    @only_if("has_state")
    def test_an_overflow_skips_the_update(self, tmp_path: Path) -> None:
        """A loss of infinity leaves the weights as they are, and the next batch trains."""
        weights: list[list[Tensor]] = []

        class Overflow(Validated):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                weights.append([parameter.detach().clone() for parameter in self.parameters()])
                loss = mse(self.net, batch)
                return loss * float("inf") if batch_idx == 2 else loss

        self.train(self.make(tmp_path), Overflow(), max_epochs=1)
        changed = [not all(map(torch.equal, *pair)) for pair in pairwise(weights)]
        assert not changed[2], "the weights changed in a step whose gradients are infinite"
        assert changed[6], "training did not go on after an overflow"
        assert all(bool(tensor.isfinite().all()) for tensor in weights[-1])
