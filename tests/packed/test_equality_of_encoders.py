"""Student, packed and reloaded forms of real architectures give equal floats: pooled outputs, fused layers and more."""

import copy
import itertools

import pytest
import torch
from torch import nn

import bitquant

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IDS = {"input_ids": torch.arange(14).view(2, 7), "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}
PIXELS = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))}
WAVE = {"input_values": torch.randn(2, 2000, generator=torch.Generator().manual_seed(1))}
MODELS = {
    "siglip": ("SiglipVision", {**SIZES, "image_size": 32, "patch_size": 8}, PIXELS),
    "bert": ("Bert", {**SIZES, "vocab_size": 30}, IDS),
    "vit": ("ViT", {**SIZES, "image_size": 32, "patch_size": 8}, PIXELS),
    "convnext": ("ConvNext", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}, PIXELS),
    "hubert": (
        "Hubert",
        {**SIZES, "conv_dim": [16] * 3, "conv_stride": [5, 4, 4], "conv_kernel": [10, 8, 4],
         "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
        WAVE,
    ),
}  # fmt: skip


def built(name, **options):
    kind, sizes, inputs = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    return getattr(transformers, f"{kind}Model")._from_config(config, **options).eval(), inputs


def outputs(model, inputs):
    with torch.inference_mode():
        out = model(**inputs)
    return [t for t in (out.last_hidden_state, out.get("pooler_output")) if t is not None]


def forms(model, inputs, tmp_path, config="bit-plus"):
    bitquant.quantize_(model, config, inputs)
    packed = copy.deepcopy(model)
    bitquant.convert_(packed)
    for name, saved in (("student", model), ("packed", packed)):
        bitquant.save(saved, tmp_path / name)
    loaded = bitquant.load(tmp_path / "student")
    again = copy.deepcopy(loaded)
    bitquant.convert_(again)
    return [model.eval(), packed, loaded, again, bitquant.load(tmp_path / "packed")]


def assert_equal(models, inputs):
    found = [outputs(model, inputs) for model in models]
    for one, other in itertools.pairwise(found):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_encoders(name, tmp_path):
    model, inputs = built(name)
    models = forms(model, inputs, tmp_path)
    assert_equal(models, inputs)
    assert_equal(models, {key: value[:1] for key, value in inputs.items()})


def test_an_encoder_mapped_from_a_file(tmp_path):
    model, inputs = built("siglip")
    model.save_pretrained(tmp_path / "float")
    assert_equal(forms(transformers.SiglipVisionModel.from_pretrained(tmp_path / "float"), inputs, tmp_path), inputs)


def test_an_encoder_in_channels_last(tmp_path):
    model, inputs = built("convnext")
    model = model.to(memory_format=torch.channels_last)
    pixels = {"pixel_values": inputs["pixel_values"].to(memory_format=torch.channels_last)}
    models = forms(model, pixels, tmp_path)
    assert_equal(models, pixels)
    assert_equal(models, inputs)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_that_stays_float(attention, tmp_path):
    model, inputs = built("bert", attn_implementation=attention)
    config = bitquant.QuantConfig(rules={r"re:.*bit_attention.*": None})
    models = forms(model, inputs, tmp_path, config)
    assert {model.config._attn_implementation for model in models} == {attention}  # the two round apart
    assert_equal(models, inputs)


class Fused(nn.Module):
    def __init__(self, pool):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.pool = nn.MultiheadAttention(16, 2, batch_first=True) if pool else None

    def forward(self, x, mask=None):
        x = self.encoder(x, src_key_padding_mask=mask)
        return x if self.pool is None else self.pool(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("preset", ["bit-plus", "bit-ref"])
def test_the_fast_path_of_torch_switched_on(preset, tmp_path):
    torch.manual_seed(0)
    x, mask = torch.randn(2, 7, 16), torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 4:] = True
    for pool in (False, True):
        model = Fused(pool).eval()
        fresh = copy.deepcopy(model)
        bitquant.quantize_(model, preset, (x, mask))
        student, packed = model.eval(), copy.deepcopy(model)
        bitquant.convert_(packed)
        bitquant.save(packed, tmp_path / f"{pool}")
        bitquant.save(student, tmp_path / f"student-{pool}")
        loaded = [bitquant.load(tmp_path / name, model=fresh) for name in (f"{pool}", f"student-{pool}")]
        results = {}
        for switched in (False, True):
            torch.backends.mha.set_fastpath_enabled(switched)
            try:
                with torch.no_grad():
                    found = [[form(x), form(x, mask)] for form in (student, packed, *loaded)]
            finally:
                torch.backends.mha.set_fastpath_enabled(False)
            for one, other in itertools.pairwise(found):
                assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
            results[switched] = found[0]
        # what stays float may take it, and then rounds otherwise
        tolerance = {"rtol": 0, "atol": 1e-5 if pool else 0}
        assert all(torch.allclose(a, b, **tolerance) for a, b in zip(results[False], results[True], strict=True))
