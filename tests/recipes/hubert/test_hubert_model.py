"""Shapes, positions, half-rate layers, masking and the pre-training loss."""

import math

import pytest
import torch

from recipes.hubert import Hubert, HubertForPretraining, HubertHead, load_config
from recipes.hubert.attention import SelfAttention
from recipes.hubert.encoders import ENCODERS, build_encoder
from recipes.hubert.masking import span_mask
from recipes.hubert.positions import PositionalConv, relative_table, rotary_table


@torch.no_grad()
@pytest.mark.parametrize("front_end", ["standard", "fastconv"])
@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (719, 1), (720, 2), (16_000, 49)])
def test_frames_of_a_waveform(front_end, samples, frames):
    out = Hubert.from_preset("tiny_transformer", front_end=front_end).eval()(torch.randn(1, samples))
    assert out.last_hidden_state.shape == (1, frames, 32)
    assert len(out.hidden_states) == 3 and out.valid is None


@torch.no_grad()
@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("frames", [1, 2, 7, 20])
def test_all_states_at_the_full_rate(kind, frames):
    config = load_config(f"tiny_{kind}").encoder
    states = build_encoder(**config).eval()(torch.randn(2, frames, 32))
    assert [tuple(s.shape) for s in states] == [(2, frames, 32)] * (config["layers"] + 1)
    assert all(torch.isfinite(s).all() for s in states)


def test_bad_input_is_refused():
    model = Hubert.from_preset("tiny_transformer")
    with pytest.raises(ValueError, match="at least 400 samples"):
        model(torch.randn(1, 399))
    with pytest.raises(ValueError, match="at least 400 samples"):
        model(torch.randn(16_000))
    with pytest.raises(ValueError, match="one value a sample"):
        model(torch.randn(1, 800), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"mask must be \(1, 2\)"):
        model(torch.randn(1, 800), mask=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="multiple of heads"):
        SelfAttention(10, 4)
    with pytest.raises(ValueError, match="16 groups"):
        PositionalConv(24)
    with pytest.raises(ValueError, match="odd kernel"):
        build_encoder("conformer", layers=1, dim=32, heads=4, ffn=8, kernel=30)
    with pytest.raises(ValueError, match="reduce_at < recover_at < layers"):
        build_encoder("squeezeformer", layers=4, dim=32, heads=4, ffn=8)


# positions


@torch.no_grad()
def test_relative_scores_by_their_definition():
    torch.manual_seed(0)
    attention, x = SelfAttention(16, 2, positions="relative"), torch.randn(1, 5, 16)
    query = attention.split(attention.q_proj(x))
    scores = attention.position_scores(query, relative_table(5, 16), None)
    for i in range(5):
        for j in range(5):
            offset = relative_table(5, 16)[4 - (i - j)]  # rows go from offset 4 to -4
            projected = attention.position_proj(offset).view(2, 8)
            expected = ((query[0, :, i] + attention.position_bias) * projected).sum(-1) / math.sqrt(8)
            torch.testing.assert_close(scores[0, :, i, j], expected)


@torch.no_grad()
def test_relative_table_is_sine_and_cosine_of_the_offset():
    table = relative_table(3, 4)
    assert table.shape == (5, 4)
    torch.testing.assert_close(table[0], torch.tensor([math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)]))
    torch.testing.assert_close(table[2], torch.tensor([0.0, 1.0, 0.0, 1.0]))


@torch.no_grad()
@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_attention_without_a_front_knows_distance_only(positions):
    """The same two frames further on in the sequence attend to each other as before."""
    torch.manual_seed(0)
    encoder = build_encoder("conformer", layers=1, dim=32, heads=4, ffn=32, kernel=1, positions=positions).eval()
    for layer in ("q_proj", "k_proj"):
        encoder.layers[0].attention.get_submodule(layer).weight.mul_(10)
    pair, keep = torch.randn(1, 2, 32), torch.zeros(1, 12, dtype=torch.bool)
    long = torch.zeros(1, 12, 32)
    long[:, 7:9], keep[:, 7:9] = pair, True
    torch.testing.assert_close(encoder(long, keep)[-1][:, 7:9], encoder(pair)[-1], atol=1e-5, rtol=0)
    apart, keep = torch.zeros(1, 12, 32), torch.zeros(1, 12, dtype=torch.bool)
    apart[:, [3, 8]], keep[:, [3, 8]] = pair, True
    assert (encoder(apart, keep)[-1][:, [3, 8]] - encoder(pair)[-1]).abs().max() > 1e-4


def test_rotary_turns_keep_lengths():
    cosine, sine = rotary_table(10, 8)
    torch.testing.assert_close(cosine.square() + sine.square(), torch.ones(10, 8))


@torch.no_grad()
def test_positional_convolution_is_the_published_one_without_its_extra_frame():
    torch.manual_seed(0)
    ours, x = PositionalConv(32), torch.randn(2, 50, 32)
    published = torch.nn.functional.conv1d(x.transpose(1, 2), ours.conv.weight, ours.conv.bias, padding=64, groups=16)
    torch.testing.assert_close(ours(x), torch.nn.functional.gelu(published[..., :-1]).transpose(1, 2))
    assert ours.conv.parametrizations.weight.original0.numel() == 128  # one gain a tap


# masking and loss


def test_masked_spans_are_valid_and_equally_many():
    generator = torch.Generator().manual_seed(0)
    lengths = [499, 300, 120]
    mask = span_mask(lengths, 499, generator=generator)
    assert mask.shape == (3, 499) and mask.dtype == torch.bool
    assert len({int(row.sum()) for row in mask}) == 1
    for row, length in zip(mask, lengths, strict=True):
        assert not row[length:].any() and not row[:length].all()


def test_share_of_masked_frames():
    generator = torch.Generator().manual_seed(0)
    share = torch.stack([span_mask([499], 499, generator=generator).double().mean() for _ in range(200)]).mean()
    assert abs(share.item() - 0.565) < 0.02  # hubert.md 1.4, batch of one
    share = torch.stack([span_mask([499] * 16, 499, generator=generator).double().mean() for _ in range(20)]).mean()
    assert abs(share.item() - 0.51) < 0.02  # batch of 16


def test_masking_is_reproducible_and_refuses_short_utterances():
    first, second = (span_mask([100], 100, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="too short to mask"):
        span_mask([10], 10)


@torch.no_grad()
def test_logits_are_cosines_over_the_temperature():
    torch.manual_seed(0)
    head, frames = HubertHead(16, 8, (5, 7)), torch.randn(3, 16)
    first, second = head(frames)
    assert first.shape == (3, 5) and second.shape == (3, 7)
    part = head.final_proj(frames)[:, 8:]
    expected = torch.nn.functional.cosine_similarity(part[:, None], head.label_embeddings[1][None], dim=-1) / 0.1
    torch.testing.assert_close(second, expected)


def test_loss_starts_near_chance_and_reaches_every_parameter():
    torch.manual_seed(0)
    model = HubertForPretraining.from_preset("tiny_conformer", classes=[10, 20]).train()
    wave = 0.1 * torch.randn(2, 16_000)
    attention_mask = torch.ones(2, 16_000, dtype=torch.long)
    attention_mask[1, 9_000:] = 0
    mask = span_mask([49, 27], 49, generator=torch.Generator().manual_seed(0))
    labels = tuple(torch.randint(k, (2, 49)) for k in (10, 20))
    out = model(wave, attention_mask, mask, labels)
    assert out.masked == 2 * mask.sum() and 0 <= out.correct <= out.masked
    entropy = (out.loss / out.masked - 10 * out.penalty).item()
    assert abs(entropy - (math.log(10) + math.log(20)) / 2) < 2.0
    out.loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_gradient_into_the_front_end_is_scaled():
    gradients = []
    for scale in (1.0, 0.1):
        torch.manual_seed(0)
        model = HubertForPretraining.from_preset("tiny_transformer", feature_grad_scale=scale).eval()
        mask = torch.zeros(1, 24, dtype=torch.bool)
        mask[:, 3:9] = True
        out = model(torch.randn(1, 8_000), None, mask, (torch.zeros(1, 24, dtype=torch.long),))
        (out.loss - 10 * out.penalty * out.masked).backward()  # the penalty's gradient is not scaled
        gradients.append(model.hubert.front_end.convs[0].weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0] * 0.1, rtol=1e-2, atol=1e-6)


def test_masked_prediction_needs_a_mask():
    model = HubertForPretraining.from_preset("tiny_transformer")
    with pytest.raises(ValueError, match="needs a mask and 1 label set"):
        model(torch.randn(1, 800), labels=(torch.zeros(1, 2, dtype=torch.long),))


def test_layer_drop_skips_layers_in_training_only():
    torch.manual_seed(0)
    encoder = build_encoder("transformer", layers=3, dim=32, heads=4, ffn=32, layer_drop=1.0)
    x = torch.randn(1, 5, 32)
    assert all(torch.equal(s, x) for s in encoder.train()(x))
    assert not torch.equal(encoder.eval()(x)[-1], x)
