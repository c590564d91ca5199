"""optimize_: the same outputs to rounding, the same parameters, and the module's own forward where it must run."""

import copy

import pytest
import torch
from torch import nn

import bitquant
from bitquant import processor
from bitquant.checkpoint import load, save
from bitquant.runtime import onednn
from recipes.hubert.front_end import FrontEnd
from recipes.hubert.model import Hubert
from recipes.hubert.positions import PositionalConv

needs_bfloat16 = pytest.mark.skipif(not processor.bfloat16_is_fast(), reason="no bfloat16 instructions")


def closeness(found, expected):
    """Largest difference, in units of the largest expected value."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return ((found - expected).abs().max() / expected.abs().max()).item()


def perturbed(model):
    """Every parameter moved, so that norms and biases are not at 1 and 0."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.abs().mean().clamp(min=0.1) * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


@pytest.fixture(params=["fastconv", "standard"])
def front_end(request):
    torch.manual_seed(0)
    return perturbed(FrontEnd(request.param, masked=True))


@pytest.mark.parametrize("samples", [400, 719, 720, 4000, 16001])
def test_extractor_equals_to_rounding(front_end, samples):
    wave = torch.randn(2, samples) + 0.5  # microphones have an offset
    expected, _ = front_end(wave)
    (row,) = bitquant.optimize_(front_end)
    assert row.what == "waveform extractor" and row.reason is None
    assert closeness(front_end(wave)[0], expected) < 1e-5


def test_pieces_join(front_end, monkeypatch):
    wave = torch.randn(1, 48000)
    expected, _ = front_end(wave)
    monkeypatch.setattr("bitquant.runtime.stack.PIECE", 1)  # the shortest pieces: 64 frames of 149
    bitquant.optimize_(front_end)
    assert closeness(front_end(wave)[0], expected) < 1e-5


@pytest.mark.parametrize("masked", [True, False])
def test_padding_is_counted_as_before(masked):
    torch.manual_seed(0)
    front_end = perturbed(FrontEnd("fastconv", masked=masked))
    wave, lengths = torch.randn(3, 8000), torch.tensor([8000, 5000, 100])
    expected, frames = front_end(wave, lengths)
    bitquant.optimize_(front_end)
    found, same = front_end(wave, lengths)
    assert torch.equal(frames, same)
    assert closeness(found, expected) < 1e-5


@pytest.mark.parametrize("dim", [64, 144])
def test_positional_convolution(dim):
    torch.manual_seed(0)
    conv = perturbed(PositionalConv(dim))
    x = torch.randn(2, 37, dim)
    expected, keys = conv(x), set(conv.state_dict())
    (row,) = bitquant.optimize_(conv)
    assert (row.path, row.what, row.reason) == ("conv", "grouped convolution", None)
    assert closeness(conv(x), expected) < 1e-5
    assert closeness(conv(x[:, :5]), PositionalConv.forward(conv, x[:, :5])) < 1e-5
    assert set(conv.state_dict()) == keys


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (144, {"padding": 15}),
        (7, {"padding": "same"}),
        (64, {"stride": 2, "dilation": 3}),
        (1, {}),
        (2, {"bias": False}),
    ],
)
def test_depthwise_convolution(channels, options):
    torch.manual_seed(0)
    conv = nn.Conv1d(channels, 2 * channels, 31, groups=channels, **options)
    model = nn.Sequential(perturbed(conv))
    inputs = [torch.randn(2, channels, 201), torch.randn(3, 100, channels).transpose(1, 2), torch.randn(channels, 95)]
    expected, keys = [model(x) for x in inputs], set(model.state_dict())
    rows = bitquant.optimize_(model)
    assert [(row.what, row.reason) for row in rows] == [("depthwise convolution", None)] * (channels > 1)
    assert all(closeness(model(x), y) < 1e-5 for x, y in zip(inputs, expected, strict=True))
    assert set(model.state_dict()) == keys
    conv.weight.mul_(2)
    assert not torch.equal(model(inputs[0]), expected[0])


def test_binarized_convolutions_of_a_student_are_left():
    torch.manual_seed(0)
    layers = [nn.Conv1d(8, 8, 3, padding=1, groups=groups) for groups in (1, 8, 4, 1)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 8, 30)
    bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", depthwise="binary"), x)
    with torch.inference_mode():
        expected = model(x)
        assert bitquant.optimize_(model) == []
        assert torch.equal(model(x), expected)


@needs_bfloat16
def test_fast_is_near_and_float32_outside(front_end):
    wave = torch.randn(1, 16000)
    expected, _ = front_end(wave)
    bitquant.optimize_(front_end, "fast")
    found, _ = front_end(wave)
    assert 0 < closeness(found, expected) < 0.05
    assert torch.cosine_similarity(found, expected, dim=-1).mean() > 0.999


def test_changed_weights_are_noticed(front_end):
    wave = torch.randn(1, 4000)
    bitquant.optimize_(front_end)
    first, _ = front_end(wave)
    with torch.no_grad():
        front_end.convs[3].weight.mul_(-1)
    changed, _ = front_end(wave)
    assert closeness(changed, first) > 0.1
    front_end.train()
    own, _ = front_end(wave)  # no dropout inside: training differs by the path alone
    assert closeness(changed, own) < 1e-5


def test_gradients_take_the_modules_own_path(front_end):
    wave = torch.randn(1, 4000)
    expected, _ = front_end(wave)
    bitquant.optimize_(front_end)
    front_end.requires_grad_(True)
    out, _ = front_end(wave)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert all(p.grad is not None for p in front_end.parameters())


@torch.no_grad()
def test_copies_and_checkpoints_of_an_optimized_model(tmp_path):
    torch.manual_seed(0)
    model, wave = Hubert.from_preset("tiny_sparseformer").eval(), torch.randn(1, 4000)
    student = copy.deepcopy(model)
    bitquant.quantize_(student, "bit-plus", wave)
    bitquant.convert_(student)
    plain = student(wave).last_hidden_state
    assert [row.reason for row in bitquant.optimize_(student)] == [None, None]
    ours = student(wave).last_hidden_state
    assert torch.equal(copy.deepcopy(student)(wave).last_hidden_state, ours)
    save(student, tmp_path / "packed")
    again = load(tmp_path / "packed", model=model)
    assert torch.equal(again(wave).last_hidden_state, plain)  # a file says nothing of how it is run
    bitquant.optimize_(again)
    assert torch.equal(again(wave).last_hidden_state, ours)


def test_student_and_packed_model_are_equal_when_both_are_optimized():
    torch.manual_seed(0)
    student, wave = Hubert.from_preset("tiny_transformer").eval(), torch.randn(2, 4000)
    bitquant.quantize_(student, "bit-plus", wave)
    student.eval().requires_grad_(False)
    packed = copy.deepcopy(student)
    bitquant.convert_(packed)
    for model in (student, packed):
        bitquant.optimize_(model)
    with torch.no_grad():
        assert torch.equal(student(wave).last_hidden_state, packed(wave).last_hidden_state)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_transformers_models(norm):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, conv_dim=(16, 24, 32),
        conv_kernel=(10, 3, 2), conv_stride=(5, 2, 2), num_feat_extract_layers=3, feat_extract_norm=norm,
        conv_bias=norm == "layer", num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    model = perturbed(transformers.HubertModel(config))
    wave = torch.randn(2, 3000)
    features, expected = model.feature_extractor(wave), model(wave).last_hidden_state
    rows = bitquant.optimize_(model)
    assert [(row.path, row.reason) for row in rows] == [
        ("feature_extractor", None),
        ("encoder.pos_conv_embed.conv", None),
    ]
    assert closeness(model.feature_extractor(wave), features) < 1e-5
    assert closeness(model(wave).last_hidden_state, expected) < 1e-4


def test_what_stays_as_it_was_says_why():
    torch.manual_seed(0)
    front_end = FrontEnd("fastconv", masked=True).eval()
    front_end.act = nn.GELU(approximate="tanh")
    wave = torch.randn(1, 4000)
    expected, _ = front_end(wave)
    assert [row.reason for row in bitquant.optimize_(front_end)] == ["activation 0 is not the exact GELU"]
    assert torch.equal(front_end(wave)[0], expected)


def test_an_extractor_that_does_more_is_left():
    class Louder(FrontEnd):
        def frames(self, wave, valid=None):
            return 2 * super().frames(wave, valid)

    front_end = Louder("fastconv", masked=True).eval()
    (row,) = bitquant.optimize_(front_end)
    assert row.reason == "it computes more than its convolutions, norms and activations"
    assert type(front_end) is Louder


def test_without_onednn(front_end, monkeypatch):
    wave = torch.randn(1, 4000)
    expected, _ = front_end(wave)
    monkeypatch.setattr(onednn, "AVAILABLE", False)
    monkeypatch.setattr("bitquant.runtime.optimize.bfloat16_is_fast", lambda: False)
    bitquant.optimize_(front_end)
    assert closeness(front_end(wave)[0], expected) < 1e-5
    with pytest.raises(ValueError, match="no instructions"):
        bitquant.optimize_(front_end, "fast")


def test_unknown_mode():
    with pytest.raises(ValueError, match="mode must be one of exact, fast; got 'bf16'"):
        bitquant.optimize_(nn.Linear(2, 2), "bf16")
