"""What exporters get: a module at rest, arguments for it, and a file that appears in one piece."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from fulmen import ConfigurationError, Exporter, ModuleError, hookimpl
from fulmen.contracts.exporter import example_arguments, replacing
from fulmen.testing import Regression, batches, quiet


class Describe(Exporter):
    """Writes what it sees of the module."""

    def export(self, module, path, input_sample=None, *, note="", fail=False, **unknown):
        self.refuse(unknown)
        torch.rand(3)
        seen = [module.training, torch.is_grad_enabled(), module.net[2].training, note]
        if fail:
            raise RuntimeError("no")
        if path is None:
            return seen
        with replacing(path) as file:
            file.write_text(str(seen))
        return path


class Plugin:
    @hookimpl
    def register(self, registry):
        registry.exporter("describe", f"{__name__}:Describe", summary="for tests")


@pytest.fixture
def trained():
    trainer, module = quiet(max_epochs=1, plugins=[Plugin()]), Regression()
    trainer.fit(module, batches(2))
    return trainer, module


def test_the_module_rests_and_is_put_back_exactly(trained):
    _, module = trained
    module.train()
    module.net[1].eval()
    before = [part.training for part in module.modules()]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert module.export("describe", None, note="x") == [False, False, False, "x"]
    with pytest.raises(RuntimeError, match="no"):
        module.export("describe", None, fail=True)
    assert torch.equal(torch.rand(2), expected)  # nothing was drawn
    assert [part.training for part in module.modules()] == before and torch.is_grad_enabled()
    assert "_exporting" not in vars(module)


def test_the_trainer_exports_its_module_or_another(trained, tmp_path):
    trainer, _ = trained
    trainer.export("describe", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "[False, False, False, '']"
    with pytest.raises(ConfigurationError) as caught:
        trainer.export("describe", tmp_path / "a", nte=1)
    assert str(caught.value) == "Describe has no option 'nte'; did you mean 'note'?; it has: note, fail"
    with pytest.raises(ModuleError, match="this trainer has not run yet"):
        quiet().export("describe", tmp_path / "a")


def test_arguments_of_forward():
    module, x = Regression(), torch.ones(1, 3, dtype=torch.float64)
    assert example_arguments(module, x) == ((x,), {})
    assert example_arguments(module, (x, 1)) == ((x, 1), {})
    assert example_arguments(module, {"x": x}) == ((), {"x": x})
    module.example_input_array = x
    assert example_arguments(module) == ((x,), {})


def test_without_an_example_it_says_how_to_give_one():
    with pytest.raises(ConfigurationError) as caught:
        example_arguments(Regression())
    assert str(caught.value) == (
        "exporting Regression needs an example of its input: pass input_sample=..., or set self.example_input_array in the "
        "module (a tensor, a tuple of arguments, or a mapping of keyword arguments)"
    )


def test_a_file_appears_whole_with_those_beside_it_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "model.bin"
    with replacing(path) as file:
        file.write_text("one")
        file.with_name("model.bin.data").write_text("more")
        assert not path.exists()
    assert {each.name: each.read_text() for each in path.parent.iterdir()} == {"model.bin": "one", "model.bin.data": "more"}

    def fails():
        with replacing(path) as file:
            file.write_text("two")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fails()
    assert path.read_text() == "one" and len(list(path.parent.iterdir())) == 2
    with replacing(os.fspath(path)) as file:
        file.write_text("three")
    assert path.read_text() == "three"


def test_not_to_a_url():
    with pytest.raises(ConfigurationError) as caught, replacing("s3://bucket/model"):
        pass
    assert str(caught.value) == "cannot export to s3://bucket/model: only to a local path; copy the file from there"


def test_torchscript_compiles_nothing_that_is_for_python():
    module = Regression()
    hidden = set(module.__jit_ignored_attributes__)
    assert {"trainer", "logger", "hparams", "_run", "example_input_array"} <= hidden
    assert isinstance(nn.Module.__annotations__, dict) and not hidden & {"net", "forward"}
