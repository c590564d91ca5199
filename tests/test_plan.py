"""What is binarized and what stays float, with reasons from a closed list: before and after quantize_."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_quantize import Block
from torch import nn

import bitquant
from bitquant import plan
from bitquant.blocks import encoder_blocks


class Stack(nn.Module):
    """Layers in a row."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Words(nn.Module):
    """A small text encoder with tables of all sorts."""

    def __init__(self, table=nn.Embedding):
        super().__init__()
        self.words, self.pos, self.more = table(30, 16), nn.Embedding(40, 16), nn.Linear(16, 16)
        self.encoder = Stack(Block(16, 2), Block(16, 2))

    def forward(self, ids):
        return self.encoder(self.words(ids) + self.pos(torch.arange(ids.shape[1]).expand_as(ids)))


class Scaled(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * 4.0


class Looked(Words):
    def forward(self, ids):
        return self.encoder(F.embedding(ids, self.words.weight))


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv3d(2, 2, 3, padding=1), nn.Conv3d(2, 2, 3, padding=1)

    def forward(self, x):
        return self.b(self.a(x))


class Parameters(nn.Module):
    """Products with parameters: a functional convolution, and a part of a matrix."""

    def __init__(self):
        super().__init__()
        self.kernel, self.both = nn.Parameter(torch.randn(16, 16, 3)), nn.Parameter(torch.randn(32, 16))
        self.out = nn.Linear(16, 16)

    def forward(self, x):
        x = F.conv1d(x.mT, self.kernel, padding=1).mT
        return self.out(F.linear(x, self.both[:16]))


class Attends(nn.Module):
    """torch's attention and one linear layer."""

    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 16)

    def forward(self, x):
        return self.out(x + self.attention(x, x, x)[0])


def frames():
    torch.manual_seed(0)
    return torch.randn(2, 5, 16)


def ids():
    torch.manual_seed(0)
    return torch.randint(30, (2, 7))


def reasons(model):
    return {row.path: row.reason for row in bitquant.report(model).rows}


CASES = {
    "volumes": (lambda: Stack(Volumes(), Volumes()), lambda: torch.randn(1, 2, 4, 4, 4)),
    "parameters": (lambda: Stack(Parameters(), Parameters()), frames),
    "attention": (lambda: Stack(Attends(), Attends(), Attends()), frames),
    "words": (Words, ids),
    "scaled words": (lambda: Words(Scaled), ids),
    "looked up": (Looked, ids),
}


@pytest.mark.parametrize("name", CASES)
def test_the_report_of_a_float_model_is_what_quantize_does(name):
    make, inputs = CASES[name]
    torch.manual_seed(1)
    model, inputs = make().eval(), inputs()
    before = bitquant.report(model, inputs)
    bitquant.quantize_(model, None, inputs)
    after = bitquant.report(model)
    assert [(r.path, r.reason, r.weight_bits, r.activation_bits) for r in before.rows] == [
        (r.path, r.reason, r.weight_bits, r.activation_bits) for r in after.rows
    ]
    assert before.share_binarized == after.share_binarized
    assert {row.reason for row in after.rows} <= {None, *plan.REASONS}


def test_products_without_a_1_bit_form():
    model = Stack(Volumes(), Volumes())
    report = bitquant.report(model, torch.randn(1, 2, 4, 4, 4))
    assert {row.reason for row in report.rows} == {plan.UNSUPPORTED} and report.share_binarized == 0
    rows = {row.path: row.reason for row in bitquant.report(Stack(Parameters(), Parameters()), frames()).rows}
    assert rows["layers.1.bit_conv1d_fn_0"] and rows["layers.1.bit_linear_fn_0"] == plan.PARAMETER
    assert rows["layers.1.out"] is None


def test_layers_that_did_not_run_have_a_row():
    model = Words().eval()
    bitquant.quantize_(model, None, ids())
    (row,) = [row for row in bitquant.report(model).rows if row.path == "more"]
    assert (row.reason, row.macs, row.kind, row.weight_bits) == (plan.UNSEEN, 0, "linear", 32)
    # the layer inside torch's attention never runs: the product that reads its weight has the row
    attention = Stack(Attends(), Attends()).eval()
    bitquant.quantize_(attention, None, frames())
    assert not [path for path in reasons(attention) if path.endswith("out_proj")]


@pytest.mark.parametrize(("make", "path"), [(lambda: Words(Scaled), "words"), (Looked, "embedding_0")])
def test_every_table_has_a_row(make, path):
    rows = [row for row in bitquant.report(make().eval(), ids()).rows if row.kind == "embedding" and row.path != "pos"]
    (row,) = rows
    assert (row.path, row.reason) == (path, plan.UNREACHED) and row.note


def test_positions_are_known_by_what_they_do():
    model = Words().eval()
    bitquant.quantize_(model, None, ids())
    assert reasons(model)["pos"] == plan.POSITIONS and reasons(model)["words"] is None


def test_a_product_that_reads_a_tied_weight_counts_as_its_user():
    class Tied(Words):
        def forward(self, ids):
            return F.linear(super().forward(ids), self.words.weight)

    model = Tied().eval()
    bitquant.quantize_(model, None, ids())
    assert reasons(model)["words"] == plan.TIED and type(model.words) is nn.Embedding


def test_torch_attention_and_one_linear_layer_are_a_block():
    model = Stack(Attends(), Attends(), Attends()).eval()
    bitquant.quantize_(model, None, frames())
    assert model._bitquant.blocks == ["layers.0", "layers.1", "layers.2"]
    assert bitquant.report(model).share_binarized == 1.0


def conv(*channels):
    parts = [nn.Sequential(nn.Conv1d(a, b, 1), nn.ReLU()) for a, b in zip(channels, channels[1:], strict=False)]
    return nn.Sequential(*[part for pair in parts for part in pair])


def test_stem_and_head_of_a_sequential():
    layers = nn.Sequential(conv(16, 16, 16), conv(16, 16, 16))
    model = nn.Sequential(conv(1, 8, 16), layers, conv(16, 16, 3)).eval()
    bitquant.quantize_(model, None, torch.randn(2, 1, 12))
    assert model._bitquant.blocks == ["1.0", "1.1"]
    left = {path: reason for path, reason in reasons(model).items() if reason}
    assert left == {"0.0": plan.STEM, "0.2": plan.STEM, "2.0": plan.HEAD, "2.2": plan.HEAD}


def test_a_rule_with_its_very_name_binarizes_the_stem():
    make = lambda: nn.Sequential(nn.Linear(8, 16), Stack(Block(16, 2), Block(16, 2)), nn.Linear(16, 4))  # noqa: E731
    for rules, expected in (({"0": {}}, {"2": plan.HEAD}), ({"re:.*": {}}, {"0": plan.STEM, "2": plan.HEAD})):
        model = make()
        bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", rules=rules), torch.randn(2, 5, 8))
        assert {row.path: row.reason for row in bitquant.report(model).rows if row.reason} == expected


def test_a_projection_between_two_stacks_is_part_of_the_encoder():
    first, second = Stack(Block(16, 2), Block(16, 2)), Stack(Block(32, 2), Block(32, 2))
    model = nn.Sequential(nn.Linear(16, 16), first, nn.Linear(16, 32), second, nn.Linear(32, 2)).eval()
    bitquant.quantize_(model, None, frames())
    assert {path: reason for path, reason in reasons(model).items() if reason} == {"0": plan.STEM, "4": plan.HEAD}


def test_what_joins_two_layers_of_one_stack_stays_float():
    class Joined(Stack):
        def __init__(self):
            super().__init__(Block(16, 2), Block(16, 2))
            self.joint = nn.Linear(16, 16)

        def forward(self, x):
            return self.layers[1](self.joint(self.layers[0](x)))

    model = Joined().eval()
    bitquant.quantize_(model, None, frames())
    assert {path: reason for path, reason in reasons(model).items() if reason} == {"joint": plan.JOINT}


def test_a_list_of_one_layer():
    model = Stack(Block(16, 2))
    assert encoder_blocks(model, ["layers.0.qkv", "layers.0.out"]) == ["layers.0"]
    assert encoder_blocks(nn.Sequential(Block(16, 2)), ["0.qkv", "0.out"]) == []


def test_gpt2_has_no_stem():
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 30}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)
    model = transformers.GPT2Model(config).eval()
    bitquant.quantize_(model, None, {"input_ids": ids(), "use_cache": False})
    assert {path: reason for path, reason in reasons(model).items() if reason} == {"wpe": plan.POSITIONS}
    assert model._bitquant.blocks == ["h.0", "h.1"]


def test_depthwise_convolutions_in_float():
    def stack():
        convolutions = [nn.Conv1d(8, 8 * (1 + (groups == 8)), 3, padding=1, groups=groups) for groups in (1, 8)]
        return Stack(*(nn.Sequential(*copy.deepcopy(convolutions), nn.Conv1d(16, 8, 1)) for _ in range(2))).eval()

    x, depthwise = torch.randn(1, 8, 20), {"layers.0.1", "layers.1.1"}
    chosen = ({"depthwise": "float"}, {"rules": {"re:layers.*": {"depthwise": "float"}}}, {"depthwise": "binary"})
    for settings, kept in zip(chosen, (depthwise, depthwise, set()), strict=True):
        model = stack()
        bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", **settings), x)
        assert {row.path for row in bitquant.report(model).rows if row.note == plan.DEPTHWISE} == kept
        assert {path for path, reason in reasons(model).items() if reason is not None} == kept
        bitquant.convert_(model)
        assert {path for path in depthwise if type(model.get_submodule(path)) is nn.Conv1d} == kept
    with pytest.raises(ValueError, match="depthwise must be one of binary, float"):
        bitquant.QuantConfig.preset("bit-plus", depthwise="none")


@pytest.mark.parametrize("setting", ["rules", "modules_to_not_convert"])
@pytest.mark.parametrize("name", ["encoder.layers.0", "re:encoder\\.layers\\.0"])
def test_a_rule_holds_below_the_module_it_names(setting, name):
    model = Words().eval()
    rules = {setting: {name: None} if setting == "rules" else [name]}
    bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", **rules), ids())
    kept = {path for path, reason in reasons(model).items() if reason == plan.KEPT}
    assert kept == {path for path in reasons(model) if path.startswith("encoder.layers.0.")} and len(kept) == 5


@pytest.mark.parametrize("preset", ["bit-plus", "bit-ref"])
def test_a_rule_that_changes_nothing_is_an_error(preset):
    model = Words().eval()
    expected = copy.deepcopy(model)
    for rules in ({"modules_to_not_convert": ["encoder.layers.0.norm1"]}, {"rules": {"re:.*norm.*": None}}):
        with pytest.raises(ValueError, match="matches no layer.*near names: 'encoder"):
            bitquant.quantize_(model, bitquant.QuantConfig.preset(preset, **rules), ids())
    assert str(model) == str(expected)
