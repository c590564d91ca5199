"""Models that are cast, shared or hooked stay what they are: scales keep their dtype, student and packed stay equal."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_quantize import Block, Encoder
from torch import nn

import bitquant
from bitquant.nn import BitAttention
from bitquant.packed import PackedAttention


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.layers = nn.Sequential(Block(16, 2), Block(16, 2))

    def forward(self, ids):
        return self.layers(self.words(ids))


def student_and_packed(model, preset, example):
    bitquant.quantize_(model, preset, example)
    packed = copy.deepcopy(model)
    bitquant.convert_(packed)
    return model.eval(), packed


@pytest.mark.parametrize("preset", ["bit-ref", "bit-plus"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_dtypes(preset, dtype):
    torch.manual_seed(0)
    ids = torch.randint(20, (2, 7))
    student, packed = student_and_packed(Words().to(dtype).eval(), preset, ids)
    with torch.no_grad():
        assert packed(ids).dtype == dtype
        assert torch.equal(student(ids), packed(ids))
    assert packed.words.weight.dtype == dtype and packed.words.weight.shape == (20, 16)


@pytest.mark.parametrize("preset", ["bit-ref", "bit-plus"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_casts_leave_scales_alone(preset, dtype):
    torch.manual_seed(0)
    ids = torch.randint(20, (2, 7))
    student, packed = student_and_packed(Words().eval(), preset, ids)
    before = {k: v for k, v in student.state_dict().items() if "quantizer" in k or "bit_" in k}
    student = student.to(dtype)
    assert all(torch.equal(v, student.state_dict()[k]) for k, v in before.items())
    again = copy.deepcopy(student)
    bitquant.convert_(again)
    with torch.no_grad():
        assert torch.equal(student(ids), again(ids))
        if dtype == torch.bfloat16:
            return
        assert packed.to(dtype)(ids).dtype == dtype
        assert torch.equal(student(ids), packed(ids))


def test_bfloat16_student_is_saved_and_loaded(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    model = transformers.BertModel(config).to(torch.bfloat16).eval()
    ids = torch.randint(30, (2, 5))
    student, packed = student_and_packed(model, "bit-plus", {"input_ids": ids})
    for name, saved in (("student", student), ("packed", packed)):
        bitquant.save(saved, tmp_path / name)
        with torch.no_grad():
            loaded = bitquant.load(tmp_path / name)(input_ids=ids).last_hidden_state
            assert torch.equal(loaded, saved(input_ids=ids).last_hidden_state)


def test_hooks_survive_packing():
    model, x = Encoder().eval(), torch.randn(1, 4, 5)
    bitquant.quantize_(model, None, x)
    seen = []
    model.layers[0].up.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    model(x)
    bitquant.convert_(model)
    model(x)
    assert seen[0] == "BitLinear" and seen[-1] == "PackedLinear"


def test_shared_and_functional_activations_become_relu():
    shared = Encoder().eval()
    shared.layers[1].act = shared.layers[0].act
    bitquant.quantize_(shared, "bit-ref", torch.randn(1, 4, 5))
    assert all(isinstance(layer.act, nn.ReLU) for layer in shared.layers)
    assert all(layer.down.input_quantizer.levels == "unit" for layer in shared.layers)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    bitquant.quantize_(stack, "bit-ref", torch.randn(2, 7, 16))
    assert all(layer.activation is F.relu for layer in stack.layers)
    assert all(layer.linear2.input_quantizer.levels == "unit" for layer in stack.layers)


def calibrated_attention(*scales):
    torch.manual_seed(0)
    layer = BitAttention(bitquant.QuantConfig(), 8)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 1, 5, 8), torch.randn(2, 1, 5, 8)
    for module in layer.modules():
        module.observing = True
    for scale in scales:
        layer(q, k, v, scale=scale)
    for module in layer.modules():
        module.observing = False
    return layer.eval(), (q, k, v)


def test_one_key_head_for_all_queries():
    layer, (q, k, v) = calibrated_attention(None)
    with torch.no_grad():
        assert torch.equal(layer(q, k, v), PackedAttention.from_trained(layer)(q, k, v))


def test_a_module_called_with_two_scales_is_not_packed():
    assert calibrated_attention(None, None)[0].in_integers
    assert not calibrated_attention(None, 0.7)[0].in_integers


def test_attention_with_a_float_bias_runs_without_one():
    torch.manual_seed(0)
    layer = BitAttention(bitquant.QuantConfig(), 8, score_bias=True)
    q = torch.randn(1, 2, 5, 8)
    free, kept = layer(q, q, q), layer(q, q, q, attn_mask=torch.ones(5, 5, dtype=torch.bool))
    assert torch.equal(free, kept) and torch.equal(free, layer(q, q, q, attn_mask=torch.zeros(5, 5)))


def test_tied_layers_are_one_parameter_after_loading(tmp_path):
    model, x = Encoder().eval(), torch.randn(1, 4, 5)
    model.layers[1].up.weight = model.layers[0].up.weight
    skeleton = copy.deepcopy(model)
    bitquant.quantize_(model, None, x)
    bitquant.save(model, tmp_path / "out")
    loaded = bitquant.load(tmp_path / "out", model=skeleton)
    assert loaded.layers[1].up.weight is loaded.layers[0].up.weight
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_calibration_needs_data_and_leaves_padding_out():
    model = Encoder().eval()
    bitquant.quantize_(model, None, torch.randn(1, 4, 5))
    with pytest.raises(ValueError, match="batches is empty"):
        bitquant.calibrate_(model, [])


@pytest.mark.parametrize("kind", ["dict", "nested", "dataclass"])
def test_outputs_of_any_shape_can_be_distilled(kind):
    import dataclasses

    @dataclasses.dataclass
    class Out:
        states: torch.Tensor
        length: int

    class Wrapped(Encoder):
        def forward(self, x):
            y = super().forward(x)
            return {"dict": {"y": y}, "nested": [{"a": (y, 3)}], "dataclass": Out(y, 3)}[kind]

    model, x = Wrapped().eval(), torch.randn(1, 4, 5)
    student = copy.deepcopy(model)
    bitquant.quantize_(student, None, x)
    losses = []
    bitquant.distill(student, model, [x], steps=3, progress=lambda told: losses.append(told["loss"]))
    assert all(loss > 0 for loss in losses)
