"""Files that a process without fulmen loads, each option, and what is refused."""

from __future__ import annotations

import io
import subprocess
import sys
from textwrap import dedent

import pytest
import torch
from fulmen_torchscript.program import missing_compiler
from torch import nn
from torch.export import Dim

from fulmen import ConfigurationError, FulmenWarning, Module
from fulmen.testing import Regression, batches, quiet

LEGACY = [r"ignore:\[torchscript-deprecated\]", r"ignore:`torch.jit.\w+` is:DeprecationWarning"]
legacy = pytest.mark.filterwarnings(*LEGACY)


class Branching(Module):
    """Does something else with negative input: a trace sees one branch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        y = self.layer(x)
        if bool(x.sum() < 0):
            y = -y * 10
        return y


class Mapped(Module):
    """Takes its input by name and gives a mapping."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return {"y": self.layer(x)}


def elsewhere(load, path, x, tmp_path):
    """What a process that has no fulmen computes."""
    torch.save(x, tmp_path / "x")
    code = f"""
        import sys, warnings, torch
        warnings.simplefilter("ignore")
        sys.modules["fulmen"] = None
        x = torch.load({str(tmp_path / "x")!r})
        model = {load}
        with torch.no_grad():
            torch.save(model(x), {str(tmp_path / "y")!r})
    """.replace("PATH", repr(str(path)))
    subprocess.run([sys.executable, "-c", dedent(code)], check=True, capture_output=True, text=True)
    return torch.load(tmp_path / "y")


def trained():
    module = Regression()
    quiet(max_epochs=1).fit(module, batches(4))
    return module


# ---- TorchScript


@legacy
@pytest.mark.parametrize("method", ["script", "trace"])
def test_a_process_without_fulmen_gives_equal_outputs(tmp_path, method):
    module, x = trained(), batches(1)[0][0]
    path = module.to_torchscript(tmp_path / "model.pt", method, x)
    assert path == tmp_path / "model.pt" and module.training
    assert torch.equal(elsewhere("torch.jit.load(PATH)", path, x, tmp_path), module.eval()(x).detach())


@legacy
def test_without_a_path_the_module_itself_comes_back(tmp_path):
    module, x = trained(), batches(1)[0][0]
    for scripted in (module.to_torchscript(), module.to_torchscript(method="trace", example_inputs=x)):
        assert isinstance(scripted, torch.jit.ScriptModule) and not scripted.training
        assert torch.equal(scripted(x), module.eval()(x))


@legacy
def test_scripts_have_branches_and_traces_have_not():
    module, x = Branching().eval(), torch.ones(1, 3)
    script = module.export("torchscript", None)
    with pytest.warns(torch.jit.TracerWarning):
        trace = module.export("torchscript", None, x, method="trace")
    assert torch.equal(script(-x), module(-x)) and torch.equal(trace(x), module(x))
    assert not torch.equal(trace(-x), module(-x))


@legacy
def test_traces_take_names_and_give_mappings_where_strict_is_off():
    module, x = Mapped(), torch.ones(1, 3)
    with pytest.raises(RuntimeError, match="strict"):
        module.to_torchscript(method="trace", example_inputs={"x": x})
    traced = module.to_torchscript(method="trace", example_inputs={"x": x}, strict=False)
    assert torch.equal(traced(x=x)["y"], module(x)["y"])


class Moody(Module):
    """Never does the same thing twice."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


@pytest.mark.filterwarnings(*LEGACY, "ignore::torch.jit.TracerWarning")
def test_a_trace_is_checked_unless_told_otherwise():
    with pytest.raises(torch.jit.TracingCheckError):
        Moody().to_torchscript(method="trace", example_inputs=torch.ones(2))
    assert torch.equal(
        Moody().to_torchscript(method="trace", example_inputs=torch.ones(2), check_trace=False)(torch.ones(2)), torch.ones(2)
    )


def test_the_warning_says_what_to_use():
    with pytest.warns(FulmenWarning) as caught:
        Regression().to_torchscript()
    assert [str(each.message) for each in caught] == [
        "[torchscript-deprecated] TorchScript is deprecated in PyTorch and no longer developed; torch.export replaces it: "
        'module.to_torch_export("model.pt2", input_sample) writes a program, and package="aoti" compiles it'
    ]
    assert caught[0].filename == __file__


# ---- torch.export


@pytest.mark.parametrize("shapes", [{"x": {0: Dim("batch")}}, {"x": {0: "batch"}}, ({0: "batch"},)], ids=str)
def test_a_program_runs_without_fulmen_at_other_sizes(tmp_path, shapes):
    module, x = trained(), batches(1, size=7)[0][0]
    path = module.to_torch_export(tmp_path / "model.pt2", batches(1)[0][0], dynamic_shapes=shapes)
    found = elsewhere("torch.export.load(PATH).module()", path, x, tmp_path)
    torch.testing.assert_close(found, module.eval()(x).detach(), rtol=1e-6, atol=1e-6)


def test_an_open_file_and_unknown_arguments_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"^cannot export to <_io.BytesIO .*: only to a local path; read the bytes of"):
        Regression().to_torch_export(io.BytesIO(), torch.zeros(4, 3))
    with pytest.raises(ConfigurationError, match="dynamic_shapes has the key 'img'; keys are the names of forward"):
        Regression().to_torch_export(tmp_path / "model.pt2", torch.zeros(4, 3), dynamic_shapes={"img": {0: "batch"}})


def test_without_dynamic_shapes_other_sizes_are_refused(tmp_path):
    path = Regression().to_torch_export(tmp_path / "model.pt2", torch.zeros(4, 3))
    with pytest.raises(AssertionError, match=r"size\(\)\[0\] == 4"):
        torch.export.load(path).module()(torch.zeros(5, 3))


def test_a_program_without_a_path():
    module, x = Regression(), torch.zeros(4, 3)
    program = module.to_torch_export(None, x)
    assert isinstance(program, torch.export.ExportedProgram)
    assert torch.equal(program.module()(x), module.eval()(x))


class Loading(Module):
    """Reads a file, which only an export that runs the code can do."""

    def forward(self, x):
        with open(__file__) as file:
            return x + len(file.read()) * 0


def test_strict_analyses_the_code():
    program = Loading().to_torch_export(None, torch.zeros(2))
    assert torch.equal(program.module()(torch.ones(2)), torch.ones(2))
    with pytest.raises(Exception, match="open"):
        Loading().to_torch_export(None, torch.zeros(2), strict=True)


@pytest.mark.skipif(missing_compiler() is not None, reason="there is no C++ compiler")
def test_a_compiled_package_runs_without_fulmen(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    module, x = trained(), batches(1)[0][0]
    path = module.to_torch_export(tmp_path / "model.pt2", x, package="aoti", inductor_configs={"max_autotune": False})
    found = elsewhere("torch._inductor.aoti_load_package(PATH)", path, x, tmp_path)
    torch.testing.assert_close(found, module.eval()(x).detach(), rtol=1e-6, atol=1e-6)
    with pytest.raises(Exception, match="no_such_config"):
        module.to_torch_export(path, x, package="aoti", inductor_configs={"no_such_config": 1})


def test_without_a_compiler_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigurationError) as caught:
        Regression().to_torch_export(tmp_path / "model.pt2", torch.zeros(4, 3), package="aoti")
    assert str(caught.value) == (
        "TorchExportExporter package='aoti' needs a C++ compiler, and 'no-such-compiler' is not there; install one "
        "(apt-get install g++), name it in the environment variable CXX, or leave package out to write the program"
    )


# ---- Refusals


@pytest.mark.parametrize(
    ("name", "file", "options", "text"),
    [
        ("torchscript", "a.pt", {"method": "compile"},
         "TorchScriptExporter method='compile' is not allowed; allowed: 'script', 'trace'"),
        ("torchscript", "a.pt", {"strict": False},
         "TorchScriptExporter strict=False has no effect with method='script'; leave it out"),
        (
            "torchscript", "a.pt", {"check_trace": False},
            "TorchScriptExporter check_trace=False has no effect with method='script'; leave it out",
        ),
        ("torch_export", "a.pt", {}, "TorchExportExporter writes files that end in .pt2, and not 'a.pt'"),
        ("torch_export", "a.pt2", {"package": "zip"},
         "TorchExportExporter package='zip' is not allowed; allowed: 'aoti', None"),
        ("torch_export", None, {"package": "aoti"}, "TorchExportExporter package='aoti' needs a path: the result is a file"),
        (
            "torch_export", "a.pt2", {"inductor_configs": {}},
            "TorchExportExporter inductor_configs has no effect without package='aoti'; add that, or leave it out",
        ),
    ],
)  # fmt: skip
def test_wrong_options(tmp_path, monkeypatch, name, file, options, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        Regression().export(name, file, torch.zeros(4, 3), **options)
    assert str(caught.value) == text
    assert list(tmp_path.iterdir()) == []
