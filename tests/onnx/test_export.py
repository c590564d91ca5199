"""``export_onnx`` and ``bitquant export``: what they write, print and refuse."""

import json

import onnx
import pytest
import torch
from click.testing import CliRunner
from tiny_models import Frames, mlp

import bitquant
from bitquant.cli import main

for package in ("onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason=f'files are written and checked with {package}: pip install ".[onnx]"')


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = mlp()
    bitquant.quantize_(made, "bit-plus", {"features": torch.randn(4, 16)})
    bitquant.convert_(made)
    return made


def test_export_checks_and_times(model, tmp_path):
    file = tmp_path / "out.onnx"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exported = bitquant.export_onnx(model, {"features": torch.randn(1, 16)}, file)
    assert file.stat().st_size == exported.bytes
    assert exported.check.mismatches == 0 and exported.check.layers == exported.layers
    assert {"1 bit", "float32", "dynamic int8"} == set(exported.rows)
    assert "values differ" in str(exported) and "dynamic int8" in str(exported)
    onnx.checker.check_model(str(file), full_check=True)
    assert list(tmp_path.iterdir()) == [file]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    dimension = onnx.load(file).graph.input[0].type.tensor_type.shape.dim[0]
    assert dimension.dim_param == "batch"  # though the example has one sample


def test_dynamic_dimensions_that_are_asked_for(model, tmp_path):
    file = tmp_path / "out.onnx"
    bitquant.export_onnx(model, torch.randn(4, 16), file, dynamic=False, check=False)
    assert [d.dim_value for d in onnx.load(file).graph.input[0].type.tensor_type.shape.dim] == [4, 16]
    with pytest.raises(ValueError, match="dynamic names 'pixels'; the inputs are features"):
        bitquant.export_onnx(model, torch.randn(4, 16), file, dynamic={"pixels": [0]})


def test_qonnx(model, tmp_path):
    from onnx import parser

    from bitquant.onnx.runtime import Session

    file, x = tmp_path / "out.onnx", torch.randn(4, 16)
    bitquant.export_onnx(model, x, file, flavour="qonnx", dynamic=False)
    proto = onnx.load(file)
    quantizers = [node for node in proto.graph.node if node.domain == "qonnx.custom_op.general"]
    assert [node.op_type for node in quantizers] == ["BipolarQuant"] * 2 and not proto.functions
    # the operator as its specification defines it, so that any runtime runs the file
    definition = """<domain: "qonnx.custom_op.general", opset_import: ["" : 20]> BipolarQuant (x, scale) => (y) {
        zero = Constant <value_float: float = 0.0> ()
        minus = Neg (scale)
        positive = GreaterOrEqual (x, zero)
        y = Where (positive, scale, minus)
    }"""
    proto.functions.append(parser.parse_function(definition))
    proto.ir_version = 10
    assert {o.domain for o in proto.opset_import} == {"", "qonnx.custom_op.general"}
    (found,) = Session(proto)({"features": x}).values()
    torch.testing.assert_close(found, model(x), rtol=0, atol=1e-5)


def test_refused(model, tmp_path):
    with pytest.raises(ValueError, match="call convert_ first"):
        bitquant.export_onnx(mlp(), torch.randn(4, 16), tmp_path / "out.onnx")
    with pytest.raises(IsADirectoryError, match="give the name of a file"):
        bitquant.export_onnx(model, torch.randn(4, 16), tmp_path)
    with pytest.raises(ValueError, match="flavour must be one of standard, qonnx"):
        bitquant.export_onnx(model, torch.randn(4, 16), tmp_path / "out.onnx", flavour="finn")
    wide = mlp()
    bitquant.quantize_(wide, bitquant.QuantConfig.preset("bit-plus", activation_bits=32), torch.randn(4, 16))
    bitquant.convert_(wide)
    with pytest.raises(ValueError, match=r"layers\.2 cannot be exported: its input has 32 bits"):
        bitquant.export_onnx(wide, torch.randn(4, 16), tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_traced(tmp_path):
    class Branches(Frames):
        def forward(self, waveform):
            return super().forward(waveform if float(waveform.sum()) > 0 else -waveform)

    torch.manual_seed(0)
    made, call = Branches(), {"waveform": torch.randn(2, 3200)}
    bitquant.quantize_(made, "bit-plus", call)
    bitquant.convert_(made)
    with pytest.raises(ValueError, match="torch cannot trace this model for export"):
        bitquant.export_onnx(made, call, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_command_line(tiny_bert, tmp_path):
    from bitquant.sources import load_source

    source = load_source(tiny_bert)
    bitquant.quantize_(source.model, "bit-plus", source.example_inputs())
    bitquant.convert_(source.model)
    bitquant.save(source.model, tmp_path / "packed", tokenizer_file=source.file("tokenizer.json"))
    out = tmp_path / "out.onnx"
    result = CliRunner().invoke(main, ["export", str(tmp_path / "packed"), str(out), "--no-check", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["bytes"] == out.stat().st_size and facts["check"] is None and facts["layers"] > 10
    assert [value.name for value in onnx.load(out).graph.input][:2] == ["input_ids", "attention_mask"]
    result = CliRunner().invoke(main, ["export", str(tiny_bert), str(out)])
    assert result.exit_code == 1 and "is not a bitquant checkpoint" in result.stderr
