"""Layers that hand on bits: the same floats at the end, and floats in between for whoever asks."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitquant
from bitquant import ops
from bitquant.packed import PackedLinear
from bitquant.packed.deferred import Deferred, defer

WHAT = "linear layer that hands on bits"


@pytest.fixture(autouse=True)
def small_outputs_too(monkeypatch):
    monkeypatch.setattr("bitquant.runtime.handover.LEAST", 0)


class Block(nn.Module):
    """``between`` is what happens to the output of the first of two linear layers."""

    def __init__(self, between, **options):
        super().__init__()
        self.first, self.second = nn.Linear(40, 70), nn.Linear(70, 24)
        self.drop, self.between, self.hidden = nn.Dropout(0.5), between, None

    def forward(self, x, **options):
        return self.second(self.drop(self.between(self, self.first(x), **options)))


def packed(between, *, preset="bit-ref", rules=None, **options):
    """A packed block with the trained quantizers of a layer, and the same one optimized."""
    torch.manual_seed(0)
    model = Block(between).eval()
    x = torch.randn(2, 9, 40)
    config = bitquant.QuantConfig.preset(preset, rules=rules or {})
    bitquant.quantize_(model, config, x, **options)
    bitquant.convert_(model)
    assert all(type(layer) is PackedLinear for layer in (model.first, model.second))
    with torch.no_grad():
        model.second.offset.normal_(0.1, 0.1)
    fast = copy.deepcopy(model)
    rows = bitquant.optimize_(fast, example_inputs=x)
    assert all(row.what == WHAT and row.reason is None for row in rows)
    return model, fast, [row.path for row in rows]


def keep(block, x):
    block.hidden = x
    return x.relu()


HANDED = {
    "nothing": lambda block, x: x,
    "relu": lambda block, x: F.relu(x),
    "twice": lambda block, x: F.relu(F.relu(x)),
    "in place": lambda block, x: F.relu(x, inplace=True),
    "module": lambda block, x: nn.ReLU()(x),
    "shape": lambda block, x: x.relu() if x.shape[-1] == 70 and x.dtype == torch.float32 else None,
}
READ = {
    "gelu": lambda block, x: F.gelu(x),
    "norm": lambda block, x: F.layer_norm(x, (70,)),
    "both": lambda block, x: x.relu() + x,
    "before": lambda block, x: x.relu() * x.mean(),
    "changed": lambda block, x: x.add_(1).relu(),
    "changed behind": lambda block, x: (x.relu(), x.mul_(-1))[1],
    "part": lambda block, x: torch.cat([x[..., :30], x[..., 30:].relu()], -1),
    "kept": keep,
}


@torch.no_grad()
@pytest.mark.parametrize("between", HANDED)
@pytest.mark.parametrize("preset", ["bit-ref", "bit-plus"])
def test_handed_on(between, preset):
    model, fast, paths = packed(HANDED[between], preset=preset)
    assert paths == ["first"]
    for shape in [(2, 9, 40), (1, 40), (40,), (0, 40), (3, 1, 2, 40)]:
        x = torch.randn(shape)
        out = fast(x)
        assert type(out) is torch.Tensor and torch.equal(out, model(x))
        with ops.use_backend("naive"):
            assert torch.equal(fast(x), out)
        with torch.inference_mode():
            assert torch.equal(fast(x), out)
    strided = torch.randn(40, 5).T
    assert torch.equal(fast(strided), model(strided))
    assert fast.first.defers_from == 0


@torch.no_grad()
@pytest.mark.parametrize("between", READ)
def test_what_others_read_is_computed(between):
    model, fast, paths = packed(READ[between])
    assert paths == []
    x = torch.randn(5, 40)
    assert torch.equal(fast(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize("change", [False, True])
def test_who_asks_later_gets_floats(change):
    def between(block, x, show=False):
        if show:
            block.hidden = x
            if change:
                x.sub_(0.5)
        return x.relu()

    model, fast, paths = packed(between)
    assert paths == ["first"]
    x = torch.randn(5, 40)
    assert torch.equal(fast(x, show=True), model(x, show=True))
    assert torch.equal(fast.hidden + 0, model.hidden) and torch.equal(model.hidden, fast.hidden)
    assert fast.first.defers_from is None  # asked for once, computed at once ever after
    assert type(fast.first(x)) is torch.Tensor
    assert defer(fast.first, x) is None  # as for another thread that saw it defer


def through_a_file(x):
    torch.save(x, file := io.BytesIO())
    file.seek(0)
    return torch.load(file)


OUTSIDE = {
    "numpy": lambda x: x.numpy(),
    "numpy of the cpu": lambda x: x.cpu().numpy(),
    "array": np.array,
    "numpy by dlpack": np.from_dlpack,
    "dlpack": torch.from_dlpack,
    "list": lambda x: x.tolist(),
    "copy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "file": through_a_file,
    "data": lambda x: x.data,
    "shared": lambda x: x.share_memory_(),
    "address": lambda x: x if x.data_ptr() else None,
    "storage": lambda x: torch.empty(0).set_(x.untyped_storage(), 0, x.shape),
    "shape in place": lambda x: (x.unsqueeze_(0), x.reshape(*x.shape[1:]))[1],
    "keyword": lambda x: torch.abs(input=x) * x.sign(),
    "gradient": lambda x: torch.func.grad(lambda w: (x * w).sum())(torch.ones(5, 70)),
    "compiled": torch.compile(lambda x: x * 1, backend="eager"),
}


@pytest.mark.parametrize("read", OUTSIDE)
def test_who_reads_without_an_operation_gets_floats(read):
    model, fast, _ = packed(HANDED["relu"])
    x = torch.randn(5, 40)
    with torch.no_grad():
        out = fast.first(x)
        assert type(out) is Deferred
        assert torch.equal(torch.as_tensor(OUTSIDE[read](out)), model.first(x))


@torch.no_grad()
def test_an_example_input_of_export_stays_what_it_is():
    model, fast, _ = packed(HANDED["relu"])
    x = torch.randn(5, 40)
    out = fast.first(x)
    torch.export.export(nn.ReLU(), (out,))
    assert torch.equal(out, model.first(x))


def test_a_forward_that_leaves_torch():
    """What is read while the model is looked at is read as ever."""
    model, fast, paths = packed(lambda block, x: torch.from_numpy(x.detach().cpu().numpy()))
    assert paths == []
    _, _, paths = packed(lambda block, x: torch.tensor(x.tolist()))
    assert paths == []


@torch.no_grad()
def test_weights_that_change_before_they_are_used():
    model, fast, _ = packed(HANDED["relu"])
    x = torch.randn(5, 40)
    out = fast.first(x)
    fast.first.lanes = torch.zeros_like(fast.first.lanes)
    assert torch.equal(out, model.first(x))
    fast.first.defers_from = 0
    out = fast.first(x)
    fast.first.bias.add_(1)
    with pytest.raises(RuntimeError, match="changed in place before its output was read"):
        out.sum()


def test_what_a_model_caches_can_be_trained_on():
    def between(block, x):
        if block.hidden is None:
            block.hidden = torch.ones(70)
        return x * block.hidden

    _, fast, _ = packed(between)
    fast.hidden = None
    bitquant.optimize_(fast, example_inputs=torch.randn(5, 40))
    assert not fast.hidden.is_inference()


@torch.no_grad()
def test_three_in_a_row():
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(64, 64), nn.ReLU()))).eval()
    x = torch.randn(7, 64)
    bitquant.quantize_(model, "bit-ref", x)
    bitquant.convert_(model)
    linears = [path for path, m in model.named_modules() if type(m) is PackedLinear]
    expected = model(x)
    assert [row.path for row in bitquant.optimize_(model, example_inputs=x)] == linears[:-1] and len(linears) > 2
    assert torch.equal(model(x), expected)


@torch.no_grad()
def test_a_wider_layer_behind_gets_floats():
    model, fast, paths = packed(HANDED["relu"], rules={"second": {"activation_bits": 4}})
    assert paths == []
    x = torch.randn(5, 40)
    assert torch.equal(fast(x), model(x))


def test_what_is_not_deferred():
    model, fast, _ = packed(HANDED["relu"])
    x = torch.randn(5, 40)
    with torch.no_grad():
        assert type(fast.first(x)) is Deferred
        assert type(fast.first(x.double())) is torch.Tensor
    assert type(fast.first(x.requires_grad_())) is torch.Tensor
    seen = []
    handle = fast.first.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        assert torch.equal(fast(x), model(x))
        assert torch.equal(seen[0], model.first(x)) and type(seen[0]) is torch.Tensor
    handle.remove()


@torch.no_grad()
def test_nan_is_refused():
    _, fast, _ = packed(HANDED["relu"])
    with pytest.raises(ValueError, match="NaN"):
        fast(torch.full((2, 40), torch.nan))
    fast.first.bias[3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        fast(torch.randn(2, 40))


@torch.no_grad()
def test_a_failing_run_leaves_the_model_as_it_was():
    _, fast, _ = packed(HANDED["relu"])
    with pytest.raises(ValueError, match="threshold must be"):
        bitquant.optimize_(fast, example_inputs=torch.randn(5, 41))
    assert fast.first.defers_from is None


@torch.no_grad()
@pytest.mark.parametrize(("preset", "count"), [("bit-ref", 2), ("bit-plus", 0)])
def test_feed_forward_modules_of_transformers(preset, count):
    """The ReLU of ``bit-ref`` lies between; the GELU of ``bit-plus`` reads floats."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes)).eval()
    inputs = {"input_ids": torch.randint(0, 50, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    bitquant.quantize_(model, preset, inputs)
    bitquant.convert_(model)
    expected = model(**inputs).last_hidden_state
    rows = bitquant.optimize_(model, example_inputs=inputs)
    assert [row.path for row in rows] == [f"encoder.layer.{i}.intermediate.dense" for i in range(count)]
    assert torch.equal(model(**inputs).last_hidden_state, expected)
    with torch.inference_mode():
        out = model(**inputs, output_hidden_states=True)
        assert torch.equal(out.last_hidden_state, expected)
        assert all(type(state) is torch.Tensor for state in out.hidden_states)
