"""``sensitivity``: each layer binarized alone, against doing it by hand, and what it proposes."""

import copy

import pytest
import torch
from torch import nn

import bitquant
from bitquant.damage import Damage, Sensitivity, sensitivity
from bitquant.distillation.losses import output_loss


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.mark.parametrize("preset", ["bit-plus", "bit-ref"])
def test_as_by_hand(model, preset):
    batch, before = torch.randn(4, 7, 32), copy.deepcopy(model.state_dict())
    rows = {row.path: row for row in sensitivity(model, preset, [batch]).rows}
    assert set(rows) == {f"layers.{i}.{j}" for i in (0, 1) for j in (0, 2)}
    for path, row in rows.items():
        others = [other for other in rows if other != path]
        for bits, damage in ((1, row.damage), (8, row.damage_at_8)):
            config = bitquant.QuantConfig.preset(preset, modules_to_not_convert=others, activation_bits=bits)
            student = copy.deepcopy(model)
            bitquant.quantize_(student, config, batch)
            with torch.no_grad():
                expected = output_loss(student.eval()(batch), model(batch), None).item()
            assert damage == pytest.approx(expected, rel=1e-3) and damage > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rules_hold(model):
    config = bitquant.QuantConfig.preset("bit-plus", rules={"layers.0.0": None, "layers.1.0": {"activation_bits": 4}})
    rows = {row.path: row for row in sensitivity(model, config, [torch.randn(4, 7, 32)]).rows}
    assert "layers.0.0" not in rows and len(rows) == 3
    assert rows["layers.1.0"].damage < rows["layers.1.2"].damage


def test_proposal():
    rows = [
        Damage("a", "linear", 10, damage=0.9, damage_at_8=0.8),
        Damage("b", "linear", 10, damage=0.5, damage_at_8=0.1),
        Damage("c", "linear", 80, damage=0.8, damage_at_8=0.1),
        Damage("d", "embedding", 0, damage=0.9, damage_at_8=0.9),
        Damage("e", "attention", 5, damage=0.1, damage_at_8=0.0),
    ]
    ranking = Sensitivity(rows, 100)
    both = {"a": None, "b": {"activation_bits": 8}}
    for budget, expected in ((0.0, {}), (0.1, {"a": None}), (0.2, both), (0.25, {**both, "e": None})):
        ranking.propose(budget)
        assert ranking.rules == expected
    assert "8-bit inputs" in str(ranking)


def test_tables_at_8_bits():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(2)]
    model = nn.Sequential(nn.Embedding(30, 16), *layers, nn.Linear(16, 3)).eval()
    ranking = sensitivity(model, "bit-plus", [torch.randint(30, (4, 9))])
    table = next(row for row in ranking.rows if row.kind == "embedding")
    assert 0 < 100 * table.damage_at_8 < table.damage
    ranking.propose(1.0)
    assert table.proposal is None


def test_a_proposal_is_a_configuration(model):
    batch = torch.randn(4, 7, 32)
    ranking = sensitivity(model, "bit-plus", [batch])
    ranking.propose(0.5)
    assert len(ranking.rules) == 2
    bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", rules=ranking.rules), batch)
    kept = {row.path for row in bitquant.report(model).rows if not row.binarized}
    assert kept == set(ranking.rules)


def test_nothing_to_measure_on(model):
    with pytest.raises(ValueError, match="batches is empty"):
        sensitivity(model, "bit-plus", [])
