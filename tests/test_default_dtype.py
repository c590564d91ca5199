"""Quantizer state is fp32 by name: the default dtype of torch changes nothing."""

import copy

import pytest
import torch
from torch import nn

import bitquant
from bitquant import QuantConfig


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.convs = nn.ModuleList(nn.Conv1d(16, 16, 3, padding=1) for _ in range(2))

    def forward(self, ids):
        x = self.layers(self.words(ids)).transpose(1, 2)
        for conv in self.convs:
            x = x + conv(x)
        return x


@pytest.fixture
def default(request):
    torch.manual_seed(0)
    model = Net().eval()
    torch.set_default_dtype(request.param)
    try:
        yield model
    finally:
        torch.set_default_dtype(torch.float32)


CONFIGS = ["bit-ref", "bit-plus", QuantConfig(activation_bits=4, embedding_bits=4), QuantConfig(low_rank=2)]


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16], ids=str, indirect=True)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_quantize_train_pack_and_load(default, config, tmp_path):
    model, ids = default, torch.arange(14).view(2, 7)
    fresh, teacher = copy.deepcopy(model), copy.deepcopy(model)
    bitquant.quantize_(model, config, ids)
    bitquant.distill(model, teacher, [ids], steps=2)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    packed = copy.deepcopy(model)
    bitquant.convert_(packed)
    floats = {t.dtype for t in (*packed.parameters(), *packed.buffers()) if t.is_floating_point()}
    assert torch.bfloat16 not in floats and (torch.float16 in floats) == (
        packed.layers.layers[0].linear1.float_path is not None
    )
    bitquant.save(packed, tmp_path / "packed")
    loaded = bitquant.load(tmp_path / "packed", model=fresh)
    torch.set_default_dtype(torch.float32)
    elsewhere = bitquant.load(tmp_path / "packed", model=fresh)
    with torch.no_grad():
        for form in (packed, loaded, elsewhere):
            assert torch.equal(form(ids), model(ids))
