"""The models through the library: coverage, distillation, packing, saving."""

import copy

import pytest
import torch

import bitquant
from recipes.hubert import Hubert, HubertConfig, load_config

KINDS = ["transformer", "conformer", "squeezeformer", "sparseformer"]
# the paper's five models at full width, with few layers
SHALLOW = {
    "vanilla_fastconv": {"layers": 1},
    "conformer_s_f3072": {"layers": 2},
    "squeezeformer_xs_f3072": {"layers": 3, "reduce_at": 1, "recover_at": 2},
    "sparseformer_dn": {"layers": 2},
    "sparseformer_sw": {"layers": 1},
}


def inputs(samples=16_000):
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, samples, dtype=torch.long)
    mask[1, samples // 2 :] = 0
    return {"input_values": 0.1 * torch.randn(2, samples, generator=generator), "attention_mask": mask}


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.hidden_states, second.hidden_states, strict=True))


@pytest.mark.parametrize("preset", ["bit-plus", "bit-ref"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_one_path(kind, preset, tmp_path):
    torch.manual_seed(0)
    teacher = Hubert.from_preset(f"tiny_{kind}").eval()
    student, batch = copy.deepcopy(teacher), inputs()
    bitquant.quantize_(student, preset, batch)
    losses = []
    bitquant.distill(student, teacher, [batch], steps=2, lr=1e-5, progress=lambda state: losses.append(state["loss"]))
    assert len(losses) == 2 and all(loss == loss for loss in losses)
    packed = copy.deepcopy(student)
    bitquant.convert_(packed)
    other = {"input_values": batch["input_values"][:, :9_000]}
    with torch.no_grad():
        for call in (batch, other):
            assert equal(student.eval()(**call), packed(**call))
        bitquant.save(packed, tmp_path / "out")
        again = bitquant.load(tmp_path / "out", model=Hubert.from_preset(f"tiny_{kind}"))
        assert equal(again(**batch), packed(**batch))


@pytest.mark.parametrize("preset", SHALLOW)
def test_paper_models_have_the_papers_coverage(preset):
    torch.manual_seed(0)
    config = load_config(preset)
    config = HubertConfig.from_dict({**config.to_dict(), "encoder": {**config.encoder, **SHALLOW[preset]}})
    model, batch = Hubert(config).eval(), inputs(6_000)
    bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", depthwise="binary"), batch)
    report = bitquant.report(model)
    assert report.share_seen == 1.0
    for row in report.rows:
        inside = row.path.startswith("encoder.layers.")
        assert row.binarized == inside, (row.path, row.reason)
    kinds = {row.kind for row in report.rows if row.binarized}
    assert kinds == {"linear", "attention"} | ({"conv1d"} if "former_" in preset and "sparse" not in preset else set())
    packed = copy.deepcopy(model)
    bitquant.convert_(packed)
    with torch.no_grad():
        assert equal(model.eval()(**batch), packed(**batch))
    weights = [name for name, _ in packed.named_parameters() if name.startswith("encoder.layers.")]
    assert all(".norm" in name or "_norm." in name for name in weights), weights


@torch.no_grad()
def test_gathered_attention_binarizes_to_the_same_integers():
    """Masked and gathered sparse attention, given the same scales, are equal at 1 bit."""
    torch.manual_seed(0)
    config, batch = load_config("tiny_sparseformer"), inputs()
    gathering = HubertConfig.from_dict({**config.to_dict(), "encoder": {**config.encoder, "backend": "gather"}})
    masked, gather = Hubert(config).eval(), Hubert(gathering).eval()
    gather.load_state_dict(masked.state_dict())
    for model in (masked, gather):
        bitquant.quantize_(model, "bit-plus", batch)
    assert all(row.traced for row in bitquant.report(gather).rows)
    gather.load_state_dict(masked.state_dict())
    first, second = masked(**batch), gather(**batch)
    torch.testing.assert_close(second.last_hidden_state, first.last_hidden_state, atol=1e-5, rtol=0)
