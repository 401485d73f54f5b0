"""Files that onnxruntime runs: three kinds of networks, each option, and what is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch
from fulmen_onnx import ONNXExporter, read_report
from fulmen_onnx.checks import require_dynamic
from torch import nn
from torch.export import Dim

from fulmen import ConfigurationError, Module, ModuleError
from fulmen.testing import Regression, batches, quiet


class Convolutions(Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 5))

    def forward(self, x):
        return self.head(self.body(x))


class Recurrent(Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(6, 12, 2, batch_first=True), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Transformer(Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class TwoInputs(Module):
    """Takes a tensor and a mapping, by name; gives two tensors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, x, extra):
        return {"sum": self.layer(x) + extra["a"], "product": self.layer(x) * extra["b"]}


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(path, *inputs):
    found = session(path)
    names = [each.name for each in found.get_inputs()]
    return [torch.from_numpy(out) for out in found.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))]


# ---- Networks


CASES = [
    (Convolutions, (2, 3, 16, 16), {0: "batch"}, (5, 3, 16, 16)),
    (Recurrent, (2, 7, 6), {0: "batch", 1: "length"}, (5, 11, 6)),
    (Transformer, (2, 7, 16), {0: "batch", 1: "length"}, (3, 11, 16)),
]


@pytest.mark.parametrize(("kind", "shape", "dynamic", "other"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_networks_give_the_same_numbers_at_other_sizes(tmp_path, kind, shape, dynamic, other):
    module, x = kind(), torch.randn(other)
    path = module.to_onnx(tmp_path / "deep" / "er" / "model.onnx", torch.randn(shape), dynamic_shapes={"x": dynamic})
    onnx.checker.check_model(str(path))
    torch.testing.assert_close(run(path, x)[0], module.eval()(x).detach(), rtol=1e-5, atol=1e-5)
    assert read_report(path)["max_difference"] < 1e-5
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]


def test_inputs_by_name_and_nested(tmp_path):
    module = TwoInputs()
    sample = {"x": torch.randn(2, 3), "extra": {"a": torch.randn(2, 2), "b": torch.randn(2, 2)}}
    shapes = {"x": {0: "n"}, "extra": {"a": {0: "n"}, "b": {0: "n"}}}
    path = module.export("onnx", tmp_path / "model.onnx", sample, dynamic_shapes=shapes)
    x, a, b = torch.randn(4, 3), torch.randn(4, 2), torch.randn(4, 2)
    expected = module(x, {"a": a, "b": b})
    for found, wanted in zip(run(path, x, a, b), (expected["sum"], expected["product"]), strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-5)


def test_a_process_without_fulmen_and_torch_runs_it(tmp_path):
    path = Convolutions().to_onnx(tmp_path / "model.onnx", torch.zeros(1, 3, 8, 8))
    code = (
        "import sys, numpy, onnxruntime\n"
        f"s = onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])\n"
        "print(s.run(None, {s.get_inputs()[0].name: numpy.zeros((1, 3, 8, 8), 'float32')})[0].tolist())\n"
        "assert not {'torch', 'fulmen'} & set(sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = Convolutions().eval()(torch.zeros(1, 3, 8, 8)).detach()
    torch.testing.assert_close(torch.tensor(json.loads(out)), expected, rtol=1e-5, atol=1e-5)


def test_the_trainer_exports_what_it_trained(tmp_path):
    module, trainer = Regression(), quiet(max_epochs=1)
    trainer.fit(module, batches(4))
    x = batches(1)[0][0]
    path = trainer.export("onnx", tmp_path / "model.onnx", x)
    torch.testing.assert_close(run(path, x)[0], module.eval()(x).detach(), rtol=1e-5, atol=1e-5)
    other = Regression()
    trainer.export("onnx", path, x, model=other)
    torch.testing.assert_close(run(path, x)[0], other.eval()(x).detach(), rtol=1e-5, atol=1e-5)


def test_random_numbers_of_a_training_are_not_used_up(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Regression().train().to_onnx(tmp_path / "model.onnx", torch.zeros(1, 3))
    torch.manual_seed(3)
    module = Convolutions()
    torch.manual_seed(3)
    module.to_onnx(tmp_path / "model.onnx", torch.zeros(1, 3, 8, 8))
    assert torch.equal(torch.rand(2), expected)


# ---- Options


def test_names_opset_and_no_path(tmp_path):
    module, x = Regression(), torch.randn(2, 3)
    path = module.to_onnx(tmp_path / "model.onnx", x, input_names=["features"], output_names=["score"], opset_version=18)
    found = session(path)
    assert [found.get_inputs()[0].name, found.get_outputs()[0].name] == ["features", "score"]
    assert onnx.load(path).opset_import[0].version == 18
    program = module.to_onnx(None, x)
    assert isinstance(program, torch.onnx.ONNXProgram)
    torch.testing.assert_close(program(x)[0], module.eval()(x).detach(), rtol=1e-5, atol=1e-5)


def test_without_dynamic_shapes_sizes_are_those_of_the_sample(tmp_path):
    path = Regression().to_onnx(tmp_path / "model.onnx", torch.randn(2, 3))
    assert session(path).get_inputs()[0].shape == [2, 3]


def test_dim_objects_are_dynamic(tmp_path):
    for spec in ({0: Dim("n", max=64)}, {0: Dim.DYNAMIC}, (Dim.DYNAMIC, None)):
        path = Regression().to_onnx(tmp_path / "model.onnx", torch.randn(2, 3), dynamic_shapes=(spec,))
        assert isinstance(session(path).get_inputs()[0].shape[0], str)


def test_a_dimension_that_torch_fixed_is_an_error():
    module, x = Recurrent(), torch.randn(2, 7, 6)
    fixed = module.to_onnx(None, x).model
    with pytest.raises(ModuleError) as caught:
        require_dynamic(module, fixed, {"x": {0: Dim.AUTO, 1: Dim("length")}}, (x,), {})
    assert str(caught.value) == (
        "torch exported Recurrent with fixed sizes where dynamic_shapes asks for any: dimension 1 (length) of x is 7. Nothing "
        "was written. Something in forward depends on that size. Give the dimension a name (a string) where it has a "
        "torch.export.Dim, so that torch finds its limits itself; or change forward; or leave the dimension out of "
        "dynamic_shapes and export once for each size"
    )
    with pytest.raises(ModuleError, match=r"dimension 0 \(n\) of x is 2, dimension 2 \(Dim.DYNAMIC\) of x is 6\. "):
        require_dynamic(module, fixed, ((Dim("n"), None, Dim.DYNAMIC),), (x,), {})
    require_dynamic(module, fixed, None, (x,), {})


def test_what_was_exported_before_makes_no_difference(tmp_path):
    """torch fixes the length of an LSTM once it has been exported with a fixed length in the same process."""
    for shapes in (None, {"x": {0: Dim("batch"), 1: Dim("length")}}, None, {"x": {0: "batch", 1: "length"}}):
        path = Recurrent().to_onnx(tmp_path / "model.onnx", torch.randn(2, 7, 6), dynamic_shapes=shapes)
        assert session(path).get_inputs()[0].shape == ([2, 7, 6] if shapes is None else ["batch", "length", 6])


class FixedLength(Module):
    def forward(self, x):
        return x.reshape(x.shape[0], 21)


def test_auto_leaves_the_choice_to_torch(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(Exception, match="inferred a static shape of 7"):  # torch says so itself for names
        FixedLength().to_onnx(path, torch.randn(2, 7, 3), dynamic_shapes={"x": {0: "batch", 1: "length"}})
    FixedLength().to_onnx(path, torch.randn(2, 7, 3), dynamic_shapes={"x": {0: "batch", 1: Dim.AUTO}})
    assert run(path, torch.ones(4, 7, 3))[0].shape == (4, 21)


class Liar(Module):
    """Computes something else when it is exported."""

    def forward(self, x):
        return x + 1 if torch.compiler.is_exporting() else x + 1.5


def test_a_file_that_computes_something_else_is_an_error(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("earlier")
    with pytest.raises(ModuleError) as caught:
        Liar().to_onnx(path, torch.zeros(2, 3))
    assert str(caught.value) == (
        "Liar exported to ONNX computes something else: the largest difference is 0.5, in output 'add' at (0, 0): 1 instead of "
        "1.5 (allowed: atol=1e-05, rtol=0.0001). Nothing was written; raise the tolerance if this is precise enough, or find "
        "the operator at fault with check=False"
    )
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"] and path.read_text() == "earlier"
    for options in ({"atol": 0.6}, {"rtol": 0.4}):
        assert read_report(Liar().to_onnx(path, torch.zeros(2, 3), **options)) == {"max_difference": 0.5}
    assert read_report(Liar().to_onnx(path, torch.zeros(2, 3), check=False)) == {}


@pytest.mark.parametrize("kind", [Recurrent, Transformer])
def test_int8_is_smaller_and_says_how_far_off_it_is(tmp_path, kind):
    module, x = kind(), torch.randn(4, 7, 6 if kind is Recurrent else 16)
    exact = module.to_onnx(tmp_path / "exact.onnx", x)
    small = module.to_onnx(tmp_path / "small.onnx", x, quantize="int8")
    kinds = {node.op_type for node in onnx.load(small).graph.node}
    assert kinds & {"DynamicQuantizeLSTM", "MatMulInteger", "DynamicQuantizeMatMul"}
    report = read_report(small)
    off = float((run(small, x)[0] - run(exact, x)[0]).abs().max())
    assert report["int8_max_difference"] == pytest.approx(off, rel=1e-3) and 0 < off < 0.02
    assert report["max_difference"] < 1e-5
    with pytest.raises(ModuleError, match=r"in int8 exported to ONNX computes something else: the largest difference is"):
        module.to_onnx(small, x, quantize="int8", int8_atol=off / 2)
    assert read_report(small) == report


def test_weights_in_a_file_of_their_own(tmp_path):
    module, x = Regression(), torch.randn(2, 3)
    path = module.to_onnx(tmp_path / "model.onnx", x, external_data=True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    torch.testing.assert_close(run(path, x)[0], module.eval()(x).detach(), rtol=1e-5, atol=1e-5)
    assert "max_difference" in read_report(path)


# ---- Refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"quantize": "int4"}, "ONNXExporter quantize='int4' is not allowed; allowed: 'int8', None"),
        (
            {"int8_atol": 0.1},
            'ONNXExporter int8_atol has no effect without quantize="int8"; add that, or leave it out',
        ),
        (
            {"export_params": False},
            "ONNXExporter export_params=False is not possible: weights are part of the file; leave it out",
        ),
        (
            {"dynamo": False},
            "ONNXExporter dynamo=False is not possible: there is no exporter but the one built on torch.export; leave it out",
        ),
        (
            {"input_names": ["img"], "dynamic_shapes": {"img": {0: "batch"}}},
            "dynamic_shapes has the key 'img'; keys are the names of forward's arguments, and Regression.forward gets: x",
        ),
        ({"check": 1}, "ONNXExporter check=1 is not allowed; allowed: True, False"),
        (
            {"quantize": "int8", "external_data": True},
            'ONNXExporter quantize="int8" needs the weights in the file; leave external_data out',
        ),
        (
            {"opset_versio": 18},
            "ONNXExporter has no option 'opset_versio'; did you mean 'opset_version'?; it has: dynamic_shapes, opset_version, "
            "input_names, output_names, check, rtol, atol, quantize, int8_atol, external_data",
        ),
        (
            {"dynamic_axes": {"x": {0: "batch"}}},
            "ONNXExporter takes dynamic_shapes={'x': {0: 'batch'}} instead of dynamic_axes, by the names of forward's "
            "arguments",
        ),
    ],
)
def test_wrong_options(tmp_path, options, text):
    with pytest.raises(ConfigurationError) as caught:
        Regression().to_onnx(tmp_path / "model.onnx", torch.zeros(1, 3), **options)
    assert str(caught.value) == text
    assert list(tmp_path.iterdir()) == []


def test_quantisation_needs_a_file_and_something_to_quantise(tmp_path):
    with pytest.raises(ConfigurationError, match=r"^ONNXExporter quantize needs a path: what is quantised is the file$"):
        Regression().to_onnx(None, torch.zeros(1, 3), quantize="int8")
    with pytest.raises(ConfigurationError) as caught:
        Liar().to_onnx(tmp_path / "model.onnx", torch.zeros(1, 3), check=False, quantize="int8")
    assert str(caught.value) == (
        'ONNXExporter quantize="int8" found nothing to quantise: none of MatMul, Gemm, LSTM, Attention, Gather in the model '
        "has constant weights; leave it out"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_onnxruntime_cannot_run_is_an_error_with_a_way_out(tmp_path):
    module, x = Regression().to(torch.bfloat16), torch.zeros(1, 3, dtype=torch.bfloat16)
    with pytest.raises(ConfigurationError, match=r"^onnxruntime cannot run the exported model on the host: .*check=False"):
        module.to_onnx(tmp_path / "model.onnx", x)
    assert module.to_onnx(tmp_path / "model.onnx", x, check=False).exists()


def test_not_to_a_url():
    with pytest.raises(ConfigurationError) as caught:
        Regression().to_onnx("s3://bucket/model.onnx", torch.zeros(1, 3))
    assert str(caught.value) == "cannot export to s3://bucket/model.onnx: only to a local path; copy the file from there"


def test_not_to_an_open_file():
    with pytest.raises(ConfigurationError, match=r"^cannot export to <_io.BytesIO .*: only to a local path; read the bytes of"):
        Regression().to_onnx(io.BytesIO(), torch.zeros(1, 3))


def test_what_happens_anyway_may_be_asked_for(tmp_path):
    options = {"export_params": True, "dynamo": True, "do_constant_folding": True}
    assert Regression().to_onnx(tmp_path / "model.onnx", torch.zeros(1, 3), **options).exists()


def test_it_is_built_by_name_in_a_fresh_interpreter(tmp_path):
    module = Regression()
    assert module.export("onnx", str(tmp_path / "model.onnx"), torch.zeros(1, 3)) == tmp_path / "model.onnx"
    assert ONNXExporter().export(module.eval(), tmp_path / "b.onnx", torch.zeros(1, 3)) == tmp_path / "b.onnx"
