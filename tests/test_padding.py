"""A mask goes with the sequence it was given with, wherever the model takes that, whatever the sizes."""

import copy

import pytest
import torch
from torch import nn

import bitquant
from bitquant.distillation.hidden import hidden_states
from bitquant.distillation.losses import hidden_loss, output_loss
from bitquant.inputs import followed, padding_mask

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SPEECH = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, **SMALL}

EVERYWHERE = {"name": "bit-plus", "rules": {name: {"activation_bits": 1} for name in ("last", "first", "flat")}}


def text(batch=3, time=20):
    """Rows of 6, 13 and all tokens; token 1 is the padding."""
    ids = torch.randint(5, 90, (batch, time))
    mask = torch.ones_like(ids)
    for row, length in enumerate((6, 13)):
        mask[row, length:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


def taps(model, paths, batch):
    """Hidden states and outputs of a forward, and the padding that it was followed with."""
    with torch.no_grad(), hidden_states(model.eval(), paths) as states, followed(batch) as padding:
        output = model(**batch)
    return states, output, padding


def valid_count(padding, x):
    """Valid tokens of states whose channels are last."""
    valid = padding.valid(x)
    return x[..., 0].numel() if valid is None else int(valid.expand(*x.shape[:-1], 1).sum())


def clip():
    torch.manual_seed(0)
    vision = {"image_size": 56, "patch_size": 8, **SMALL}
    config = transformers.CLIPConfig(
        text_config={"vocab_size": 100, "max_position_embeddings": 77, "eos_token_id": 2, **SMALL},
        vision_config=vision,
        projection_dim=16,
    )
    ids = torch.randint(5, 100, (2, 77))
    mask = torch.zeros_like(ids)
    mask[0, :8] = mask[1, :12] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(2, 3, 56, 56)}
    return transformers.CLIPModel(config).eval(), batch


def test_the_image_tower_is_not_masked_by_the_captions():
    model, batch = clip()
    student = copy.deepcopy(model)
    bitquant.quantize_(student, "bit-plus", batch)
    towers = {"vision_model": 100, "text_model": 20}
    for tower, tokens in towers.items():
        layer = getattr(student, tower).encoder.layers[0].mlp.fc1
        assert layer.input_quantizer.observed[1] == 32 * tokens
    states, _, padding = taps(model, [f"{tower}.encoder.layers.0" for tower in towers], batch)
    leaves = {name: state.detach().clone().requires_grad_() for name, state in states.items()}
    noisy = {name: state + torch.randn_like(state) for name, state in states.items()}
    for name, state in noisy.items():  # the teacher's own tensors are those whose padding is known
        states[name].copy_(state)
    hidden_loss(leaves, states, padding).backward()
    reached = [int((leaf.grad.abs().sum(-1) > 0).sum()) for leaf in leaves.values()]
    assert sorted(reached) == sorted(towers.values())


@pytest.mark.parametrize("time", [7, 20])  # with decoder inputs as long as the encoder's too
def test_a_decoder_has_its_own_mask_or_none(time):
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=100,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
    )
    model = transformers.BartForConditionalGeneration(config)
    batch = {**text(), "decoder_input_ids": torch.randint(5, 90, (3, time))}
    states, output, padding = taps(model, ["model.encoder.layers.0", "model.decoder.layers.0"], batch)
    encoder, decoder = states.values()
    assert valid_count(padding, encoder) == 39 and valid_count(padding, decoder) == 3 * time
    assert padding.valid(output.logits) is None
    own = torch.ones(3, time, dtype=torch.long)
    own[2, 4:] = 0
    states, output, padding = taps(model, list(states), {**batch, "decoder_attention_mask": own})
    assert valid_count(padding, states["model.encoder.layers.0"]) == 39
    assert valid_count(padding, output.logits) == int(own.sum())
    teacher = {"logits": output.logits}
    student = {"logits": torch.randn_like(output.logits).requires_grad_()}
    output_loss(student, teacher, padding).backward()
    assert torch.equal(student["logits"].grad.abs().sum(-1) > 0, own.bool())


def test_padding_that_the_model_adds_is_padding_too():
    config = transformers.LongformerConfig(
        vocab_size=100, attention_window=8, max_position_embeddings=64, pad_token_id=1, **SMALL
    )
    states, output, padding = taps(transformers.LongformerModel(config), ["encoder.layer.1"], text())
    (state,) = states.values()
    assert state.shape[1] == 24 and valid_count(padding, state) == 39
    assert output.last_hidden_state.shape[1] == 20 and valid_count(padding, output.last_hidden_state) == 39


def test_text_beside_image_tokens():
    config = transformers.ViltConfig(vocab_size=100, image_size=16, patch_size=8, **SMALL)
    batch = {**text(), "pixel_values": torch.randn(3, 3, 16, 16)}
    states, _, padding = taps(transformers.ViltModel(config), ["encoder.layer.1"], batch)
    (state,) = states.values()
    valid = padding.valid(state).squeeze(-1)
    assert torch.equal(valid[:, :20], batch["attention_mask"].bool()) and bool(valid[:, 20:].all())


@pytest.mark.parametrize("kind", ["Hubert", "Wav2Vec2", "WavLM", "SEW", "Wav2Vec2Conformer"])
def test_samples_are_valid_at_the_frames_made_of_them(kind):
    sizes = dict(SPEECH, squeeze_factor=2, conv_kernel=[10, 3, 3, 3, 3, 2, 2], conv_stride=[5, 2, 2, 2, 2, 2, 2])
    config = getattr(transformers, kind + "Config")(**(sizes if kind == "SEW" else SPEECH))
    mask = torch.ones(2, 8000, dtype=torch.long)
    mask[1, 4000:] = 0
    batch = {"input_values": torch.randn(2, 8000) * mask, "attention_mask": mask}
    states, output, padding = taps(getattr(transformers, kind + "Model")(config), ["encoder.layers.1"], batch)
    for state in (*states.values(), output.last_hidden_state):
        valid = padding.valid(state).squeeze(-1)
        half = state.shape[1] // 2
        assert bool(valid[0].all() and valid[1, :half].all()) and not bool(valid[1, half:].any())


class Layouts(nn.Module):
    """Channels last, channels first, time first and flat, all sizes alike."""

    def __init__(self, size):
        super().__init__()
        self.embed, self.last, self.flat = nn.Embedding(90, size), nn.Linear(size, size), nn.Linear(size, size)
        self.first = nn.Conv1d(size, size, 3, padding=1)
        self.time = nn.TransformerEncoderLayer(size, 1, size)

    def forward(self, input_ids, attention_mask):
        x = self.last(self.embed(input_ids))
        first = self.first(x.transpose(1, 2))
        time = self.time(first.permute(2, 0, 1), src_key_padding_mask=attention_mask == 0)
        return {"last": x, "first": first, "time": time, "flat": self.flat(time.flatten(0, 1))}


def test_any_layout_whatever_the_sizes():
    torch.manual_seed(0)
    size = 4
    ids, mask = torch.randint(5, 90, (size, size)), torch.ones(size, size, dtype=torch.long)
    mask[1, 2:] = mask[2, 3:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    model = Layouts(size)
    _, out, padding = taps(model, [], batch)
    valid = mask.bool()
    assert torch.equal(padding.valid(out["last"]), valid[:, :, None])
    assert torch.equal(padding.valid(out["first"]), valid[:, None, :])
    assert torch.equal(padding.valid(out["time"]), valid.T[:, :, None])
    assert torch.equal(padding.valid(out["flat"]), valid.T.reshape(-1, 1))
    bitquant.quantize_(model, EVERYWHERE, batch)
    for layer in (model.last, model.first, model.flat, model.time.linear1):
        assert layer.input_quantizer.observed[1] == size * int(mask.sum())


class Towers(nn.Module):
    """One encoder for two sequences."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(90, 16)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(2))

    def encode(self, input_ids, attention_mask):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=attention_mask == 0)
        return x

    def forward(self, query, passage):
        return {"query": self.encode(**query), "passage": self.encode(**passage)}


def test_both_runs_of_a_shared_encoder_are_matched():
    torch.manual_seed(0)
    query, passage = text(), text()
    passage["attention_mask"] = passage["attention_mask"].flip(0)
    batch = {"query": query, "passage": passage}
    model = Towers()
    states, out, padding = taps(model, ["layers.0", "layers.1"], batch)
    assert len(states) == 4
    for name, masked in (("query", query), ("passage", passage)):
        assert torch.equal(padding.valid(out[name]).squeeze(-1), masked["attention_mask"].bool())
    student = copy.deepcopy(model)
    bitquant.quantize_(student, "bit-plus", batch)
    bitquant.distill(student, model, [batch], steps=2)


def test_every_run_of_a_layer_is_matched():
    config = transformers.AlbertConfig(vocab_size=100, embedding_size=16, **{**SMALL, "num_hidden_layers": 3})
    model = transformers.AlbertModel(config)
    states, _, padding = taps(model, ["encoder.albert_layer_groups.0"], text())
    assert len(states) == 3 and {valid_count(padding, state) for state in states.values()} == {39}
    hidden = torch.stack(list(states.values()))
    assert not torch.equal(hidden[0], hidden[1]) and not torch.equal(hidden[1], hidden[2])


def test_masks_and_sequences_are_paired_by_name_and_shape():
    batch = text()
    x = batch["input_ids"]
    assert padding_mask({"input_ids": x}) is None and padding_mask(x) is None
    other, image = torch.randn(3, 20, 4), torch.randn(3, 20, 8, 8)
    masks = {"attention_mask": batch["attention_mask"], "attention_mask_b": torch.ones(3, 20).tril()}
    named = {"input_ids": x, "input_values_b": other, "pixel_values": image, **masks}
    padding = padding_mask(named)
    assert torch.equal(padding.valid(x), masks["attention_mask"].bool())
    assert torch.equal(padding.valid(other), masks["attention_mask_b"].bool()[..., None])
    assert padding.valid(image) is None
    square = torch.randn(3, 20, 20)  # either dimension may be time
    assert padding_mask({"features": square, "attention_mask": batch["attention_mask"]}).valid(square) is None
    assert padding.valid(torch.randn(3, 20)) is None  # of unknown origin


def test_left_padding_and_causal_convolutions():
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    x = torch.randn(2, 6, 3)
    with followed({"x": x, "attention_mask": mask}) as padding:
        causal = nn.Conv1d(3, 5, 3)(nn.functional.pad(x.transpose(1, 2), (2, 0)))
        even = nn.Conv1d(3, 5, 4, padding=2)(x.transpose(1, 2))[:, :, :6] + x.transpose(1, 2)[:, :1]
    valid = padding.valid(causal)[:, 0].expand(2, 6)
    assert bool(valid[mask.bool()].all()) and not bool(valid[0, :2].any())
    assert torch.equal(padding.valid(even)[:, 0], mask.bool())


def test_a_batch_of_padding_alone_leaves_scales_finite():
    model = Layouts(8)
    ids = torch.randint(5, 90, (2, 8))
    mask = torch.ones(2, 8, dtype=torch.long)
    bitquant.quantize_(model, EVERYWHERE, {"input_ids": ids, "attention_mask": mask})
    bitquant.calibrate_(model, [{"input_ids": ids, "attention_mask": mask * 0}])
    assert all(bool(p.isfinite().all()) for p in model.parameters()) and model.last.input_quantizer.alpha > 0
