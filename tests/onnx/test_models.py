"""Whole encoders as files: names, dynamic sizes, padding, and every layer equal in ONNX Runtime (contract 1c)."""

import pytest
import torch
from encoder_zoo import build as make
from onnx import TensorProto

import bitquant
from bitquant.onnx.check import check
from bitquant.onnx.export import build
from bitquant.onnx.graph import layers

for package in ("onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason=f'files are written and checked with {package}: pip install ".[onnx]"')

MODELS = [
    ("bert", "bit-plus", 1),
    ("hubert", "bit-ref", 1),
    ("whisper-encoder", "bit-plus", 1),
    ("vit", "bit-ref", 1),
    ("nn-transformer-encoder", "bit-plus", 4),
]


def packed(model, preset, bits, call):
    config = bitquant.QuantConfig.preset(preset, activation_bits=bits)
    bitquant.quantize_(model, config, call)
    bitquant.convert_(model)
    return model


def assert_checked(nodes, proto, call):
    found = check(nodes, proto, call)
    assert found.mismatches == 0 and found.layers > 0, found
    assert found.flipped < 0.01 and found.cosine > 0.99, found


@pytest.mark.parametrize("name, preset, bits", MODELS)
def test_encoders(name, preset, bits):
    model, calls = make(name)
    model = packed(model, preset, bits, calls[0])
    nodes, proto = build(model, calls[0])
    for call in calls[:2]:  # batches of 2 and 3, padded, of different lengths
        assert_checked(nodes, proto, call)
    alone = {key: value[:1] for key, value in calls[1].items()}
    assert_checked(nodes, proto, alone)

    assert proto.ir_version <= 10 and {o.domain: o.version for o in proto.opset_import}[""] <= 21
    modules = dict(model.named_modules())
    for node in layers(proto):
        assert node.name.removesuffix(".scores").removesuffix(".mix").partition(":")[0] in modules
    assert next(iter(proto.graph.input)).type.tensor_type.shape.dim[0].dim_param == "batch"
    packed_bytes = sum(len(t.raw_data) for t in proto.graph.initializer if t.data_type == TensorProto.UINT8)
    # equal tensors, as of layers that start as copies, are stored once
    distinct = {t.numpy().tobytes() for n, t in model.state_dict().items() if n.endswith("weight_packed")}
    assert packed_bytes == sum(map(len, distinct))


def test_float_paths_beside_the_layers():
    for name, bits in (("nn-transformer-encoder", 1), ("whisper-encoder", 8), ("wav2vec2-conformer", 1)):
        model, calls = make(name)
        config = bitquant.QuantConfig.preset("bit-plus", activation_bits=bits, low_rank=3)
        bitquant.quantize_(model, config, calls[0])
        bitquant.convert_(model)
        nodes, proto = build(model, calls[0])
        for call in calls[:2]:
            assert_checked(nodes, proto, call)


@pytest.mark.parametrize("kind", ["transformer", "conformer", "squeezeformer", "sparseformer"])
def test_recipe_encoders(kind):
    from recipes.hubert import Hubert

    torch.manual_seed(0)
    model = Hubert.from_preset(f"tiny_{kind}").eval()
    mask = torch.ones(2, 16_000, dtype=torch.long)
    mask[1, 9_000:] = 0
    call = {"input_values": 0.1 * torch.randn(2, 16_000), "attention_mask": mask}
    nodes, proto = build(packed(model, "bit-plus", 1, call), call)
    assert_checked(nodes, proto, call)
    other = {"input_values": 0.1 * torch.randn(3, 12_000), "attention_mask": torch.ones(3, 12_000, dtype=torch.long)}
    other["attention_mask"][2, 5_000:] = 0
    assert_checked(nodes, proto, other)
