"""Forwards that are hard to trace: each equals the original, by its graph or by the fall-back."""

import copy
import math
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from identity import call, difference, gradient_difference, gradients, rewrite_
from torch import nn
from torch.utils.checkpoint import checkpoint

from bitquant.capture import owners

MODELS, FX, FALL_BACK, EITHER = {}, "fx", "fall-back", None


def awkward(path):
    """Register a forward(self, x, mask) of a module with projections q, k, v and the path it is expected to take."""

    def register(forward):
        MODELS[forward.__name__] = (forward, path)
        return forward

    return register


class Attention(nn.Module):
    def __init__(self, forward, width=8):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.table = nn.Parameter(torch.randn(width, width))
        self.register_buffer("count", torch.zeros(()))
        self.log, self.last, self.calls = [], None, 0
        self.drop, self.width = nn.Dropout(0.0), width
        self.as_written = forward

    def forward(self, x, mask=None):
        return self.as_written(self, x, mask)


def softmax_attention(self, x):
    q, k, v = self.q(x), self.k(x), self.v(x)
    return (q @ k.transpose(-2, -1) / math.sqrt(self.width)).softmax(-1) @ v


@awkward(EITHER)
def isinstance_of_tensor(self, x, mask):
    scores = self.q(x) @ self.k(x).mT
    if isinstance(mask, torch.Tensor):
        scores = scores.masked_fill(~mask[:, None], -1e9)
    return scores.softmax(-1) @ self.v(x)


@awkward(FALL_BACK)
def keeps_a_result(self, x, mask):
    self.last = self.q(x)
    return self.last @ self.k(x).mT


@awkward(FALL_BACK)
def appends_to_a_list(self, x, mask):
    out = softmax_attention(self, x)
    self.log.append(out.shape[0])
    return out


@awkward(FX)
def counts_in_a_buffer(self, x, mask):
    self.count += 1
    return softmax_attention(self, x) * self.count


@awkward(FALL_BACK)
def counts_in_an_int(self, x, mask):
    self.calls += 1
    return softmax_attention(self, x) * self.calls


@awkward(FALL_BACK)
def no_grad_inside(self, x, mask):
    with torch.no_grad():
        keys = self.k(x) @ self.table
    return self.q(x) @ keys.mT


@awkward(FALL_BACK)
def autocast_inside(self, x, mask):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = softmax_attention(self, x)
    return out.float()


@awkward(FX)
def detaches(self, x, mask):
    return self.q(x) @ self.k(x).detach().mT


@awkward(EITHER)
def numpy_on_a_size(self, x, mask):
    scale = float(np.sqrt(np.float64(x.shape[1])))
    return (self.q(x) @ self.k(x).mT / scale) @ self.v(x)


@torch.jit.script
def scripted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.matmul(a, b) + 1


@awkward(FALL_BACK)
def scripted_function(self, x, mask):
    return scripted(self.q(x), self.k(x).mT) @ self.v(x)


@awkward(FALL_BACK)
def vmapped(self, x, mask):
    return torch.vmap(lambda a: a * 2)(self.q(x)) @ self.k(x).mT


@awkward(FALL_BACK)
def python_random(self, x, mask):
    return softmax_attention(self, x) * (1 + random.random() * 0)


@awkward(FX)
def integer_arithmetic(self, x, mask):
    length = x.shape[1]
    half = length // 2
    left, right = x[:, :half], x[:, half : 2 * half]
    return self.q(left) @ self.k(right).mT * (length - half) / max(length, 1)


@awkward(EITHER)
def loop_over_time(self, x, mask):
    return torch.stack([self.q(x[:, i]) @ self.table for i in range(x.size(1))], dim=1)


@awkward(EITHER)
def chunks_of_keys(self, x, mask):
    parts = [self.q(x[:, i : i + 3]) @ self.k(x).mT for i in range(0, x.size(1), 3)]
    return torch.cat(parts, dim=1).softmax(-1) @ self.v(x)


@awkward(EITHER)
def branch_on_values(self, x, mask):
    if mask is not None and not mask.all():
        x = x * mask[..., None]
    return softmax_attention(self, x)


@awkward(EITHER)
def item(self, x, mask):
    return softmax_attention(self, x) * (1 + x.abs().max().item() * 0)


class Double(torch.autograd.Function):
    """Twice the gradient of the identity: its backward must be kept."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


@awkward(FX)
def autograd_function(self, x, mask):
    return Double.apply(self.q(x)) @ self.k(x).mT


@awkward(EITHER)
def tensor_from_a_list(self, x, mask):
    return self.q(x) @ self.k(x).mT * torch.tensor([2.0]) + torch.Tensor([1.0])


@awkward(FALL_BACK)
def tensor_from_numpy(self, x, mask):
    return self.q(x) @ torch.from_numpy(np.eye(self.width, dtype=np.float32)).to(x.dtype)


@awkward(FX)
def in_place_on_scores(self, x, mask):
    scores = torch.bmm(self.q(x), self.k(x).transpose(1, 2))
    scores /= 2
    if mask is not None:
        scores.masked_fill_(~mask[:, None], float("-inf"))
    return torch.bmm(scores.softmax(dim=2), self.v(x))


@awkward(FX)
def in_place_and_returned(self, x, mask):
    scores = self.q(x) @ self.k(x).mT
    scores.mul_(0.5)
    weights = scores.softmax(-1)
    return weights @ self.v(x), scores, weights


@awkward(FX)
def in_place_on_the_input(self, x, mask):
    x = x.clone()
    x += 1
    x[:, 0] = 0
    return softmax_attention(self, x)


@awkward(FX)
def filled_zeros(self, x, mask):
    out = torch.zeros(x.shape[0], x.shape[1], x.shape[1], dtype=x.dtype)
    out[:, :, :] = self.q(x) @ self.k(x).mT
    return out.softmax(-1) @ self.v(x)


@awkward(FX)
def weights_masked_afterwards(self, x, mask):
    weights = (self.q(x) @ self.k(x).mT).softmax(-1)
    if mask is not None:
        weights = weights * mask[:, None]
    return weights @ self.v(x)


@awkward(FX)
def softmax_over_queries(self, x, mask):
    return (self.q(x) @ self.k(x).mT).softmax(1) @ self.v(x)


@awkward(FX)
def scores_used_twice(self, x, mask):
    scores = self.q(x) @ self.k(x).mT
    return (scores.softmax(-1) + scores.sigmoid()) @ self.v(x), scores.softmax(-1) @ self.q(x)


@awkward(FX)
def mask_then_scale(self, x, mask):
    scores = self.q(x) @ self.k(x).mT
    if mask is not None:
        scores = scores + (1.0 - mask[:, None].to(x.dtype)) * -1e4
    return (scores * 0.5).softmax(-1) @ self.v(x)


@awkward(FX)
def learned_scale(self, x, mask):
    scores = (self.q(x) @ self.k(x).mT) * self.table[0, 0].exp()
    return F.softmax(scores, -1, dtype=torch.float64).type_as(scores) @ self.v(x)


@awkward(FX)
def learned_bias(self, x, mask):
    scores = torch.baddbmm(self.table[:1, :1].expand(x.shape[0], 1, 1), self.q(x), self.k(x).mT, alpha=0.3)
    return scores.softmax(-1) @ self.v(x)


@awkward(FX)
def addmm(self, x, mask):
    return torch.addmm(self.table[0], self.q(x).flatten(0, 1), self.table).view_as(x)


@awkward(FX)
def linear_as_product(self, x, mask):
    return F.linear(self.q(x), self.table[:3], self.table[0, :3])


@awkward(FX)
def convolution(self, x, mask):
    weight = self.table[:, :, None] / self.table.norm()
    return F.conv1d(x.mT, weight=weight, padding=0).mT @ self.table


@awkward(FX)
def three_operand_einsum(self, x, mask):
    return torch.einsum("btc,cd,bsd->bts", x, self.table, self.k(x))


@awkward(FX)
def grouped_queries(self, x, mask):
    q, k, v = (p(x).unflatten(-1, (4, 2)).transpose(1, 2) for p in (self.q, self.k, self.v))
    return F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True)


@awkward(FX)
def causal(self, x, mask):
    q, k, v = (p(x)[:, None] for p in (self.q, self.k, self.v))
    keep = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return a + (q @ k.mT).masked_fill(~keep, -math.inf).softmax(-1) @ v


@awkward(FX)
def nested_outputs(self, x, mask):
    return {"out": [softmax_attention(self, x), None], "size": x.shape[0]}


@awkward(EITHER)
def checkpointed(self, x, mask):
    return checkpoint(lambda y: softmax_attention(self, y), x, use_reentrant=False)


@awkward(EITHER)
def closes_over_a_list(self, x, mask):
    parts = []
    for project in (self.q, self.k, self.v):
        parts.append(project(x))
    q, k, v = parts
    return sum(a @ b.mT for a, b in zip([q, k], [k, v], strict=True))


@awkward(EITHER)
def shape_as_a_key(self, x, mask):
    scale = {True: 2.0, False: 3.0}[x.shape[1] > 8]
    return softmax_attention(self, x) * scale


@awkward(EITHER)
def try_and_except(self, x, mask):
    try:
        return self.q(x) @ self.missing
    except AttributeError:
        return self.q(x) @ self.table


@awkward(EITHER)
def formatted(self, x, mask):
    if f"{x.dtype}" == "torch.int64" or str(x.shape[0]) == "nothing":
        return x
    return softmax_attention(self, x)


def _calls(dtype=torch.float32):
    torch.manual_seed(1)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 5:] = False
    second = torch.ones(3, 10, dtype=torch.bool)
    second[0, 8:] = False
    x = torch.randn(2, 7, 8, dtype=dtype), torch.randn(3, 10, 8, dtype=dtype), torch.randn(1, 5, 8, dtype=dtype)
    return [(x[0], mask), (x[1], second), (x[2],)]


@pytest.mark.parametrize("name", MODELS)
def test_awkward_forward(name):
    forward, path = MODELS[name]
    torch.manual_seed(0)
    model = Attention(forward)
    original = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rewrite_(model.eval(), _calls()[0])
        for training in (False, True):
            model.train(training), original.train(training)
            for inputs in (*_calls(), *_calls()):
                tolerance = 1e-2 if name == "autocast_inside" else 1e-5
                assert difference(call(model, inputs), call(original, inputs)) < tolerance
            assert torch.equal(model.count, original.count)
            assert (model.calls, len(model.log)) == (original.calls, len(original.log))
        record = owners(model)[""]
        assert path in (EITHER, record["path"]), record
        assert (record["reason"] is None) == (record["path"] == FX)
        if name not in ("autocast_inside", "tensor_from_a_list"):
            model.double(), original.double()
            for inputs in _calls(torch.float64):
                assert gradient_difference(gradients(model, inputs), gradients(original, inputs)) < 1e-5
