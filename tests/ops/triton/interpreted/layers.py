"""Layers that hand on bits: attention and LayerNorm; and the quantizers' kernels for training."""

import pytest
import torch

from bitquant import ops, quantizers
from bitquant.ops import naive
from bitquant.ops.triton import fused


def words(x):
    """Signs of (B, H, T, d) as ``fused.Words``, inside a tensor that holds more."""
    packed = naive.threshold_pack(x, torch.zeros(1), False)[0].transpose(1, 2).flatten(2)  # (B, T, H * words)
    b, t, n = packed.shape
    wider = torch.cat([torch.full((b, t, 3), -1, dtype=torch.int32), packed], -1).contiguous()
    return fused.Words(wider, (t * (n + 3), n // x.shape[1], n + 3), 3)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_attention_reads_and_writes_bits(random, dtype):
    q, k, v = (random.heads(2, 3, t, d) for t, d in ((9, 40), (35, 40), (35, 64)))
    keep, limits = random.bools(2, 1, 1, 35, share=0.7), random.floats(3 * 64) / 9
    margin, scale = torch.tensor([8]), torch.tensor([0.37])
    y = naive.binary_attention_rowmax(q, k, v, keep, margin, scale).to(dtype).transpose(1, 2).reshape(18, 192)
    expected, ones = naive.threshold_pack(y, limits, False)
    shape = 2, 3, 9, 35, 40, 64
    out = fused.attention(words(q), words(k), words(v), shape, keep, (margin,), scale, dtype, limits)
    assert torch.equal(out.words[:, :6], expected) and not out.words[:, 6:].any() and torch.equal(out.ones, ones)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("columns", (1, 63, 768))
def test_layer_norm(random, columns, dtype):
    x, residual = random.floats(5, columns).to(dtype), random.floats(5, columns).to(dtype)
    weight, bias, threshold = random.floats(columns), random.floats(columns), random.floats(columns) / 9
    for added in (None, residual):
        total = x.float() if added is None else x.float() + added.float()
        expected = torch.nn.functional.layer_norm(total, (columns,), weight, bias, 1e-5)
        y, bits = fused.layer_norm(x, added, weight, bias, 1e-5, threshold)
        tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
        torch.testing.assert_close(y.float(), expected, atol=tolerance, rtol=tolerance)
        packed, ones = naive.threshold_pack(y, threshold, False)  # the bits are those of the float that is given
        assert torch.equal(bits.words[:, : packed.shape[1]], packed) and torch.equal(bits.ones, ones)


CASES = {
    "signed": lambda x, shift, alpha: quantizers.signed_levels(x, shift, alpha),
    "smooth": lambda x, shift, alpha: quantizers.signed_levels(x, shift, alpha, smooth=True),
    "unit": lambda x, shift, alpha: quantizers.unit_levels(x, shift, alpha),
    "4 bits": lambda x, shift, alpha: quantizers.integer_levels(x, shift, alpha, -8, 7),
    "8 bits unit": lambda x, shift, alpha: quantizers.integer_levels(x, shift, alpha, 0, 255),
}


@pytest.mark.parametrize("shape", ((1,), (3, 5, 63), (40, 100)))
@pytest.mark.parametrize("case", CASES)
def test_elastic_binarization(random, case, shape):
    x, grad = random.floats(*shape), random.floats(*shape)
    for shift in (random.floats(shape[-1]) / 9, torch.tensor(0.1)):
        results = []
        for backend in ("naive", "triton"):
            leaves = [t.clone().requires_grad_() for t in (x, shift, torch.tensor(0.37))]
            with ops.use_backend(backend):
                levels = CASES[case](*leaves)
                levels.backward(grad)
            results.append((levels.detach(), *(t.grad for t in leaves)))
        (levels, dx, dshift, dalpha), (ours, our_dx, our_dshift, our_dalpha) = results
        assert torch.equal(ours, levels) and torch.equal(our_dx, dx)
        torch.testing.assert_close(our_dshift, dshift, atol=1e-4, rtol=1e-4)  # sums in another order
        assert (dalpha is None) == (our_dalpha is None)
        if dalpha is not None:
            torch.testing.assert_close(our_dalpha, dalpha, atol=1e-3, rtol=1e-4)
