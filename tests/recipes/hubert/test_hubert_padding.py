"""Padding never leaks: an utterance has the same features alone and behind it 7 s of noise that the mask takes out."""

import copy

import pytest
import torch
from torch import nn

import bitquant
from recipes.hubert import Hubert, load_config
from recipes.hubert.norms import BatchNorm, TimeNorm

KINDS = ["transformer", "conformer", "squeezeformer", "sparseformer"]
SHORT, LONG = 47_900, 160_000  # 149 frames, an odd number, and 499


# In fp64 nothing but a leak can be seen, so the layers may do a lot; in fp32 large weights would enlarge rounding.
PRECISIONS = [(torch.float32, 1.0, 1e-5), (torch.float64, 10.0, 1e-9)]


def build(kind, *, gain=1.0, dtype=torch.float32, **overrides):
    """A model of a tiny preset, its linear weights multiplied by ``gain``."""
    torch.manual_seed(0)
    model = Hubert(load_config(f"tiny_{kind}", **overrides))
    with torch.no_grad():
        for module in model.encoder.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(gain)
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def waves():
    """(short (1, 3 s), padded (2, 10 s), mask): the short one is the first of the padded batch."""
    generator = torch.Generator().manual_seed(1)
    padded = torch.randn(2, LONG, generator=generator)
    mask = torch.ones(2, LONG, dtype=torch.long)
    mask[0, SHORT:] = 0
    return padded[:1, :SHORT].clone(), padded, mask


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "gain", "atol"), PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_same_alone_and_padded(kind, dtype, gain, atol, waves):
    short, padded, mask = waves
    model = build(kind, gain=gain, dtype=dtype)
    alone, batch = model(short.to(dtype)), model(padded.to(dtype), mask)
    assert batch.valid.sum(1).tolist() == [149, 499]
    for one, other in zip(alone.hidden_states, batch.hidden_states, strict=True):
        torch.testing.assert_close(other[:1, :149], one, atol=atol, rtol=0)
    assert not batch.last_hidden_state[0, 149:].any()


@torch.no_grad()
@pytest.mark.parametrize("multiple", [2, 32])
def test_padding_to_a_multiple_inside_changes_nothing(multiple, waves):
    plain, padding = (build("conformer", sequence_multiple=m)(waves[0]).last_hidden_state for m in (1, multiple))
    torch.testing.assert_close(padding, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "gain", "atol"), PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_statistics_are_the_same(kind, dtype, gain, atol, waves):
    short, padded, mask = waves[0].to(dtype), waves[1].to(dtype), waves[2]
    alone, batch = (build(kind, gain=gain, dtype=dtype) for _ in range(2))
    outputs = []
    for model, call in ((alone, (short,)), (batch, (padded[:1], mask[:1]))):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "layer_drop"):
                module.layer_drop = 0.0
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        model.train()
        outputs.append(model(*call))
    torch.testing.assert_close(outputs[1].last_hidden_state[:, :149], outputs[0].last_hidden_state, atol=atol, rtol=0)
    norms = [[m for m in model.modules() if isinstance(m, BatchNorm)] for model in (alone, batch)]
    assert bool(norms[0]) == (kind in ("conformer", "squeezeformer"))
    for one, other in zip(*norms, strict=True):
        torch.testing.assert_close(other.running_mean, one.running_mean, atol=atol, rtol=0)
        torch.testing.assert_close(other.running_var, one.running_var, atol=atol, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_one_bit_models_see_the_same_integers(kind, waves):
    short, padded, mask = waves
    model = build(kind, gain=3.0)
    bitquant.quantize_(model, "bit-plus", {"input_values": padded, "attention_mask": mask})
    layers = [m for m in model.encoder.layers.modules() if hasattr(m, "input_quantizer")]
    levels = []
    for layer in layers:
        layer.input_quantizer.register_forward_hook(lambda _, args, out: levels[-1].append(out[0][0]))
    features = []
    for call in ((short,), (padded, mask)):
        for _ in range(2):  # the first call of a kind is traced
            levels.append([])
            output = model.eval()(*call)
        features.append(output.last_hidden_state[0, :149])
    levels = levels[1::2]
    assert len(levels[0]) == len(levels[1]) == len(layers)
    compared = 0
    for one, other in zip(*levels, strict=True):
        if one.shape[0] in (149, 75):  # the others are position tables, as long as the batch
            assert torch.equal(other[: one.shape[0]], one)
            compared += 1
    assert compared >= 0.8 * len(layers)
    torch.testing.assert_close(features[1], features[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_reference_norm_lets_padding_in_as_published(waves):
    short, padded, mask = waves
    model = build("transformer", groupnorm="reference")
    difference = model(padded, mask).last_hidden_state[:1, :149] - model(short).last_hidden_state
    assert difference.abs().max() > 1e-3


@torch.no_grad()
def test_an_utterance_too_short_for_a_frame_disturbs_nobody(waves):
    _, padded, mask = waves
    mask = mask.clone()
    mask[0, 300:] = 0
    model = build("squeezeformer", dtype=torch.float64)
    padded = padded.double()
    batch = model(padded, mask)
    assert batch.valid.sum(1).tolist() == [0, 499]
    assert all(torch.isfinite(state).all() for state in batch.hidden_states)
    torch.testing.assert_close(batch.last_hidden_state[1:], model(padded[1:]).last_hidden_state, atol=1e-5, rtol=0)


def test_norms_equal_their_originals_without_padding():
    torch.manual_seed(0)
    x = torch.randn(3, 6, 40) * 3 + 1
    ours, theirs = BatchNorm(6), nn.BatchNorm1d(6)
    valid = torch.ones(3, 40, dtype=torch.bool)
    torch.testing.assert_close(ours.train()(x, valid), theirs.train()(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x, valid), theirs.eval()(x))
    masked = TimeNorm(6, masked=True)
    torch.testing.assert_close(masked(x, torch.tensor([40, 40, 40])), masked(x))
    torch.testing.assert_close(masked(x), nn.GroupNorm(6, 6)(x))


def test_norms_compute_in_fp32_under_bfloat16():
    torch.manual_seed(0)
    model = build("conformer")
    x = torch.randn(1, 6, 40) * 100
    norm = TimeNorm(6, masked=True)
    expected = norm(x.bfloat16().float()).bfloat16()
    assert torch.equal(copy.deepcopy(norm).bfloat16()(x.bfloat16()), expected)
    half = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        out = half(torch.randn(1, 8000).bfloat16()).last_hidden_state
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()
