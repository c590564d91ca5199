"""Every product that torch dispatches is counted, whatever the mode it runs in, and has a row in the report."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitquant
from bitquant.capture import discover
from bitquant.capture.macs import MacCounter, _is_uncounted

torch.manual_seed(0)
X, W, V = torch.randn(4, 7, 32), torch.randn(32, 32), torch.randn(32)
IDS = torch.randint(10, (4, 5))

PRODUCTS = {  # name: (function, multiply-accumulates)
    "linear": (lambda: F.linear(X, W), 28 * 32 * 32),
    "matmul": (lambda: X @ X.mT, 4 * 7 * 7 * 32),
    "mv": (lambda: W @ V, 32 * 32),
    "addmv": (lambda: torch.addmv(V, W, V), 32 * 32),
    "dot": (lambda: torch.dot(V, V), 32),
    "vdot": (lambda: torch.vdot(V, V), 32),
    "vecdot": (lambda: torch.linalg.vecdot(X, X), 28 * 32),
    "by-hand": (lambda: (X * V).sum(-1), 28 * 32),
    "cosine": (lambda: F.cosine_similarity(X, X, dim=-1), 28 * 32),
    "inner": (lambda: torch.inner(X, X), 28 * 28 * 32),
    "tensordot": (lambda: torch.tensordot(X, X, dims=([2], [2])), 28 * 28 * 32),
    "einsum": (lambda: torch.einsum("btd,btd->bt", X, X), 28 * 32),
    "baddbmm": (lambda: torch.baddbmm(torch.zeros(4, 7, 7), X, X.mT), 4 * 7 * 7 * 32),
    "addbmm": (lambda: torch.addbmm(torch.zeros(7, 7), X, X.mT), 4 * 7 * 7 * 32),
    "multi_dot": (lambda: torch.linalg.multi_dot([W, W, W]), 2 * 32**3),
    "sparse": (lambda: torch.sparse.mm(torch.eye(32).to_sparse(), W), 32 * 32),
    "bilinear": (lambda: F.bilinear(X, X, torch.randn(5, 32, 32)), 28 * 5 * 32 * 32),
    "conv1d": (lambda: F.conv1d(X, torch.randn(3, 7, 3), padding=1), 4 * 3 * 32 * 7 * 3),
    "conv_transpose1d": (lambda: F.conv_transpose1d(X, torch.randn(7, 5, 3)), 4 * 7 * 32 * 5 * 3),
    "conv_tbc": (lambda: torch.conv_tbc(X, torch.randn(3, 32, 8), torch.zeros(8), 1), 28 * 8 * 3 * 32),
    "cdist": (lambda: torch.cdist(X, X), 4 * 7 * 7 * 32),
    "cdist-large": (lambda: torch.cdist(torch.randn(30, 8), torch.randn(30, 8)), 30 * 30 * 8),
    "bag": (lambda: F.embedding_bag(IDS, torch.randn(10, 8)), 0),
    "weighted-bag": (
        lambda: F.embedding_bag(IDS, torch.randn(10, 8), per_sample_weights=torch.randn(4, 5), mode="sum"),
        20 * 8,
    ),
    "lstm": (lambda: nn.LSTM(32, 16)(X), 28 * 4 * 16 * (32 + 16)),
    "gru": (lambda: nn.GRU(32, 16, bidirectional=True)(X), 2 * 28 * 3 * 16 * (32 + 16)),
    "sdpa": (lambda: F.scaled_dot_product_attention(X, X, X), 2 * 4 * 7 * 7 * 32),
    "scaling": (lambda: (X * V).relu(), 0),
    "sum": (lambda: (X * 2.0).sum(-1), 0),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_counted_alike_in_every_mode(name, mode):
    function, macs = PRODUCTS[name]
    with mode(), MacCounter() as counter:
        function()
    assert counter.total == macs and not counter.uncounted


def test_tensors_made_in_inference_mode():
    with torch.inference_mode():
        x, w = X.clone(), W.clone()
    with torch.no_grad(), MacCounter() as counter:
        F.linear(x, w)
    assert counter.total == 28 * 32 * 32


class Call(nn.Module):
    """A layer before and after a function of the hidden states and, perhaps, a parameter."""

    def __init__(self, function, *shape):
        super().__init__()
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 32)
        self.weight = nn.Parameter(torch.randn(*shape)) if shape else None
        self.function = function

    def forward(self, x):
        x = self.first(x)
        return self.last(x) + self.function(x, self.weight).mean()


@pytest.mark.parametrize(
    ("kind", "function", "shape", "macs"),
    [
        ("bilinear", lambda x, w: F.bilinear(x, x, w), (5, 32, 32), 28 * 5 * 32 * 32),
        ("conv_tbc", lambda x, w: torch.conv_tbc(x, w, w.new_zeros(8)), (3, 32, 8), 2 * 7 * 8 * 3 * 32),
        ("vecdot", lambda x, w: torch.linalg.vecdot(x, x), (), 28 * 32),
        ("sum", lambda x, w: (x * w).sum(-1), (32,), 28 * 32),
        ("conv_transpose1d", lambda x, w: F.conv_transpose1d(x, w), (7, 5, 3), 4 * 7 * 32 * 5 * 3),
        ("cdist", lambda x, w: torch.cdist(x, x), (), 4 * 7 * 7 * 32),
        ("dot", lambda x, w: torch.dot(x.flatten(), x.flatten()), (), 28 * 32),
        ("embedding_bag", lambda x, w: F.embedding_bag(IDS, w), (10, 8), 0),
    ],
)
def test_every_product_has_a_row(kind, function, shape, macs):
    report = bitquant.report(Call(function, *shape), X)
    (row,) = [row for row in report.rows if row.role == "unknown"]
    assert kind in row.kind and row.macs == macs and kind in row.note and "no 1-bit counterpart" in row.note
    assert report.share_seen == 1.0 and report.total_macs == macs + 2 * 28 * 32 * 32


def test_layers_that_did_not_run_are_named():
    model = Call(lambda x, w: x)
    model.score, model.rnn, model.bag = nn.Bilinear(32, 32, 4), nn.LSTM(32, 32), nn.EmbeddingBag(10, 32)
    reasons = {row.path: row.reason for row in bitquant.report(model, X).rows}
    assert {reasons[path] for path in ("score", "rnn", "bag")} == {"not run by the example inputs"}


def test_layers_that_ran_in_their_own_way_are_not_called_unseen():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.score = nn.LSTM(32, 32), nn.Bilinear(32, 32, 4)

        def forward(self, x):
            x, _ = self.rnn(x)
            return self.score(x, x)

    discovery = discover(Tagger(), X)
    assert not discovery.never_called and {site.owner for site in discovery.sites} == {"rnn", "score"}


def test_an_operator_of_another_library_is_named():
    with torch.library._scoped_library("bitquant_test_macs", "FRAGMENT") as library:
        library.define("mix(Tensor x, Tensor w) -> Tensor")
        library.impl("mix", lambda x, w: x @ w, "CompositeExplicitAutograd")
        report = bitquant.report(Call(lambda x, w: torch.ops.bitquant_test_macs.mix(x, w), 32, 32), X)
    (row,) = [row for row in report.rows if row.role == "unknown"]
    assert "cannot be counted" in row.note and "but for 1 that cannot be counted" in str(report)


@pytest.mark.parametrize("name", ["_weight_int4pack_mm_for_cpu", "_native_multi_head_attention", "_cslt_sparse_mm"])
def test_packed_and_fused_operators_are_not_taken_for_nothing(name):
    assert _is_uncounted(getattr(torch.ops.aten, name).default)


@pytest.mark.parametrize(
    "name", ["mm", "relu", "upsample_bilinear2d", "_thnn_fused_lstm_cell", "cummax", "native_layer_norm"]
)
def test_operators_without_products_are(name):
    assert not _is_uncounted(getattr(torch.ops.aten, name).default)


def test_a_pooling_is_no_head():
    class Pooled(nn.Module):
        def __init__(self, pool):
            super().__init__()
            self.stem, self.inner, self.head, self.pool = *(nn.Linear(32, 32) for _ in range(3)), pool

        def forward(self, x):
            x = self.head(self.inner(self.stem(x)))
            return (x * x[..., :1]).sum(1) if self.pool else x.mean(1)

    plain, pooled = (
        {row.path: row.reason for row in bitquant.report(Pooled(pool), X).rows if row.role == "weight"}
        for pool in (False, True)
    )
    assert plain == pooled == {"stem": "input stem", "inner": None, "head": "task head"}
