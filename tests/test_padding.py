"""A padding mask reaches the sequence it was given with, and no other."""

import copy

import pytest
import torch
from torch import nn

import bitquant
from bitquant.distillation.hidden import hidden_states
from bitquant.distillation.losses import hidden_loss, output_loss
from bitquant.inputs import followed, run

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def clip():
    config = transformers.CLIPConfig(
        text_config={"vocab_size": 50, "max_position_embeddings": 30, "eos_token_id": 2, "bos_token_id": 1, **SMALL},
        vision_config={"image_size": 16, "patch_size": 4, **SMALL},
        projection_dim=8,
    )
    ids = torch.randint(5, 50, (2, 30))
    mask = torch.zeros_like(ids)
    mask[0, :8] = mask[1, :12] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(2, 3, 16, 16)}
    return transformers.CLIPModel(config).eval(), batch


def observed(model, batch, name, channels):
    student = copy.deepcopy(model)
    bitquant.quantize_(student, "bit-plus", batch)
    return student, student.get_submodule(name).input_quantizer.observed[1].item() / channels


def reached(model, batch, name):
    """How many tokens of a hidden state the loss reaches, and their places."""
    with hidden_states(model, [name]) as hidden, followed(batch) as padding, torch.no_grad():
        run(model, batch)
    leaf = {key: value.detach().clone().requires_grad_() for key, value in hidden.items()}
    target = {key: value + torch.randn_like(value) for key, value in hidden.items()}
    for key, value in target.items():
        if padding is not None:
            padding._known[value] = padding._known.get(hidden[key], True)
    hidden_loss(leaf, target, padding).backward()
    return (leaf[name].grad.abs().sum(-1) > 0).squeeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_a_caption_does_not_mask_its_picture():
    model, batch = clip()
    _, image = observed(model, batch, "vision_model.encoder.layers.0.mlp.fc1", 16)
    _, text = observed(model, batch, "text_model.encoder.layers.0.mlp.fc1", 16)
    assert image == 2 * 17 and text == 8 + 12
    assert int(reached(model, batch, "vision_model.encoder.layers.0").sum()) == 2 * 17
    assert int(reached(model, batch, "text_model.encoder.layers.0").sum()) == 8 + 12


def test_an_encoder_does_not_mask_its_decoder():
    model = transformers.BartModel(
        transformers.BartConfig(
            vocab_size=50,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=30,
        )
    ).eval()
    ids, mask = torch.randint(5, 50, (2, 20)), torch.ones(2, 20, dtype=torch.long)
    mask[:, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": torch.randint(5, 50, (2, 10))}
    for name, tokens in (("encoder.layers.0", 8), ("decoder.layers.0", 20)):
        assert observed(model, batch, f"{name}.fc1", 16)[1] == tokens
        assert int(reached(model, batch, name).sum()) == tokens
    batch["decoder_attention_mask"] = torch.ones(2, 10, dtype=torch.long)
    batch["decoder_attention_mask"][1, 3:] = 0
    assert observed(model, batch, "decoder.layers.0.fc1", 16)[1] == 13
    assert observed(model, batch, "encoder.layers.0.fc1", 16)[1] == 8


def test_padding_that_the_model_adds_is_padding():
    config = transformers.LongformerConfig(vocab_size=50, attention_window=8, max_position_embeddings=40, **SMALL)
    model = transformers.LongformerModel(config).eval()
    ids, mask = torch.randint(5, 50, (2, 13)), torch.ones(2, 13, dtype=torch.long)  # padded to 16 by the model
    mask[1, 6:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    assert observed(model, batch, "encoder.layer.0.intermediate.dense", 16)[1] == 13 + 6


def test_samples_mask_their_frames():
    config = transformers.HubertConfig(
        conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, num_feat_extract_layers=2, **SMALL,
    )  # fmt: skip
    model = transformers.HubertModel(config).eval()
    mask = torch.ones(2, 400, dtype=torch.long)
    mask[1, 200:] = 0
    batch = {"input_values": torch.randn(2, 400), "attention_mask": mask}
    frames = model(**batch).last_hidden_state.shape[1]
    places = reached(model, batch, "encoder.layers.0")
    assert places[0].all() and abs(int(places[1].sum()) - frames / 2) <= 1
    assert not places[1, int(places[1].sum()) :].any()


class TimeFirst(nn.Module):
    """(batch, time) ids -> layers on (time, batch, channels), as fairseq has it."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(2))

    def forward(self, input_ids, attention_mask=None):
        x = self.words(input_ids).transpose(0, 1)
        for layer in self.layers:
            x = x + layer(x)
        return x.transpose(0, 1)


@pytest.mark.parametrize("shape", [(2, 5), (5, 5), (5, 2), (3, 16)])
def test_time_first_is_recognised_whatever_the_sizes(shape):
    mask = torch.ones(shape, dtype=torch.long)
    mask[1, 1:] = 0
    batch = {"input_ids": torch.randint(20, shape), "attention_mask": mask}
    model = TimeFirst().eval()
    assert observed(model, batch, "layers.0.0", 16)[1] == int(mask.sum())
    assert torch.equal(reached(model, batch, "layers.1"), mask.T.bool())


def test_each_run_of_a_shared_layer_is_matched():
    config = transformers.AlbertConfig(vocab_size=50, embedding_size=8, max_position_embeddings=20, **SMALL)
    model = transformers.AlbertModel(config).eval()
    batch = {"input_ids": torch.randint(5, 50, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    name = "encoder.albert_layer_groups.0.albert_layers.0"
    with hidden_states(model, [name]) as states, torch.no_grad():
        run(model, batch)
    assert len(states) == 2 and len({value.sum().item() for value in states.values()}) == 2
    other = {key: value.clone() for key, value in states.items()}
    first = next(iter(other))
    other[first] = other[first] + 1  # wrong in the first run alone
    assert hidden_loss(other, dict(states), None) > 0


def test_what_no_rule_knows_is_not_masked():
    class Scattered(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

        def forward(self, input_ids, attention_mask=None):
            x = self.words(input_ids)
            return self.head(torch.fft.ifft(torch.fft.fft(x, dim=1), dim=1).real)

    mask = torch.tensor([[1, 1, 0, 0]])
    batch, model = {"input_ids": torch.randint(20, (1, 4)), "attention_mask": mask}, Scattered().eval()
    with followed(batch) as padding, torch.no_grad():
        out = run(model, batch)
    assert output_loss({"y": out + 1}, {"y": out}, padding) > 0
