"""Binary attention in training, in eval mode and as the ops define it."""

import math

import pytest
import torch

from bitquant import QuantConfig, ops
from bitquant.nn import BitAttention
from bitquant.packed import PackedAttention

PRESETS = ["bit-ref", "bit-plus"]


def made(preset, tq=7, tk=9, d=16, heads=3, batch=2):
    torch.manual_seed(0)
    layer = BitAttention(QuantConfig.preset(preset), d)
    q, k, v = torch.randn(batch, heads, tq, d), torch.randn(batch, heads, tk, d), torch.randn(batch, heads, tk, 5)
    for m in layer.modules():
        if hasattr(m, "observing"):
            m.observing = True
    layer(q, k, v)
    for m in layer.modules():
        if hasattr(m, "observing"):
            m.observing = False
    return layer, q, k, v


def padding(batch, tk):
    keep = torch.ones(batch, 1, 1, tk, dtype=torch.bool)
    keep[0, ..., tk // 2 :] = False
    return keep


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("mask", ["none", "bool", "additive", "causal", "all"])
@pytest.mark.parametrize("lengths", [(7, 9), (1, 1), (63, 100)], ids=str)
def test_training_equals_eval_equals_packed(preset, mask, lengths):
    layer, q, k, v = made(preset, *lengths)
    keep = padding(2, lengths[1])
    kwargs = {
        "none": {},
        "bool": {"attn_mask": keep},
        "additive": {"attn_mask": torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)},
        "causal": {"is_causal": True},
        "all": {"attn_mask": torch.zeros_like(keep)},
    }[mask]
    trained = layer(q, k, v, **kwargs)
    with torch.no_grad():
        evaluated = layer.eval()(q, k, v, **kwargs)
        packed = PackedAttention.from_trained(layer)
        native = packed(q, k, v, **kwargs)
        with ops.use_backend("naive"):
            naive = packed(q, k, v, **kwargs)
    assert torch.equal(trained.detach(), evaluated)
    assert torch.equal(evaluated, naive)
    assert torch.equal(naive, native)
    if mask == "all":
        assert not evaluated.any()
    trained.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in layer.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_padding_changes_nothing(preset):
    layer, q, k, v = made(preset)
    with torch.no_grad():
        alone = layer(q[:1, :, :4], k[:1, :, :4], v[:1, :, :4])
        more = layer(q, k, v, attn_mask=padding(2, 9))
    assert torch.equal(alone, more[:1, :, :4])


def test_row_max_takes_what_the_softmax_says():
    layer, q, k, v = made("bit-plus", d=64)
    aq, ak = layer.query.scale(), layer.key.scale()
    scores = torch.where(q >= 0, 1.0, -1.0) @ torch.where(k >= 0, 1.0, -1.0).transpose(-2, -1)
    probability = (scores * aq * ak / 8).double().softmax(-1)
    share = probability / probability.amax(-1, keepdim=True)
    taken = share >= 0.25
    assert ((share - 0.25).abs() > 1e-6).all()  # no near ties, so that the float rule is exact
    mean = taken.double() @ torch.where(v >= 0, 1.0, -1.0).double() / taken.sum(-1, keepdim=True)
    torch.testing.assert_close(layer(q, k, v).double(), mean * layer.value.scale(), rtol=1e-6, atol=1e-6)


def test_table_takes_what_the_softmax_says():
    layer, q, k, v = made("bit-ref", d=64)
    alpha = layer.selection.probability.scale()
    scores = torch.where(q >= 0, 1.0, -1.0) @ torch.where(k >= 0, 1.0, -1.0).transpose(-2, -1)
    probability = (scores * layer.query.scale() * layer.key.scale() / 8).double().softmax(-1)
    assert ((probability - alpha / 2).abs() > 2e-3).all()
    total = (probability > alpha / 2).double() @ torch.where(v >= 0, 1.0, -1.0).double()
    torch.testing.assert_close(layer(q, k, v).double(), total * alpha * layer.value.scale(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_dropout_only_in_training(preset):
    layer, q, k, v = made(preset, 64, 64)
    torch.manual_seed(0)
    assert not torch.equal(layer(q, k, v, dropout_p=0.5), layer(q, k, v))


@pytest.mark.parametrize("preset", PRESETS)
def test_float_bias_keeps_the_softmax(preset):
    torch.manual_seed(0)
    layer = BitAttention(QuantConfig.preset(preset), 16, score_bias=True)
    q, k, v = (torch.randn(2, 3, 8, 16) for _ in range(3))
    bias = torch.randn(2, 3, 8, 8)
    out = layer(q, k, v, attn_mask=bias)
    out.sum().backward()
    assert not torch.equal(out, layer(q, k, v, attn_mask=bias * 3))
    with pytest.raises(RuntimeError, match="boolean mask or an additive one"):
        BitAttention(QuantConfig.preset(preset), 16)(q, k, v, attn_mask=bias)


def test_grouped_queries():
    torch.manual_seed(0)
    layer = BitAttention(QuantConfig.preset("bit-plus"), 8)
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    wide = layer(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
    assert torch.equal(layer(q, k, v, enable_gqa=True), wide)


def test_gradient_follows_the_softmax():
    """d(out)/d(probability) with taken / count in the place of the probability."""
    layer, q, k, v = made("bit-plus")
    q.requires_grad_()
    grad = torch.randn(2, 3, 7, 5)
    layer(q, k, v).backward(grad)
    aq, ak, av = layer.query.scale(), layer.key.scale(), layer.value.scale()
    ql = torch.where(q >= 0, 1.0, -1.0).detach().requires_grad_()
    kl, vl = torch.where(k >= 0, 1.0, -1.0), torch.where(v >= 0, 1.0, -1.0)
    ((ql @ kl.transpose(-2, -1) * (aq * ak / math.sqrt(16))).softmax(-1) @ vl * av).backward(grad)
    slope = ((q / aq).abs() <= 1).detach() / aq
    torch.testing.assert_close(q.grad, ql.grad * slope, rtol=1e-4, atol=1e-6)
