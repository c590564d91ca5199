"""quantize_, calibrate_ and convert_ on small models: names, states, errors, and contract 1."""

import copy
import itertools

import pytest
import torch
from torch import nn

import bitquant
from bitquant import ops
from bitquant.nn import BitAttention, BitEmbedding, BitLinear
from bitquant.packed import PackedAttention, PackedEmbedding, PackedLinear
from bitquant.widths import in_float

PRESETS = ["bit-ref", "bit-plus"]


class Block(nn.Module):
    """Hand-written attention, written the way users write it."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.act, self.down = nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x, mask=None):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (d // self.heads) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.down(self.act(self.up(x))))


class Encoder(nn.Module):
    def __init__(self, dim=32, heads=4, layers=2):
        super().__init__()
        self.stem = nn.Linear(5, dim)
        self.layers = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.head = nn.Linear(dim, 3)

    def forward(self, x, mask=None):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    mask = torch.ones(3, 11, dtype=torch.bool)
    mask[0, 6:] = False
    return {"x": torch.randn(3, 11, 5), "mask": mask}


@pytest.mark.parametrize("preset", PRESETS)
def test_student_equals_packed(encoder, inputs, preset):
    bitquant.quantize_(encoder, preset, inputs)
    for other in (inputs, {"x": torch.randn(2, 1, 5)}, {"x": torch.randn(1, 63, 5), "mask": None}):
        packed = copy.deepcopy(encoder)
        bitquant.convert_(packed)
        with torch.no_grad():
            expected = encoder.eval()(**other)
            with ops.use_backend("naive"):
                assert torch.equal(packed(**other), expected)
            assert torch.equal(packed(**other), expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_alone_and_in_a_padded_batch(encoder, inputs, preset):
    """The encoder's layers; a float product outside them may round by the size of the batch, so the stem's is exact."""
    with torch.no_grad():
        for exact in (*encoder.stem.parameters(), inputs["x"]):
            exact.copy_((exact * 8).round() / 8)
    bitquant.quantize_(encoder, preset, inputs)
    bitquant.convert_(encoder)
    seen = []
    encoder.layers[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        encoder(**inputs)
        together = seen[-1]
        encoder(inputs["x"][:1, :6])
    assert torch.equal(seen[-1][0], together[0, :6])


def test_what_is_binarized(encoder, inputs):
    bitquant.quantize_(encoder, None, inputs)
    rows = {row.path: row.reason for row in bitquant.report(encoder).rows}
    assert rows["stem"] == "input stem" and rows["head"] == "task head"
    assert all(reason is None for path, reason in rows.items() if path.startswith("layers"))
    assert isinstance(encoder.layers[0].qkv, BitLinear) and isinstance(encoder.layers[0].qkv, nn.Linear)
    assert isinstance(encoder.layers[1].bit_attention_0, BitAttention)
    assert type(encoder.stem) is nn.Linear


def test_report_counts_every_mac(encoder, inputs):
    before = bitquant.report(encoder, inputs)
    bitquant.quantize_(encoder, None, inputs)
    after = bitquant.report(encoder)
    tokens = 3 * 11
    expected = tokens * (5 * 32 + 32 * 3 + 2 * (32 * 96 + 32 * 32 + 2 * 32 * 64) + 2 * 2 * 11 * 32)
    assert before.total_macs == after.total_macs == expected
    assert before.share_seen == after.share_seen == 1.0
    assert before.share_binarized == pytest.approx(after.share_binarized)
    assert after.share_binarized == pytest.approx(1 - tokens * (5 * 32 + 32 * 3) / expected)
    assert "binarized" in str(after) and after.to_dict()["total_macs"] == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_float_checkpoint_loads_into_a_student(encoder, inputs, preset):
    saved = copy.deepcopy(encoder.state_dict())
    torch.manual_seed(5)
    student = Encoder().eval()
    bitquant.quantize_(student, preset, inputs)
    assert set(saved) <= set(student.state_dict())
    student.load_state_dict(saved)
    for name, value in saved.items():
        assert torch.equal(student.state_dict()[name], value)
    if preset == "bit-plus":
        scale = student.layers[0].up.weight_quantizer.scale(student.layers[0].up.weight)
        torch.testing.assert_close(scale, encoder.layers[0].up.weight.abs().mean(1))


def test_student_state_round_trip(encoder, inputs):
    bitquant.quantize_(encoder, None, inputs)
    other = Encoder().eval()
    bitquant.quantize_(other, None, {"x": torch.randn(2, 4, 5)})
    other.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(other(**inputs), encoder(**inputs))


def test_calibration_is_a_running_mean_and_a_buffer(encoder):
    batches = [{"x": torch.randn(2, 7, 5)} for _ in range(3)]
    bitquant.quantize_(encoder, None, batches[0])
    quantizer = encoder.layers[0].qkv.input_quantizer
    count = quantizer.observed[1].item()
    bitquant.calibrate_(encoder, batches)
    assert quantizer.observed[1].item() == 4 * count
    assert quantizer.alpha.item() == pytest.approx((quantizer.observed[0] / quantizer.observed[1]).item())
    assert "layers.0.qkv.input_quantizer.observed" in encoder.state_dict()
    assert not encoder.training


def test_bit_ref_swaps_gelu_for_relu(encoder, inputs):
    bitquant.quantize_(encoder, "bit-ref", inputs)
    assert isinstance(encoder.layers[0].act, nn.ReLU)
    assert encoder.layers[0].down.input_quantizer.levels == "unit"
    assert encoder.layers[0].up.input_quantizer.levels == "signed"


def test_rules_and_skips(encoder, inputs):
    config = bitquant.QuantConfig.preset(
        "bit-plus", modules_to_not_convert=["layers.1"], rules={"layers.0.up": None, "re:.*out": {"ste": "smooth"}}
    )
    bitquant.quantize_(encoder, config, inputs)
    assert type(encoder.layers[0].up) is nn.Linear and type(encoder.layers[1].qkv) is nn.Linear
    assert encoder.layers[0].out.input_quantizer.smooth and not encoder.layers[0].down.input_quantizer.smooth
    reasons = {row.path: row.reason for row in bitquant.report(encoder).rows}
    assert reasons["layers.1.bit_attention_0"] == reasons["layers.0.up"] == "kept by the configuration"
    with torch.no_grad():
        encoder(**inputs)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2))
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def test_tied_weights_are_all_binarized_or_none():
    model = Tied().eval()
    ids = torch.randint(20, (2, 6))
    bitquant.quantize_(model, None, ids)
    reasons = {row.path: row.reason for row in bitquant.report(model).rows}
    assert reasons["words"] == "tied to a layer that stays float" and reasons["head"] == "task head"
    assert model.head.weight is model.words.weight
    assert isinstance(model.layers[0][2], BitLinear) and model.layers[0][2].input_quantizer.levels == "unit"


def test_embeddings(encoder):
    model = Tied().eval()
    model.head.weight = nn.Parameter(torch.randn(20, 8))
    ids = torch.randint(20, (2, 6))
    bitquant.quantize_(model, None, ids)
    assert isinstance(model.words, BitEmbedding)
    with torch.no_grad():
        expected = model(ids)
    bitquant.convert_(model)
    assert isinstance(model.words, PackedEmbedding) and torch.equal(model(ids), expected)


def test_wider_embeddings():
    model, ids = Tied().eval(), torch.randint(20, (2, 6))
    model.head.weight = nn.Parameter(torch.randn(20, 8))
    expected = model.words(ids)
    bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", embedding_bits=8), ids)
    row = next(row for row in bitquant.report(model).rows if row.path == "words")
    assert row.weight_bits == 8 and row.reason is None and not row.binarized
    torch.testing.assert_close(model.words(ids), expected, rtol=0, atol=0.05)
    assert not torch.equal(model.words(ids), expected)
    with in_float(model):
        assert torch.equal(model.words(ids), expected)
    with torch.no_grad():
        expected = model(ids)
    bitquant.convert_(model)
    assert torch.equal(model(ids), expected)


def test_float_embeddings():
    model, ids = Tied().eval(), torch.randint(20, (2, 6))
    model.head.weight = nn.Parameter(torch.randn(20, 8))
    bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", embedding_bits=32), ids)
    reasons = {row.path: row.reason for row in bitquant.report(model).rows}
    assert type(model.words) is nn.Embedding and reasons["words"] == "kept by the configuration"


def test_no_float_copy_remains(encoder, inputs):
    bitquant.quantize_(encoder, None, inputs)
    bitquant.convert_(encoder)
    assert isinstance(encoder.layers[0].qkv, PackedLinear)
    assert isinstance(encoder.layers[0].bit_attention_0, PackedAttention)
    weights = [t for t in itertools.chain(encoder.parameters(), encoder.buffers()) if t.is_floating_point()]
    assert max(t.numel() for t in weights if t.ndim > 1) == 5 * 32  # the stem
    state = encoder.state_dict()
    assert state["layers.0.qkv.weight_packed"].shape == (96, 4) and "layers.0.qkv.weight" not in state


def test_errors(encoder, inputs):
    with pytest.raises(ValueError, match="not quantized"):
        bitquant.convert_(encoder)
    with pytest.raises(ValueError, match="matches no layer"):
        bitquant.quantize_(encoder, bitquant.QuantConfig(rules={"layer.0": None}), inputs)
    with pytest.raises(ValueError, match="unknown preset"):
        bitquant.quantize_(encoder, "bit-minus", inputs)
    with pytest.raises(ValueError, match="example_inputs"):
        bitquant.quantize_(encoder)
    with pytest.raises(ValueError):
        bitquant.quantize_(encoder, None, {"y": inputs["x"]})
    assert type(encoder.layers[0].up) is nn.Linear  # nothing was changed by any of these
    bitquant.quantize_(encoder, None, inputs)
    with pytest.raises(ValueError, match="quantized already"):
        bitquant.quantize_(encoder, None, inputs)
    bitquant.convert_(encoder)
    with pytest.raises(ValueError, match="converted already"):
        bitquant.convert_(encoder)


def test_diverged_student_names_the_layer(encoder, inputs):
    bitquant.quantize_(encoder, None, inputs)
    encoder.layers[0].up.weight_quantizer.log_ratio.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="layers.0.up: a scale is not positive and finite"):
        bitquant.convert_(encoder)
