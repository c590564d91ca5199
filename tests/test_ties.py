"""Names of one weight: a property is no name, and a name that nothing calls is no user."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitquant


class Wrapper(nn.Module):
    """A layer inside another that shows its weight, as adapters do."""

    def __init__(self, size):
        super().__init__()
        self.base = nn.Linear(size, size)

    weight = property(lambda self: self.base.weight)

    def forward(self, x):
        return self.base(x)


def reasons(report):
    return {row.path: row.reason for row in report.rows}


def test_a_weight_property_is_no_tie():
    layers = (nn.Sequential(Wrapper(8), nn.ReLU(), Wrapper(8)) for _ in range(2))
    model, x = nn.Sequential(*layers), torch.randn(2, 5, 8)
    assert set(reasons(bitquant.report(model, x)).values()) == {None}
    bitquant.quantize_(model, None, x)
    expected = model.eval()(x)
    bitquant.convert_(model)
    assert torch.equal(model(x), expected)


class Words(nn.Module):
    """`shared` is a name of the token table that is never called, `head` a user that is called on demand."""

    def __init__(self, shared):
        super().__init__()
        self.shared = nn.Embedding(40, 8) if shared == "table" else nn.Linear(8, 40, bias=False)
        self.words = nn.Embedding(40, 8)
        self.words.weight = self.shared.weight
        blocks = (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2))
        self.layers = nn.ModuleList(blocks)

    def forward(self, ids, predict=False):
        x = self.words(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.shared(x) if predict else x


@pytest.mark.parametrize("shared", ["table", "head"])
def test_a_name_that_is_never_called_is_no_user(shared, tmp_path):
    torch.manual_seed(0)
    model, ids = Words(shared).eval(), torch.randint(40, (2, 6))
    original = copy.deepcopy(model)
    found = reasons(bitquant.report(model, ids))
    assert found["words"] is None and "shared" not in found
    bitquant.quantize_(model, None, ids)
    assert model.words.weight is model.shared.weight
    with torch.no_grad():
        expected = model(ids)
    bitquant.save(model, tmp_path / "student")
    student = bitquant.load(tmp_path / "student", model=original)
    assert student.words.weight is student.shared.weight and torch.equal(student(ids), expected)
    for packed in (model, student):
        bitquant.convert_(packed)
        assert torch.equal(packed(ids), expected)
        assert not any(name.startswith("shared") for name in packed.state_dict())  # no float copy remains
        with pytest.raises(RuntimeError, match="a weight that is packed to bits"):
            packed(ids, predict=True) if shared == "head" else packed.shared(ids)
    bitquant.save(model, tmp_path / "packed")
    assert torch.equal(bitquant.load(tmp_path / "packed", model=original)(ids), expected)


def test_a_user_that_stays_float_keeps_the_table_float():
    model, ids = Words("head").eval(), torch.randint(40, (2, 6))
    found = reasons(bitquant.report(model, {"ids": ids, "predict": True}))
    assert found["words"] == "tied to a layer that stays float" and found["shared"] == "task head"


def test_a_weight_that_is_read_stays_float():
    class Scored(Words):
        def forward(self, ids):
            return F.normalize(self.shared.weight).sum() + super().forward(ids)

    found = reasons(bitquant.report(Scored("table").eval(), torch.randint(40, (2, 6))))
    assert found["words"] == "tied to a layer that stays float"


def test_t5(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=60, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    model, ids = transformers.T5EncoderModel(config).eval(), {"input_ids": torch.randint(5, 60, (2, 9))}
    bitquant.quantize_(model, None, ids)
    assert reasons(bitquant.report(model))["encoder.embed_tokens"] is None
    with torch.no_grad():
        expected = model(**ids)[0]
    bitquant.convert_(model)
    assert not any(name.startswith("shared") for name in model.state_dict())
    bitquant.save(model, tmp_path / "packed")
    for packed in (model, bitquant.load(tmp_path / "packed")):
        assert torch.equal(packed(**ids)[0], expected)
