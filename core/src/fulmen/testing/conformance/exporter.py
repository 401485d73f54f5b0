"""The suite for exporters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fulmen import FulmenError
from fulmen.testing.conformance.suite import Suite, new_python, only_if, process_is_left_as_it_was
from fulmen.testing.training import Validated, batches, quiet


class ExporterSuite(Suite):
    """Subclass it, give ``name``, :meth:`make`, :attr:`suffix` and :meth:`run`."""

    kind = "exporter"

    suffix: str = ""
    """The ending of its files, such as ``".onnx"``."""

    tolerance: float = 1e-5
    """How far outputs of the file may be from those of the module (relative, and absolute near 0)."""

    needs_sample: bool = True
    """Whether it has to know the shape of an input."""

    is_atomic: bool = True
    """Whether a file that was there before survives an export that fails."""

    gives_object: bool = True
    """Whether the format has an object in memory, which ``export(..., path=None)`` returns."""

    picklable = False
    """It takes no part in a training, so it is not sent to new processes."""

    def run(self, path: Path, x: Tensor) -> Tensor:
        """What the exported file computes for an input [4, 3], as a user of the format runs it."""
        raise NotImplementedError(f"{type(self).__name__} needs: def run(self, path, x)")

    def trained(self) -> Validated:
        """A module that has just been trained."""
        module = Validated()
        quiet(max_epochs=1).fit(module, batches(4), batches(2))
        return module

    def place(self, part: Any) -> dict[str, Any]:
        """Nowhere."""
        return {}

    # ---- Behaviour

    def test_the_file_computes_what_the_module_computes(self, tmp_path: Path) -> None:
        """After a training, by name; the module is in evaluation mode: its dropout is off."""
        module, x, path = self.trained(), batches(1)[0][0], tmp_path / f"model{self.suffix}"
        written = module.export(self.name, path, x)
        assert isinstance(written, Path) and written.exists()
        expected = module.eval()(x).detach()
        torch.testing.assert_close(self.run(written, x), expected, rtol=self.tolerance, atol=self.tolerance)

    def test_text_is_a_path_and_the_example_input_a_sample(self, tmp_path: Path) -> None:
        """Both are as people write them."""
        module, x = self.trained(), batches(1)[0][0]
        module.example_input_array = x
        written = module.export(self.name, str(tmp_path / f"model{self.suffix}"))
        expected = module.eval()(x).detach()
        torch.testing.assert_close(self.run(written, x), expected, rtol=self.tolerance, atol=self.tolerance)

    def test_the_module_is_left_as_it_was(self, tmp_path: Path) -> None:
        """Mode of every layer, gradients, weights, hooks; also where the export fails."""
        module = self.trained()
        module.train()
        module.get_submodule("net.2").eval()
        module.get_submodule("net.0").requires_grad_(False)
        before = description(module)
        with process_is_left_as_it_was():
            module.export(self.name, tmp_path / f"model{self.suffix}", batches(1)[0][0])
            assert description(module) == before
            with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it says, see the next test
                module.export(self.name, tmp_path / "no" / "such" / "folder" / "\0", batches(1)[0][0])
        assert description(module) == before

    @only_if("gives_object")
    def test_without_a_path_it_gives_the_object(self) -> None:
        """People who go on with it in the same process need no file."""
        assert self.trained().export(self.name, None, batches(1)[0][0]) is not None

    # ---- Failure

    @only_if("needs_sample")
    def test_without_a_sample_it_says_how_to_give_one(self, tmp_path: Path) -> None:
        """The error names ``example_input_array``, and nothing is written."""
        path = tmp_path / f"model{self.suffix}"
        with pytest.raises((FulmenError, ValueError), match="example_input_array"):
            self.trained().export(self.name, path)
        assert not path.exists()

    def test_an_unknown_option_is_an_error(self, tmp_path: Path) -> None:
        """A misspelled option is never ignored."""
        with pytest.raises((FulmenError, TypeError, ValueError), match="no_such_option"):
            self.trained().export(self.name, tmp_path / f"model{self.suffix}", batches(1)[0][0], no_such_option=1)

    def test_a_full_disk_is_an_error_and_leaves_the_earlier_file(self, tmp_path: Path) -> None:
        """No half-written file passes for a model."""
        pytest.importorskip("resource", reason="this system has no limit for files")
        module, x, path = self.trained(), batches(1)[0][0], tmp_path / f"model{self.suffix}"
        module.export(self.name, path, x)
        before = path.read_bytes()
        output = new_python("-m", f"{__package__}.spawned", "export", self.name, str(path))
        assert "refused: " in output, "it says nothing when the file cannot be written"
        if self.is_atomic:
            assert path.read_bytes() == before
            left = [each.name for each in tmp_path.iterdir() if each != path]
            assert not left, f"left behind: {left}"


def description(module: Validated) -> Any:
    """What an export must leave alone."""
    return (
        [(name, layer.training, len(layer._forward_hooks)) for name, layer in module.named_modules()],
        [(name, p.requires_grad, p.device, p.dtype, p.detach().clone().tolist()) for name, p in module.named_parameters()],
    )
