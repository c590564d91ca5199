"""Contract 1 for every packed layer: trained, packed naive and packed native give the same bits of every float."""

import pytest
import torch
from torch import nn

from bitquant import QuantConfig, ops
from bitquant.capture import mutate_class_
from bitquant.nn import BitConv, BitEmbedding, BitLinear
from bitquant.packed import PackedConv, PackedEmbedding, PackedLinear

PRESETS = ["bit-ref", "bit-plus"]


def trained_linear(preset, k, n, *, nonnegative=False, bias=True, **overrides):
    torch.manual_seed(k * 1000 + n)
    layer = nn.Linear(k, n, bias=bias)
    mutate_class_(layer, BitLinear)
    layer.add_quantizers(QuantConfig.preset(preset, **overrides), nonnegative=nonnegative)
    with torch.no_grad():  # as training would leave it
        layer.input_quantizer.alpha.fill_(0.83)
        layer.input_quantizer.shift.normal_(std=0.3)
        if preset == "bit-plus":
            layer.weight_quantizer.log_ratio.normal_(std=0.2)
    return layer


def assert_same(layer, packed, *inputs):
    layer.train()
    trained = layer(*inputs).detach()
    with torch.no_grad():
        evaluated = layer.eval()(*inputs)
        with ops.use_backend("naive"):
            naive = packed(*inputs)
        native = packed(*inputs)
    assert torch.equal(trained, evaluated)
    assert torch.equal(evaluated, naive)
    assert torch.equal(naive, native)
    return native


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (100, 63), (1000, 17), (384, 384)], ids=str)
@pytest.mark.parametrize("nonnegative", [False, True], ids=["signed", "unit"])
def test_linear(preset, shape, nonnegative):
    k, n = shape
    layer = trained_linear(preset, k, n, nonnegative=nonnegative)
    packed = PackedLinear.from_trained(layer)
    for lead in [(), (5,), (2, 7), (0,)]:
        x = torch.randn(*lead, k)
        out = assert_same(layer, packed, x.relu() if nonnegative else x)
        assert out.shape == (*lead, n)
    assert_same(layer, packed, torch.randn(k, 6).T)  # not contiguous
    ties = layer.input_quantizer.threshold().expand(2, k)
    assert_same(layer, packed, ties)


@pytest.mark.parametrize("center", ["none", "tensor", "row"])
@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_options(center, granularity, bias):
    layer = trained_linear("bit-plus", 40, 24, bias=bias, weight_center=center, weight_scale=granularity)
    assert_same(layer, PackedLinear.from_trained(layer), torch.randn(3, 40))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_linear_dtypes(dtype):
    layer = trained_linear("bit-plus", 40, 24)
    out = assert_same(layer, PackedLinear.from_trained(layer), torch.randn(3, 40, dtype=dtype))
    assert out.dtype == dtype


@pytest.mark.parametrize("bits", [2, 4, 8, 32])
@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (1000, 17)], ids=str)
@pytest.mark.parametrize("nonnegative", [False, True], ids=["signed", "unit"])
def test_wider_inputs(bits, shape, nonnegative):
    k, n = shape
    layer = trained_linear("bit-plus", k, n, nonnegative=nonnegative, activation_bits=bits)
    packed = PackedLinear.from_trained(layer)
    for lead in [(), (5,), (2, 7), (0,)]:
        x = 3 * torch.randn(*lead, k)
        assert_same(layer, packed, x.relu() if nonnegative else x)
    assert_same(layer, packed, torch.randn(k, 6).T)
    halves = (torch.arange(5 * k).view(5, k) - 8) * 0.5 * layer.input_quantizer.scale()  # ties go to even
    assert_same(layer, packed, halves - layer.input_quantizer.shift.detach())


CONVOLUTIONS = {
    "plain": (nn.Conv1d, 3, 5, 3, {}),
    "stride": (nn.Conv1d, 4, 6, 3, {"stride": 2, "padding": 1}),
    "dilation": (nn.Conv1d, 4, 6, 3, {"dilation": 2, "padding": 2, "bias": False}),
    "groups": (nn.Conv1d, 6, 9, 5, {"groups": 3, "padding": 2}),
    "depthwise": (nn.Conv1d, 7, 7, 31, {"groups": 7, "padding": 15}),
    "same": (nn.Conv1d, 3, 4, 4, {"padding": "same"}),
    "reflect": (nn.Conv1d, 3, 4, 3, {"padding": 1, "padding_mode": "reflect"}),
    "pointwise": (nn.Conv1d, 63, 100, 1, {}),
    "wide": (nn.Conv1d, 100, 20, 3, {"padding": 1}),
    "patches": (nn.Conv2d, 3, 8, 4, {"stride": 4}),
    "square": (nn.Conv2d, 5, 6, (3, 5), {"padding": (1, 2), "stride": (2, 1), "dilation": (1, 2)}),
    "depthwise-2d": (nn.Conv2d, 6, 6, 7, {"padding": 3, "groups": 6}),
    "same-2d": (nn.Conv2d, 2, 3, (2, 4), {"padding": "same"}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("nonnegative", [False, True], ids=["signed", "unit"])
def test_convolution(name, bits, nonnegative):
    torch.manual_seed(0)
    kind, c_in, c_out, kernel, options = CONVOLUTIONS[name]
    layer = kind(c_in, c_out, kernel, **options)
    mutate_class_(layer, BitConv)
    layer.add_quantizers(QuantConfig.preset("bit-plus", activation_bits=bits), nonnegative=nonnegative)
    with torch.no_grad():
        layer.input_quantizer.alpha.fill_(0.83)
        layer.input_quantizer.shift.normal_(std=0.3)
    packed = PackedConv.from_trained(layer)
    space = (33,) if kind is nn.Conv1d else (16, 20)
    x = torch.randn(2, c_in, *space)
    x = x.relu() if nonnegative else x
    x[1, ..., 13:] = 0.0  # masked frames
    assert_same(layer, packed, x)
    assert_same(layer, packed, x[0])
    assert_same(layer, packed, x[:0])
    if bits < 32:  # a float sum depends on the order that a memory layout suggests
        assert_same(layer, packed, x.transpose(0, 1).contiguous().transpose(0, 1))
    assert_same(layer, packed, x.half())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dim", [1, 63, 100])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_embedding(preset, dim, bits, dtype):
    torch.manual_seed(0)
    table = nn.Embedding(50, dim, padding_idx=0, dtype=dtype)
    mutate_class_(table, BitEmbedding)
    table.add_quantizers(QuantConfig.preset(preset, embedding_bits=bits))
    if preset == "bit-plus":
        nn.init.normal_(table.weight_quantizer.log_ratio, std=0.2)  # as training would leave it
    packed = PackedEmbedding.from_trained(table)
    for indices in (torch.randint(50, (2, 9)), torch.tensor(3), torch.zeros(0, dtype=torch.long)):
        assert_same(table, packed, indices)
    assert_same(table, packed, torch.randint(50, (4, 9), dtype=torch.int32).T)
    assert packed(torch.tensor([1])).dtype == dtype
    with pytest.raises(IndexError, match="outside the embedding's 50 rows"):
        packed(torch.tensor([50]))
    out = table(torch.tensor([0, 1]))
    out.sum().backward()
    assert not table.weight.grad[0].any() and table.weight.grad[1].any()  # padding_idx gets no gradient


@pytest.mark.parametrize("packed", [PackedLinear, PackedEmbedding])
def test_state_dict_is_the_bit_layout(packed):
    layer = trained_linear("bit-plus", 63, 5) if packed is PackedLinear else nn.Embedding(5, 63)
    if packed is PackedEmbedding:
        mutate_class_(layer, BitEmbedding)
        layer.add_quantizers(QuantConfig.preset("bit-plus"))
    saved = packed.from_trained(layer).state_dict()
    bytes_ = saved["weight_packed"]
    assert bytes_.dtype == torch.uint8 and bytes_.shape == (5, 8)
    bits = (bytes_.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)
    assert torch.equal(bits[:, :63].bool(), layer.weight >= 0) and not bits[:, 63:].any()


def test_levels_of_a_table_in_bits():
    table = nn.Embedding.from_pretrained(torch.tensor([[-9.0, -0.1, 0.0, 0.6], [0.25, 0.1, -0.1, -0.25]]), freeze=False)
    mutate_class_(table, BitEmbedding)
    table.add_quantizers(QuantConfig.preset("bit-plus", embedding_bits=2))
    table.weight_quantizer.scale_init.fill_(0.1 / 0.624)
    packed = PackedEmbedding.from_trained(table)
    assert packed.state_dict()["weight_packed"].tolist() == [[0b1010], [0b0101], [0b1100], [0b0011]]
    expected = 0.1 * torch.tensor([[-3.0, -1, 1, 3], [3, 1, -1, -3]])
    torch.testing.assert_close(packed(torch.tensor([0, 1])), expected)


def test_nan_in_a_table_is_not_packed():
    table = nn.Embedding(5, 8)
    mutate_class_(table, BitEmbedding)
    table.add_quantizers(QuantConfig.preset("bit-plus", embedding_bits=4))
    with torch.no_grad():
        table.weight[3, 2] = float("nan")
    with pytest.raises(ValueError, match="its weight is NaN"):
        PackedEmbedding.from_trained(table)


@pytest.mark.parametrize("bits", [0, 3, 16, "1"])
def test_no_other_widths_of_tables(bits):
    with pytest.raises(ValueError, match="a packed embedding has 1, 2, 4 or 8 bits"):
        PackedEmbedding(5, 8, bits=bits)


def test_loading_checks_the_bits():
    layer = trained_linear("bit-plus", 63, 5)
    packed = PackedLinear.from_trained(layer)
    saved = packed.state_dict()
    other = PackedLinear(63, 5, bits=1, signed=True, bias=True, scales=5)
    other.load_state_dict(saved)
    x = torch.randn(4, 63)
    assert torch.equal(other(x), packed(x))
    for wrong, message in [
        (saved["weight_packed"][:, :7], "weight_packed must be uint8"),
        (saved["weight_packed"].int(), "weight_packed must be uint8"),
        (torch.full((5, 8), 255, dtype=torch.uint8), "above the 63 valid ones"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            other.load_state_dict({**saved, "weight_packed": wrong})
    with pytest.raises(RuntimeError, match="weight_packed"):
        other.load_state_dict({k: v for k, v in saved.items() if k != "weight_packed"})


def test_bad_scales_cannot_be_packed():
    layer = trained_linear("bit-plus", 8, 4)
    layer.weight_quantizer.log_ratio.data[1] = float("inf")
    with pytest.raises(ValueError, match="not positive and finite"):
        PackedLinear.from_trained(layer)


def test_nan_is_refused():
    layer = trained_linear("bit-plus", 8, 4)
    x = torch.randn(2, 8)
    x[1, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        PackedLinear.from_trained(layer)(x)
    with pytest.raises(ValueError, match="NaN"):
        layer(x)
