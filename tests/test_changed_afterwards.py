"""Edits of a model after quantize_ are followed, or refused with a sentence; the report lists what is so."""

import copy

import pytest
import torch
from torch import nn

import bitquant
from bitquant import plan


class Block(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 32), nn.Linear(32, dim)

    def forward(self, x):
        x = self.norm(x)
        return x + self.down(torch.nn.functional.gelu(self.up(x))) + (x @ x.mT).softmax(-1) @ x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(30, 16)
        self.layers, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(16, 5)

    def forward(self, ids):
        x = self.words(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


IDS = torch.randint(30, (2, 7), generator=torch.Generator().manual_seed(0))


def student(preset="bit-plus"):
    torch.manual_seed(0)
    teacher = Net().eval()
    model = copy.deepcopy(teacher)
    bitquant.quantize_(model, bitquant.QuantConfig.preset(preset, low_rank=2), IDS)
    return model, teacher


@pytest.mark.parametrize("preset", ["bit-plus", "bit-ref"])  # the latter replaces GELU
def test_removed_layers(preset, tmp_path):
    model, teacher = student(preset)
    before = bitquant.report(model)
    for each in (model, teacher):
        each.layers = each.layers[:2]
    after = bitquant.report(model)
    gone = {row.path for row in before.rows} - {row.path for row in after.rows}
    assert gone and all(path.startswith("layers.2.") for path in gone)
    assert sum(row.macs for row in after.rows) == after.total_macs < before.total_macs
    bitquant.distill(model, teacher, [IDS], steps=2)
    shorter = Net()
    shorter.layers = shorter.layers[:2]
    for stage in ("student", "packed"):
        with torch.no_grad():
            expected = model(IDS)
        bitquant.save(model, tmp_path / stage)
        loaded = bitquant.load(tmp_path / stage, model=shorter)
        assert torch.equal(loaded(IDS), expected)
        assert [row.path for row in bitquant.report(loaded).rows] == [row.path for row in after.rows]
        if stage == "student":
            bitquant.convert_(model)


def test_a_teacher_that_lacks_a_layer():
    model, teacher = student()
    teacher.layers = teacher.layers[:2]
    with pytest.raises(ValueError, match="the teacher has no layers.2"):
        bitquant.distill(model, teacher, [IDS], steps=1)


def test_a_layer_put_back():
    model, _ = student()
    model.layers[1].up = nn.Linear(16, 32)
    report = bitquant.report(model)
    rows = {row.path: row for row in report.rows}
    row = rows["layers.1.up"]
    assert row.reason == plan.CHANGED and not row.binarized and (row.weight_bits, row.activation_bits) == (32, 32)
    assert "layers.1.up.float_path" not in rows and rows["layers.0.up"].binarized
    assert sum(row.macs for row in report.rows) == report.total_macs
    with torch.no_grad():
        expected = model(IDS)
    bitquant.convert_(model)
    assert torch.equal(model(IDS), expected)
    assert {row.path: row.reason for row in bitquant.report(model).rows}["layers.1.up"] == plan.CHANGED


def test_a_whole_block_put_back():
    model, teacher = student()
    model.layers[1] = copy.deepcopy(teacher.layers[1])
    rows = {row.path: row for row in bitquant.report(model).rows if row.path.startswith("layers.1.")}
    assert set(rows) == {"layers.1.up", "layers.1.down", "layers.1.bit_attention_0"}
    assert {row.reason for row in rows.values()} == {plan.CHANGED}


def test_a_resized_table():
    model, _ = student()
    model.words.weight = nn.Parameter(torch.randn(40, 16))
    for act in (lambda: model(IDS), lambda: bitquant.convert_(model)):
        with pytest.raises(ValueError, match="a weight of 40 rows has 30 scales: resize it in the float model, before"):
            act()


def test_resized_token_embeddings():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model, ids = transformers.BertModel(config).eval(), {"input_ids": IDS}
    bitquant.quantize_(model, None, ids)
    model.resize_token_embeddings(50)
    with pytest.raises(ValueError, match="50 rows has 40 scales"):
        model(**ids)
