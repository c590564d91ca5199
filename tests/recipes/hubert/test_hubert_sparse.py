"""Sparse attention: index sets, masked against gathered, and keys outside the pattern."""

import pytest
import torch

from recipes.hubert.encoders import build_encoder
from recipes.hubert.patterns import PATTERNS, fixed_gather, pattern_mask

OPTIONS = {"layers": 2, "dim": 32, "heads": 4, "ffn": 64}


def sets(mask):
    return [set(row.nonzero().flatten().tolist()) for row in mask]


def test_fairseq_compat_index_sets():
    found = sets(pattern_mask("fairseq_compat", 12, block=4, summary=1))  # hubert.md 5.2
    assert found[:5] == [{0, 1, 2, 3, 4, 7, 8, 11}] * 5
    assert found[5:9] == [{3, 4, 5, 6, 7, 8, 11}] * 4
    assert found[9:] == [{3, 4, 7, 8, 9, 10, 11}] * 3


def test_fairseq_compat_density():
    mask = pattern_mask("fairseq_compat", 500, block=32, summary=8)
    assert (mask.sum(1).min().item(), mask.sum(1).max().item()) == (154, 159)
    assert round(mask.double().mean().item(), 3) == 0.316


def test_fixed_density():
    mask = pattern_mask("fixed", 500, block=32, summary=8)
    assert round(mask.double().mean().item(), 3) == 0.288  # 144 keys a query of 500
    assert mask[40].sum() == 32 + 15 * 8 - 8


def test_definitions_by_enumeration():
    def attends(kind, i, j, block, summary):
        near = abs(i - j) <= block
        return {
            "dense": True,
            "local": near,
            "strided": near or (i - j) % block == 0,
            "fixed": i // block == j // block or j % block >= block - summary,
        }[kind]

    for kind in ("dense", "local", "strided", "fixed"):
        expected = [{j for j in range(23) if attends(kind, i, j, 5, 2)} for i in range(23)]
        assert sets(pattern_mask(kind, 23, block=5, summary=2)) == expected


@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("frames", [1, 2, 31, 33, 100])
def test_no_query_is_left_without_a_key(kind, frames):
    assert pattern_mask(kind, frames, block=32, summary=8).any(1).all()


def pair(**options):
    torch.manual_seed(0)
    masked = build_encoder("sparseformer", **OPTIONS, **options).eval()
    gather = build_encoder("sparseformer", **OPTIONS, **options, backend="gather").eval()
    gather.load_state_dict(masked.state_dict())
    return masked, gather


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 31, 32, 33, 500])
def test_gather_equals_masked(frames):
    masked, gather = pair(block=32, summary=8)
    x = torch.randn(3, frames, 32)
    valid = torch.arange(frames) < torch.tensor([frames, (frames + 1) // 2, 1])[:, None]
    for one, other in zip(masked(x), gather(x), strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
    for one, other in zip(masked(x, valid), gather(x, valid), strict=True):
        assert torch.isfinite(one).all() and torch.isfinite(other).all()
        torch.testing.assert_close(other[valid], one[valid], atol=1e-5, rtol=0)


def test_gather_drops_the_work():
    index, allowed = fixed_gather(500, block=32, summary=8)
    assert index.shape == (16, 32 + 16 * 8) and allowed.shape == index.shape
    mask = pattern_mask("fixed", 500, block=32, summary=8)
    for block in range(16):
        assert set(index[block][allowed[block]].tolist()) == sets(mask)[block * 32]


@torch.no_grad()
@pytest.mark.parametrize("pattern", ["fixed", "strided", "local", "fairseq_compat"])
def test_a_key_outside_the_pattern_changes_nothing(pattern):
    torch.manual_seed(0)
    encoder = build_encoder("sparseformer", **{**OPTIONS, "layers": 1}, pattern=pattern, block=8, summary=2).eval()
    x = torch.randn(1, 40, 32)
    mask, before = pattern_mask(pattern, 40, block=8, summary=2), encoder(x)[-1]
    for key in (3, 17, 39):
        changed = x.clone()
        changed[0, key] += 1.0
        moved = (encoder(changed)[-1] - before)[0].abs().amax(-1)
        assert torch.equal(moved > 0, mask[:, key] | (torch.arange(40) == key))


@torch.no_grad()
def test_the_dense_pattern_is_a_transformer():
    sparse = build_encoder("sparseformer", **OPTIONS, pattern="dense").eval()
    transformer = build_encoder("transformer", **OPTIONS).eval()
    transformer.load_state_dict(sparse.state_dict())
    x = torch.randn(2, 50, 32)
    torch.testing.assert_close(sparse(x)[-1], transformer(x)[-1], atol=1e-5, rtol=0)


def test_gradients_follow_the_pattern():
    _, gather = pair(block=8, summary=2)
    one = build_encoder("sparseformer", **{**OPTIONS, "layers": 1}, block=8, summary=2, backend="gather").eval()
    x = torch.randn(1, 40, 32, requires_grad=True)
    one(x)[-1][0, 0].sum().backward()
    reached = x.grad[0].abs().amax(-1) > 0
    assert torch.equal(reached, pattern_mask("fixed", 40, block=8, summary=2)[0])
    gather(torch.randn(1, 40, 32))[-1].square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in gather.parameters())


@torch.no_grad()
def test_the_mask_is_kept_until_the_length_changes():
    encoder = build_encoder("sparseformer", **OPTIONS).eval()
    encoder(torch.randn(1, 40, 32))
    kept = encoder.mask
    encoder(torch.randn(2, 40, 32))
    assert encoder.mask is kept
    encoder(torch.randn(1, 41, 32))
    assert encoder.mask.shape == (41, 41) and "mask" not in encoder.state_dict()


def test_bad_patterns_are_refused():
    with pytest.raises(ValueError, match="must be one of dense, fixed"):
        build_encoder("sparseformer", **OPTIONS, pattern="spiral")
    with pytest.raises(ValueError, match="1 <= summary <= block"):
        build_encoder("sparseformer", **OPTIONS, block=4, summary=5)
    with pytest.raises(ValueError, match="fixed pattern only"):
        build_encoder("sparseformer", **OPTIONS, pattern="local", backend="gather")
    with pytest.raises(ValueError, match="backend must be one of"):
        build_encoder("sparseformer", **OPTIONS, backend="magic")
