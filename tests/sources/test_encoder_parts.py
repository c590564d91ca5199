"""The encoder of a larger model, saved alone: its class is found by its name, not the whole model built."""

import json

import pytest
import torch

import bitquant
from bitquant.sources import load_source

transformers = pytest.importorskip("transformers")


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=50, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=20,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperModel(config).encoder, {"input_features": torch.randn(2, 8, 40)}


def moonshine():
    config = transformers.MoonshineConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, encoder_num_hidden_layers=1, decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2, decoder_num_attention_heads=2, encoder_num_key_value_heads=2,
        decoder_num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    return transformers.MoonshineModel(config).encoder, {"input_values": torch.randn(2, 4000)}


def bart():
    config = transformers.BartConfig(
        vocab_size=50, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=40,
    )  # fmt: skip
    return transformers.BartModel(config).encoder, {"input_ids": torch.randint(3, 50, (2, 8))}


@pytest.mark.parametrize("make", [whisper, moonshine, bart])
def test_saved_alone(make, tmp_path):
    torch.manual_seed(0)
    encoder, inputs = make()
    encoder.eval().save_pretrained(tmp_path / "float")
    source = load_source(tmp_path / "float")
    assert type(source.model) is type(encoder)
    with torch.no_grad():
        assert torch.equal(source.model(**inputs)[0], encoder(**inputs)[0])
    bitquant.quantize_(source.model, "bit-plus", inputs)
    bitquant.convert_(source.model)
    bitquant.save(source.model, tmp_path / "packed")
    packed = bitquant.load(tmp_path / "packed")
    assert isinstance(packed, type(encoder))
    assert torch.equal(packed(**inputs)[0], source.model(**inputs)[0])


@pytest.mark.parametrize("name", ["torch", "WhisperConfig", "nn.Module", "__builtins__", "ACT2FN", 3])
def test_other_names_of_that_module_are_no_models(name, tmp_path):
    encoder, _ = whisper()
    encoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
    with pytest.raises(ValueError, match="config.json|holds no weights"):
        load_source(tmp_path)
