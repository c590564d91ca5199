"""Contract: the student in eval mode, its packed form and both reloaded give equal floats, whatever float layers, views
and memory stand between."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitquant
from bitquant import QuantConfig
from bitquant.memory_layout import ALIGNMENT, layout

X = torch.randn(3, 9, 24, generator=torch.Generator().manual_seed(1))
WAYS = {
    "transposed": lambda x: x.transpose(0, 1),
    "permuted back": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "expanded": lambda x: x[:1].expand(5, -1, -1),
    "every second": lambda x: x[:, ::2],
    "one row": lambda x: x[:1, :1],
    "one row, flat": lambda x: x[0, 0],
    "last steps": lambda x: x[:, -3:].transpose(0, 1),
    "four dimensions": lambda x: x.view(3, 3, 3, -1).permute(2, 0, 1, 3),
    "narrow": lambda x: x[..., 1:].roll(1, 0)[..., :-1].repeat(1, 1, 2)[..., : x.shape[-1]].transpose(0, 1),
}


class Mlp(nn.Module):
    def __init__(self, dim=24, wide=44):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(dim, wide), nn.GELU(), nn.Linear(wide, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        return self.norm(x + self.down(self.act(self.up(x))))


class Changed(nn.Module):
    """1-bit layers, then float ones on a view of what they gave."""

    def __init__(self, way, bias=True):
        super().__init__()
        self.way = way
        self.layers = nn.ModuleList(Mlp() for _ in range(2))
        self.scores, self.head = nn.Parameter(torch.randn(24, 24)), nn.Linear(24, 13, bias=bias)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        seen = self.way(x)
        return self.head(seen), F.linear(seen, self.head.weight).tanh(), (seen.float() @ self.head.weight.T).sin()


def call(model, inputs):
    with torch.no_grad():
        out = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]


def check(model, tmp_path, *inputs, config="bit-plus", more=(), prepare=lambda model: None):
    """Quantize ``model`` and compare all forms on its inputs and on ``more``; returns the packed one."""
    fresh = copy.deepcopy(model)
    inputs = inputs[0] if isinstance(inputs[0], dict) else inputs
    bitquant.quantize_(model, config, inputs)
    student = model.eval()
    prepare(student)
    packed = copy.deepcopy(student)
    bitquant.convert_(packed)
    for name, saved in (("student", student), ("packed", packed)):
        bitquant.save(saved, tmp_path / name)
    forms = {name: bitquant.load(tmp_path / name, model=fresh) for name in ("student", "packed")}
    forms["converted after loading"] = copy.deepcopy(forms["student"])
    bitquant.convert_(forms["converted after loading"])
    bitquant.save(forms["packed"], tmp_path / "again")
    forms["saved again"] = bitquant.load(tmp_path / "again", model=fresh)
    for given in (inputs, *more):
        expected = call(student, given)
        assert expected and all(bool(t.isfinite().all()) for t in expected if t.is_floating_point())
        for name, form in {"packed at once": packed, **forms}.items():
            got = call(form, given)
            assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True)), name
            assert all(a.stride() == b.stride() for a, b in zip(expected, got, strict=True)), name
    return packed


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_float_layers_on_views(way, tmp_path):
    torch.manual_seed(0)
    packed = check(Changed(WAYS[way]), tmp_path, X, more=[(X[:1],)] if way == "one row" else ())
    assert packed.head.weight.requires_grad  # torch rounds by it


@pytest.mark.parametrize(
    "config",
    ["bit-ref", QuantConfig(activation_bits=8), QuantConfig(activation_bits=32), QuantConfig(low_rank=2)],
    ids=str,
)
def test_float_layers_on_views_at_other_widths(config, tmp_path):
    torch.manual_seed(0)
    check(Changed(WAYS["transposed"]), tmp_path, X, config=config)


def test_frozen_parameters_stay_frozen(tmp_path):
    torch.manual_seed(0)
    model = Changed(WAYS["transposed"])
    model.head.requires_grad_(False)
    packed = check(model, tmp_path, X)
    assert not packed.head.weight.requires_grad and packed.layers[0].norm.weight.requires_grad


class Heads(nn.Module):
    """``nn.MultiheadAttention`` inside layers, and one that pools and stays float."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.attention = nn.ModuleList(nn.MultiheadAttention(24, 4, batch_first=batch_first) for _ in range(2))
        self.layers = nn.ModuleList(Mlp() for _ in range(2))
        self.pool, self.probe = nn.MultiheadAttention(24, 2, batch_first=True), nn.Parameter(torch.randn(1, 1, 24))
        self.batch_first = batch_first

    def forward(self, x, mask=None):
        for attention, layer in zip(self.attention, self.layers, strict=True):
            x = layer(x + attention(x, x, x, key_padding_mask=mask, need_weights=False)[0])
        x = x if self.batch_first else x.transpose(0, 1)
        return x, self.pool(self.probe.expand(len(x), -1, -1), x, x)[0]


@pytest.mark.parametrize("preset", ["bit-plus", "bit-ref"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention(batch_first, preset, tmp_path):
    torch.manual_seed(0)
    check(Heads(batch_first).eval(), tmp_path, X, config=preset, more=[(X[:1],), (X[:1, :1],)])


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.BatchNorm2d(8), nn.ReLU())
            for groups in (1, 8)
        )
        self.mix, self.last, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 1, 3, stride=2), nn.Conv2d(1, 4, (1, 3))

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(self.last(F.gelu(self.mix(x))))


@pytest.mark.parametrize("config", ["bit-plus", QuantConfig(activation_bits=32)], ids=str)
@pytest.mark.parametrize("when", ["never", "before", "after", "input"])
def test_channels_last(when, config, tmp_path):
    torch.manual_seed(0)
    model, x = Images().eval(), torch.randn(2, 3, 11, 11)
    last = {"memory_format": torch.channels_last}
    if when == "before":
        model = model.to(**last)
    after = (lambda student: student.to(**last)) if when == "after" else (lambda student: None)
    x = x.to(**last) if when == "input" else x
    packed = check(model, tmp_path, x, config=config, more=[(x[:1],)], prepare=after)
    weight = bitquant.load(tmp_path / "packed", model=Images()).stem.weight
    assert weight.stride() == packed.stem.weight.stride()
    assert weight.is_contiguous(memory_format=torch.channels_last) == (when in ("before", "after"))


def shifted(tensor, by):
    """The same values, ``by`` bytes behind an aligned address, in the middle of other memory."""
    store = torch.empty(tensor.nbytes + 2 * ALIGNMENT + by, dtype=torch.uint8)
    start = -store.data_ptr() % ALIGNMENT + by
    return store[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def test_weights_at_any_address(tmp_path):
    """As they are where a file is mapped to memory."""
    torch.manual_seed(0)
    model = Heads().eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.data = shifted(parameter.data, 4 + 4 * index % ALIGNMENT)
    values = copy.deepcopy(model.state_dict())
    packed = check(model, tmp_path, X, more=[(X[:1, :1],)])
    assert all(torch.equal(values[name], p) for name, p in packed.named_parameters() if name in values)
    for loaded in (packed, bitquant.load(tmp_path / "packed", model=Heads())):
        assert all(p.data_ptr() % ALIGNMENT == 0 for p in (*loaded.parameters(), *loaded.buffers()))


def test_tied_weights_are_moved_together(tmp_path):
    torch.manual_seed(0)
    model = Changed(WAYS["one row"])
    model.layers[1].norm.weight.data = model.layers[0].norm.weight.data = shifted(torch.rand(24), 8)
    check(model, tmp_path, X)
    first, second = (layer.norm.weight for layer in model.layers)
    assert first.data_ptr() == second.data_ptr() and first.data_ptr() % ALIGNMENT == 0


class Turned(nn.Module):
    """A buffer that is not saved, in other strides than a new one's."""

    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList(Mlp() for _ in range(2)), nn.Linear(24, 5)
        self.register_buffer("turn", torch.linspace(-1, 1, 24 * 24).view(24, 24).T, persistent=False)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.transpose(0, 1) @ self.turn)


def test_buffers_that_are_not_saved(tmp_path):
    torch.manual_seed(0)
    packed = check(Turned(), tmp_path, X)
    assert layout(packed)["strides"] == {} and not packed.turn.is_contiguous()


def applied(module, change=lambda x: x):
    """``module`` behind 1-bit layers, on a view of what they gave, in a model of its own."""

    class Applied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.module = nn.ModuleList(Mlp() for _ in range(2)), module

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.module(*change(x)) if isinstance(change(x), tuple) else self.module(change(x))

    return Applied()


FLOATS = {
    "lstm": lambda: applied(nn.LSTM(24, 10, batch_first=True, bidirectional=True)),
    "gru, time first": lambda: applied(nn.GRU(24, 10), lambda x: x.transpose(0, 1)),
    "rnn": lambda: applied(nn.RNN(24, 10), lambda x: x.transpose(0, 1)),
    "conv1d": lambda: applied(nn.Conv1d(24, 10, 3), lambda x: x.mT),
    "conv1d, one row": lambda: applied(nn.Conv1d(24, 10, 1), lambda x: x[:1, :1].mT),
    "conv2d": lambda: applied(
        nn.Conv2d(3, 10, 3), lambda x: x.transpose(0, 1).unflatten(-1, (4, 6)).transpose(1, 2)[:, :3]
    ),
    "depthwise": lambda: applied(
        nn.Conv2d(24, 24, 3, padding=1, groups=24), lambda x: x.unflatten(1, (3, 3)).movedim(-1, 1)
    ),
    "transposed conv": lambda: applied(nn.ConvTranspose1d(24, 10, 3, stride=2), lambda x: x.mT),
    "bilinear": lambda: applied(nn.Bilinear(24, 24, 7), lambda x: (x.transpose(0, 1), x.transpose(0, 1))),
    "group norm": lambda: applied(nn.GroupNorm(3, 24), lambda x: x.mT),
    "batch norm": lambda: applied(nn.BatchNorm1d(24), lambda x: x.mT),
    "layer norm": lambda: applied(nn.LayerNorm(9), lambda x: x.mT),
    "attention": lambda: applied(nn.MultiheadAttention(24, 2), lambda x: (x.transpose(0, 1),) * 3),
    "encoder layer": lambda: applied(nn.TransformerEncoderLayer(24, 2, 32), lambda x: x.transpose(0, 1)),
}


@pytest.mark.parametrize("name", FLOATS)
def test_float_layers_of_every_kind(name, tmp_path):
    torch.manual_seed(0)
    model = FLOATS[name]()
    packed = check(model.eval(), tmp_path, X)
    assert all(value.is_floating_point() for value in packed.module.state_dict().values() if value.ndim)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_float_inputs_of_a_packed_layer(grad, way):
    """At 32 bits the product itself is rounded."""
    torch.manual_seed(0)
    model = applied(nn.Linear(24, 13), WAYS[way])
    config = QuantConfig(activation_bits=32, rules={"module": {}})
    bitquant.quantize_(model, config, X)
    packed = copy.deepcopy(model.eval())
    bitquant.convert_(packed)
    with torch.set_grad_enabled(grad):
        assert torch.equal(packed(X), model(X))
