"""The float path beside a 1-bit layer: against its definition, trained and packed."""

import pytest
import torch
from torch import nn

from bitquant import QuantConfig, ops
from bitquant.capture import mutate_class_
from bitquant.nn import BitConv, BitLinear
from bitquant.packed import PackedConv, PackedLinear


def layer_of(kind, module, rank, **overrides):
    mutate_class_(module, kind)
    module.add_quantizers(QuantConfig.preset("bit-plus", low_rank=rank, **overrides), nonnegative=True)
    with torch.no_grad():
        module.input_quantizer.alpha.fill_(0.83)
        module.input_quantizer.shift.normal_(std=0.3)
        if module.float_path is not None:
            module.float_path.down.normal_(std=0.1)
            module.float_path.up.normal_(std=0.1)
    return module.eval()


def as_defined(layer, x):
    """The layer's output for x (rows, K), 1-bit inputs, written out."""
    down, up = layer.float_path.down.half().float(), layer.float_path.up.half().float()
    coordinates = x @ down.T
    rest = torch.addmm(x, coordinates, down, alpha=-1)
    levels = torch.where(rest >= layer.input_quantizer.threshold(), 1.0, -1.0)
    weight = layer.weight.flatten(1)
    signs = torch.where(weight >= 0, 1.0, -1.0)
    scale = layer.input_quantizer.scale() * layer.weight_quantizer.scale(layer.weight)
    return torch.addmm((levels @ signs.T) * scale + layer.bias, coordinates, up.T)


@pytest.mark.parametrize("k, n, rank", [(2, 1, 1), (63, 100, 5), (100, 63, 1), (1000, 17, 16), (384, 384, 8)])
@pytest.mark.parametrize("bits", [1, 8])
def test_linear(k, n, rank, bits):
    torch.manual_seed(k)
    layer = layer_of(BitLinear, nn.Linear(k, n), rank, activation_bits=bits)
    assert layer.float_path.rank == rank and layer.input_quantizer.levels == "signed"
    packed = PackedLinear.from_trained(layer)
    wide = torch.randn(4, 2 * k)
    for x in (torch.randn(3, k), torch.randn(0, k), torch.randn(2, 5, k), torch.randn(k, 6).T, wide[:, ::2]):
        with torch.no_grad():
            expected = layer(x)
            if bits == 1 and x.ndim == 2:
                assert torch.equal(expected, as_defined(layer, x))
            assert torch.equal(packed(x), expected)
            with ops.use_backend("naive"):
                assert torch.equal(packed(x), expected)
    assert packed.float_path.down.dtype is torch.float16 and not list(packed.parameters())


@pytest.mark.parametrize("convolution, space", [(nn.Conv1d, (7,)), (nn.Conv2d, (3, 5))], ids=["1d", "2d"])
def test_pointwise_convolution(convolution, space):
    torch.manual_seed(0)
    layer = layer_of(BitConv, convolution(63, 20, 1), 4)
    packed = PackedConv.from_trained(layer)
    x = torch.randn(2, 63, *space)
    x[:, :, -1] = 0  # counts 0 (contract 5)
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(packed(x), expected)
        assert torch.equal(packed(x[0]), layer(x[0]))
        flat = x[:, :, :-1].movedim(1, -1).reshape(-1, 63)
        got = expected[:, :, :-1].movedim(1, -1).reshape(-1, 20)
        assert torch.allclose(got, as_defined(layer, flat), atol=1e-5)
        bias = layer.bias.view(-1, *[1] * len(space[1:]))
        assert torch.equal(expected[0, :, -1], bias.expand_as(expected[0, :, -1]))


def test_wider_convolutions_have_none():
    for options in ({"kernel_size": 3}, {"kernel_size": 1, "stride": 2}, {"kernel_size": 1, "groups": 4}):
        assert layer_of(BitConv, nn.Conv1d(8, 8, **options), 4).float_path is None
    assert layer_of(BitLinear, nn.Linear(3, 9), 4).float_path.rank == 3  # no more than there are


def test_what_lies_in_few_directions_passes_in_float():
    torch.manual_seed(0)
    layer = layer_of(BitLinear, nn.Linear(40, 30), 3)
    x = torch.randn(200, 3) @ torch.randn(3, 40)
    layer.float_path.observe(x, layer.weight)
    with torch.no_grad():
        floats = nn.functional.linear(x, layer.weight)
        coordinates = x @ layer.float_path.down.T
    assert torch.allclose(coordinates @ layer.float_path.up.T, floats, atol=1e-3)


def test_fewer_inputs_than_directions():
    layer = layer_of(BitLinear, nn.Linear(24, 24), 4)
    x = torch.randn(1, 24)
    layer.float_path.observe(x, layer.weight)
    down = layer.float_path.down.detach()
    assert torch.allclose(down @ down.T, torch.eye(4), atol=1e-5)
    assert torch.allclose((x @ down.T) @ down, x, atol=1e-5)
    state = torch.get_rng_state()
    layer.float_path.observe(torch.empty(0, 24), layer.weight)
    assert torch.equal(layer.float_path.down, down) and torch.equal(torch.get_rng_state(), state)


def test_a_path_that_saw_nothing_is_trained_all_the_same():
    layer = layer_of(BitLinear, nn.Linear(24, 8), 0)
    layer.float_path = None
    layer.add_quantizers(QuantConfig.preset("bit-plus", low_rank=2), nonnegative=False)
    layer(torch.randn(5, 24)).square().sum().backward()
    assert layer.float_path.down.grad.abs().sum() > 0 and layer.float_path.up.grad.abs().sum() > 0


@pytest.mark.parametrize("rank", [-1, 1.5, True, "4", None])
def test_no_rank(rank):
    with pytest.raises(ValueError, match="low_rank must be a whole number from 0"):
        QuantConfig.preset("bit-plus", low_rank=rank)


def test_convolution_under_autocast():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        convolution = layer_of(BitConv, nn.Conv1d(6, 5, 1), 2)
        assert torch.equal(PackedConv.from_trained(convolution)(torch.ones(1, 6, 3)), convolution(torch.ones(1, 6, 3)))
