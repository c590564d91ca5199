"""Binary convolution against an independent definition: a sum over the valid taps, one at a time."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from bitquant import QuantConfig
from bitquant.capture import mutate_class_
from bitquant.nn import BitConv

SHAPES = {
    "plain": (3, 5, 3, {}),
    "stride": (4, 6, 3, {"stride": 2, "padding": 1}),
    "dilation": (4, 6, 3, {"dilation": 2, "padding": 2}),
    "groups": (6, 9, 5, {"groups": 3, "padding": 2}),
    "depthwise": (7, 7, 31, {"groups": 7, "padding": 15}),
    "same": (3, 4, 4, {"padding": "same"}),
    "circular": (3, 4, 3, {"padding": 1, "padding_mode": "circular"}),
    "pointwise": (63, 100, 1, {}),
    "no-bias": (3, 4, 3, {"bias": False, "padding": 2}),
}


def made(kind, name, preset="bit-plus", nonnegative=False, **overrides):
    torch.manual_seed(0)
    c_in, c_out, kernel, options = SHAPES[name]
    layer = kind(c_in, c_out, kernel, **options)
    mutate_class_(layer, BitConv)
    layer.add_quantizers(QuantConfig.preset(preset, **overrides), nonnegative=nonnegative)
    with torch.no_grad():
        layer.input_quantizer.alpha.fill_(0.7)
        layer.input_quantizer.shift.normal_(std=0.3)
    return layer.eval()


def by_taps(layer, x):
    """Output and number of valid products at each place of a 1-D convolution, from the bits, in integers."""
    kernel, stride, dilation = layer.kernel_size[0], layer.stride[0], layer.dilation[0]
    left, right = {str: lambda: divmod_same(kernel, dilation)}.get(
        type(layer.padding), lambda: (layer.padding[0],) * 2
    )()
    q = layer.input_quantizer
    bits = (x >= q.threshold()[:, None]) if q.levels == "signed" else (x > q.threshold()[:, None])
    level = bits.long() * 2 - 1 if q.levels == "signed" else bits.long()
    level = level * (x != 0).any(1, keepdim=True)
    frames = x.shape[-1]
    sign = layer.weight_quantizer.signs(layer.weight).long() * 2 - 1
    per_group_in, per_group_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    out_frames = (frames + left + right - dilation * (kernel - 1) - 1) // stride + 1
    out = torch.zeros(len(x), layer.out_channels, out_frames, dtype=torch.long)
    for o, t, k in itertools.product(range(layer.out_channels), range(out_frames), range(kernel)):
        place = t * stride + k * dilation - left
        if layer.padding_mode == "circular":
            place %= frames
        if 0 <= place < frames:
            first = o // per_group_out * per_group_in
            out[:, o, t] += (level[:, first : first + per_group_in, place] * sign[o, :, k]).sum(1)
    scale = q.scale() * layer.weight_quantizer.scale(layer.weight)
    y = out.float() * scale.view(-1, 1)
    return y if layer.bias is None else y + layer.bias.view(-1, 1)


def divmod_same(kernel, dilation):
    total = dilation * (kernel - 1)
    return total // 2, total - total // 2


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("nonnegative", [False, True], ids=["signed", "unit"])
def test_equals_the_sum_over_valid_taps(name, nonnegative):
    layer = made(nn.Conv1d, name, nonnegative=nonnegative)
    x = torch.randn(2, layer.in_channels, 33)
    x[1, :, 20:] = 0.0  # masked frames
    assert torch.equal(layer(x).detach(), by_taps(layer, x))


@pytest.mark.parametrize("preset", ["bit-ref", "bit-plus"])
def test_2d_equals_1d(preset):
    flat = made(nn.Conv1d, "groups", preset)
    square = nn.Conv2d(6, 9, (1, 5), padding=(0, 2), groups=3)
    mutate_class_(square, BitConv)
    square.add_quantizers(QuantConfig.preset(preset), nonnegative=False)
    square.load_state_dict({k: v.unsqueeze(2) if k == "weight" else v for k, v in flat.state_dict().items()})
    x = torch.randn(2, 6, 17)
    assert torch.equal(square(x.unsqueeze(2)).squeeze(2), flat(x))


def test_padding_is_not_plus_one():
    layer = made(nn.Conv1d, "groups")
    x = torch.randn(1, 6, 12)
    padded = torch.nn.functional.pad(x, (0, 9))
    assert torch.equal(layer(padded)[..., :12], layer(x))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
def test_widths_train(bits):
    layer = made(nn.Conv1d, "depthwise", activation_bits=bits).train()
    x = torch.randn(2, 7, 40, requires_grad=True)
    layer(x).square().sum().backward()
    idle = {"input_quantizer.alpha", "input_quantizer.shift"} if bits == 32 else set()  # the float passes through
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is None) == (name in idle), name
        assert name in idle or (torch.isfinite(parameter.grad).all() and parameter.grad.any()), name
    assert x.grad.any()


def test_unbatched_empty_and_half():
    layer = made(nn.Conv1d, "stride")
    x = torch.randn(2, 4, 9)
    assert torch.equal(layer(x[0]), layer(x)[0])
    assert layer(x[:0]).shape == (0, 6, 5)
    assert layer(x.half()).dtype == torch.float16


def test_weight_norm_survives():
    torch.manual_seed(0)
    layer = weight_norm(nn.Conv1d(4, 6, 3), dim=2)
    names = set(layer.state_dict())
    saved = copy.deepcopy(layer.state_dict())
    mutate_class_(layer, BitConv)
    layer.add_quantizers(QuantConfig.preset("bit-plus"), nonnegative=False)
    assert names <= set(layer.state_dict())
    layer(torch.randn(1, 4, 8)).sum().backward()
    assert layer.parametrizations.weight.original1.grad.any()
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3)
    layer.load_state_dict(saved)  # a float checkpoint: the scale starts again, from the weight it gives
    torch.testing.assert_close(layer.weight_quantizer.scale_init, layer.weight.abs().flatten(1).mean(1))
