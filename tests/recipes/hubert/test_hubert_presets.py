"""Presets: parameter counts of hubert.md section 9, and configurations that are refused."""

import pytest
import torch

from recipes.hubert import HubertConfig, HubertForPretraining, load_config, presets
from recipes.hubert.encoders import ENCODERS, build_encoder

COUNTS = {  # hubert.md 9; without class embeddings
    "hubert_base": 94_568_576,
    "vanilla_fastconv": 92_212_096,
    "conformer_s_f3072": 32_967_760,
    "conformer_s": 9_884_752,
    "squeezeformer_xs_f3072": 33_010_384,
    "squeezeformer_xs": 10_530_752,
    "sparseformer_dn": 15_203_712,
    "sparseformer_sw": 29_294_720,
}


def count(config):
    with torch.device("meta"):
        model = HubertForPretraining(config)
    return sum(p.numel() for name, p in model.named_parameters() if "label_embeddings" not in name)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count(name):
    assert count(load_config(name)) == COUNTS[name]


def test_squeezeformer_with_the_positional_convolution():
    assert count(load_config("squeezeformer_xs", positional_conv=True)) == 10_696_912


def test_relative_positions_add_their_projection_and_two_biases():
    config = load_config("conformer_s")
    relative = HubertConfig.from_dict({**config.to_dict(), "encoder": {**config.encoder, "positions": "relative"}})
    assert count(relative) - count(config) == 16 * 21_024  # D^2 + 2D a layer (hubert.md 3.3)


def test_every_preset_is_listed_and_round_trips():
    tiny = {f"tiny_{kind}" for kind in ENCODERS}
    assert set(presets()) == set(COUNTS) | tiny
    for name in presets():
        config = load_config(name)
        assert HubertConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"front_end": "mel"}, "front_end must be one of"),
        ({"groupnorm": "none"}, "groupnorm must be one of"),
        ({"encoder": {"kind": "transformer"}}, "lacks dim"),
        ({"sequence_multiple": 0}, "at least 1"),
        ({"width": 3}, "unknown configuration field 'width'"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        load_config("tiny_transformer", **change)


def test_unknown_names_list_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="no preset 'hubert_huge'; presets: .*hubert_base"):
        load_config("hubert_huge")
    (tmp_path / "broken.toml").write_text("front_end = ")
    with pytest.raises(ValueError, match="not valid TOML"):
        load_config(tmp_path / "broken.toml")
    with pytest.raises(ValueError, match="no encoder 'rnn'; encoders: transformer"):
        build_encoder("rnn")
    with pytest.raises(ValueError, match="no option 'width'; options: layers"):
        build_encoder("transformer", width=3)
