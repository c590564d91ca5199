"""The same outputs as transformers' HubertModel on its own weights, and round trips through other names."""

import pytest
import torch

from recipes.hubert import Hubert, load_config
from recipes.hubert.interop import (
    config_from_transformers,
    config_to_transformers,
    export_state,
    foreign_names,
    from_transformers,
    import_state_,
    to_transformers,
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(directory, transformers' model): tiny, random, every tensor away from its neutral value."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, attn_implementation="eager"
    )
    model = transformers.HubertModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    directory = tmp_path_factory.mktemp("hf") / "hubert"
    model.save_pretrained(directory)
    return directory, model


def audio(batch, samples):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, samples, generator=generator)


@torch.no_grad()
def test_all_hidden_states_equal_transformers(reference):
    directory, theirs = reference
    ours = from_transformers(directory)
    wave = audio(2, 9000)
    expected = theirs(wave, output_hidden_states=True)
    got = ours(wave)
    assert len(got.hidden_states) == len(expected.hidden_states) == 4
    for mine, other in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)


@torch.no_grad()
def test_equal_with_padding_as_the_reference_norm_sees_it(reference):
    directory, theirs = reference
    wave, mask = audio(2, 9000), torch.ones(2, 9000, dtype=torch.long)
    wave[1, 5000:], mask[1, 5000:] = 0, 0
    expected = theirs(wave, attention_mask=mask, output_hidden_states=True)
    got = from_transformers(directory)(wave, mask)
    assert got.valid.sum(1).tolist() == [27, 15]
    for mine, other in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine[got.valid], other[got.valid], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("front_end", ["standard", "fastconv"])
def test_written_directory_loads_in_transformers(tmp_path, front_end):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    model = Hubert.from_preset("tiny_transformer", front_end=front_end, groupnorm="reference").eval()
    to_transformers(model, tmp_path / "out")
    theirs, info = transformers.HubertModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    wave = audio(1, 4000)
    expected = theirs.eval()(wave).last_hidden_state
    torch.testing.assert_close(model(wave).last_hidden_state, expected, atol=1e-5, rtol=0)
    again = from_transformers(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(FileExistsError):
        to_transformers(model, tmp_path / "out")


def test_fairseq_names():
    with torch.device("meta"):
        names = foreign_names(Hubert.from_preset("hubert_base"), "fairseq")
    assert names["front_end.convs.6.weight"] == "feature_extractor.conv_layers.6.0.weight"
    assert names["front_end.norm.bias"] == "feature_extractor.conv_layers.0.2.bias"
    assert names["feature_norm.weight"] == "layer_norm.weight"
    assert names["positional.conv.parametrizations.weight.original0"] == "encoder.pos_conv.0.weight_g"
    assert names["encoder.layers.11.attention.out_proj.bias"] == "encoder.layers.11.self_attn.out_proj.bias"
    assert names["encoder.layers.0.attention_norm.weight"] == "encoder.layers.0.self_attn_layer_norm.weight"
    assert len(set(names.values())) == len(names)


def test_fairseq_state_round_trip():
    torch.manual_seed(3)
    source, target = Hubert.from_preset("tiny_transformer"), Hubert.from_preset("tiny_transformer")
    state = export_state(source, "fairseq")
    heads = {"final_proj.weight": torch.zeros(256, 32), "label_embs_concat": torch.zeros(104, 256)}
    import_state_(target, {**state, **heads}, "fairseq")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_weight_norm_under_its_old_name():
    source, target = Hubert.from_preset("tiny_transformer"), Hubert.from_preset("tiny_transformer")
    state = {f"hubert.{name}": tensor for name, tensor in export_state(source, "transformers").items()}
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        base = "hubert.encoder.pos_conv_embed.conv."
        state[base + old] = state.pop(f"{base}parametrizations.weight.{new}")
    import_state_(target, state, "transformers")
    assert torch.equal(source.positional.conv.weight, target.positional.conv.weight)


def test_what_does_not_fit_is_refused():
    model = Hubert.from_preset("tiny_transformer")
    state = export_state(model, "fairseq")
    with pytest.raises(ValueError, match="lacks mask_emb"):
        import_state_(model, {k: v for k, v in state.items() if k != "mask_emb"}, "fairseq")
    with pytest.raises(ValueError, match="has unknown surprise"):
        import_state_(model, {**state, "surprise": torch.zeros(1)}, "fairseq")
    with pytest.raises(ValueError, match=r"mask_embedding is \(3,\) in the state_dict, not \(32,\)"):
        import_state_(model, {**state, "mask_emb": torch.zeros(3)}, "fairseq")
    with pytest.raises(ValueError, match="only HuBERT models with the Transformer encoder"):
        foreign_names(Hubert.from_preset("tiny_conformer"), "fairseq")
    with pytest.raises(ValueError, match="names must be one of"):
        foreign_names(model, "jax")


def test_configurations_translate_both_ways():
    config = load_config("hubert_base", groupnorm="reference")
    back = config_from_transformers(config_to_transformers(config))
    assert back == config
    assert config_from_transformers({"model_type": "hubert"}) == config  # every default of transformers
    with pytest.raises(ValueError, match="do_stable_layer_norm is True"):
        config_from_transformers({"model_type": "hubert", "do_stable_layer_norm": True})
    with pytest.raises(ValueError, match="not 'hubert'"):
        config_from_transformers({"model_type": "wav2vec2"})
