"""Layers of odd shapes, all in one file: equal numbers in ONNX Runtime."""

import onnx
import pytest
import torch
from torch import nn

from bitquant import QuantConfig
from bitquant.capture import mutate_class_
from bitquant.nn import BitAttention, BitConv, BitEinsum, BitEmbedding, BitLinear, BitMatmul
from bitquant.onnx.check import check
from bitquant.onnx.export import build
from bitquant.onnx.graph import layers
from bitquant.packed import PackedAttention, PackedConv, PackedEmbedding, PackedLinear

for package in ("onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason=f'files are written and checked with {package}: pip install ".[onnx]"')

WIDTHS = (1, 63, 100, 1000)
CONVOLUTIONS = [  # of 24 channels
    nn.Conv1d(24, 17, 3, stride=2, padding=1),
    nn.Conv1d(24, 24, 5, groups=24, padding=4, dilation=2, bias=False),
    nn.Conv1d(24, 48, 4, groups=3, padding="same"),
    nn.Conv1d(24, 8, 2, stride=3, padding=2, padding_mode="reflect"),
    nn.Conv2d(24, 9, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
    nn.Conv2d(24, 48, 3, groups=24, padding=1),
]


def trained(layer, kind, config, **options):
    mutate_class_(layer, kind)
    layer.add_quantizers(config, **options)
    return layer


class Everything(nn.Module):
    """One layer of each kind and shape, on its own part of the input."""

    def __init__(self, preset, bits=(1, 1, 1)):
        """bits: of the inputs of linear layers, of convolutions, and of products of two activations."""
        super().__init__()
        of_linear, of_conv, config = (QuantConfig.preset(preset, activation_bits=width) for width in bits)
        self.linears, self.convolutions = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(WIDTHS):
            linear = trained(
                nn.Linear(width, 5 * i + 1, bias=bool(i % 2)), BitLinear, of_linear, nonnegative=bool(i % 2)
            )
            self.linears.append(linear)
        for i, convolution in enumerate(CONVOLUTIONS):
            same = type(convolution)(**self._arguments(convolution))
            self.convolutions.append(trained(same, BitConv, of_conv, nonnegative=bool(i % 2)))
        self.embedding = trained(nn.Embedding(7, 63), BitEmbedding, config)
        self.table = trained(nn.Embedding(7, 9), BitEmbedding, QuantConfig.preset(preset, embedding_bits=4))
        self.attention, self.causal = BitAttention(config, 20), BitAttention(config, 20)
        self.biased = BitAttention(config, 20, score_bias=True)
        self.matmul, self.einsum = BitMatmul(config, nonnegative=(False, True)), BitEinsum(config)
        self._start()

    @staticmethod
    def _arguments(conv):
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        found = {name: getattr(conv, name) for name in (*names, "padding_mode")}
        return {**found, "bias": conv.bias is not None}

    @torch.no_grad()
    def _start(self):
        for name, parameter in self.named_parameters():
            if "shift" in name:
                parameter.normal_(0, 0.3)
            if name.endswith("alpha"):
                parameter.fill_(0.7)
        for attention in (self.attention, self.causal, self.biased):
            attention.score_scale.fill_(0.2)

    def pack(self):
        for module in (self.linears, self.convolutions):
            for i, layer in enumerate(module):
                module[i] = (PackedLinear if isinstance(layer, BitLinear) else PackedConv).from_trained(layer)
        self.embedding, self.table = (PackedEmbedding.from_trained(e) for e in (self.embedding, self.table))
        if self.attention.in_integers:
            self.attention, self.causal = (PackedAttention.from_trained(a) for a in (self.attention, self.causal))
        return self.eval().requires_grad_(False)

    def forward(self, x, tokens, keep):
        """x (B, T, 1000), tokens (B, T), keep bool (B, T)."""
        out = [linear(x[..., :width]) for linear, width in zip(self.linears, WIDTHS, strict=True)]
        rows = x[..., :24].transpose(1, 2)
        for convolution in self.convolutions:
            flat = len(convolution.kernel_size) == 1
            out.append(convolution(rows if flat else rows.unsqueeze(-1) * x[:, None, :, 24:31]))
        q, k, v = (x[..., 60 * i : 60 * (i + 1)].unflatten(-1, (3, 20)).transpose(1, 2) for i in range(3))
        mask = keep[:, None, None]
        out += [self.embedding(tokens), self.table(tokens)]
        out += [self.attention(q, k, v, scale=0.2), self.causal(q, k, v, mask, scale=0.2)]
        out.append(self.biased(q, k, v, torch.where(mask, 0.1 * q @ k.transpose(-1, -2), -torch.inf), scale=0.2))
        return [*out, self.matmul(q, v.abs().transpose(-1, -2)), self.einsum("bhqd,bhkd->bqhk", q, k)]


def inputs(batch, length):
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(batch, length, 1000, generator=generator)
    x[0, 2] = 0  # a frame that counts nothing
    x[0, 3, :100] = torch.tensor([0.0, -0.0] * 50)
    keep = torch.ones(batch, length, dtype=torch.bool)
    keep[0, length // 2 :] = False
    keep[-1] = batch == 1  # a row without any key
    return {"x": x, "tokens": torch.randint(7, (batch, length), generator=generator), "keep": keep}


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    return build(Everything("bit-plus").pack(), inputs(2, 13))


def assert_equal(nodes, proto):
    for call in (inputs(2, 13), inputs(1, 7), inputs(3, 100)):
        found = check(nodes, proto, call)
        assert found.mismatches == 0, found
        assert found.layers == len(layers(proto)) >= 16
        assert found.cosine > 0.999999


def test_every_layer_gives_equal_numbers(exported):
    assert_equal(*exported)
    names = {node.name for node in layers(exported[1])}
    assert {"linears.0", "convolutions.5", "embedding", "table", "attention"} <= names


def test_folded_table_rule():
    torch.manual_seed(0)
    nodes, proto = build(Everything("bit-ref").pack(), inputs(2, 13), fold=True)
    assert_equal(nodes, proto)
    stored = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert stored["linears.3.weight_stored"] == onnx.TensorProto.INT8


def test_wider_inputs():
    torch.manual_seed(0)
    assert_equal(*build(Everything("bit-plus", (8, 2, 4)).pack(), inputs(2, 13)))


def test_a_wrong_bit_is_found(exported):
    nodes, proto = exported
    wrong = onnx.ModelProto()
    wrong.CopyFrom(proto)
    tensor = next(t for t in wrong.graph.initializer if t.name == "linears.2.weight_stored")
    raw = bytearray(tensor.raw_data)
    raw[0] ^= 1
    tensor.raw_data = bytes(raw)
    found = check(nodes, wrong, inputs(2, 13))
    assert 0 < found.mismatches <= 26 and found.worst == "linears.2"
