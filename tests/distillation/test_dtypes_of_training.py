"""Which dtypes are trained, and what autocast around ``distill`` does: nothing."""

import copy

import pytest
import torch
from test_quantize import Encoder

import bitquant
from bitquant.distillation.optimizer import parameter_groups

X = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))


def pair(dtype=torch.float32):
    torch.manual_seed(0)
    teacher = Encoder().eval().to(dtype)
    student = copy.deepcopy(teacher)
    bitquant.quantize_(student, None, X.to(dtype))
    return student, teacher


def test_float16_is_refused():
    student, teacher = pair(torch.float16)
    before = copy.deepcopy(student.state_dict())
    for refused in (
        lambda: bitquant.distill(student, teacher, [X.half()], steps=3, chain="w1a8,w1a1"),
        lambda: parameter_groups(student, lr=1e-3, scale_lr=1e-3, weight_decay=0.0),
    ):
        with pytest.raises(ValueError, match=r"stem\.weight is float16.*\.float\(\)"):
            refused()
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    for parameter in student.parameters():
        if parameter.dtype == torch.float16:
            parameter.requires_grad_(False)  # what is frozen may be what it is
    parameter_groups(student, lr=1e-3, scale_lr=1e-3, weight_decay=0.0)


def test_bfloat16_trains():
    student, teacher = pair(torch.bfloat16)
    losses = []
    bitquant.distill(student, teacher, [X.bfloat16()], steps=20, progress=lambda told: losses.append(told["loss"]))
    assert losses[-1] < losses[0] and all(p.abs().max() < 10 for p in student.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chain", [None, "w1a8,w1a1"])
def test_autocast_loses_nothing(chain, dtype):
    inside, teacher = pair()
    outside = copy.deepcopy(inside)
    bitquant.distill(outside, teacher, [X], steps=3, chain=chain)
    with torch.autocast("cpu", dtype):
        with torch.no_grad():
            inside(X)  # casts float weights without a gradient, and keeps the casts
        bitquant.distill(inside, teacher, [X], steps=3, chain=chain)
        assert torch.is_autocast_enabled("cpu")
    assert all(torch.equal(a, b) for a, b in zip(inside.parameters(), outside.parameters(), strict=True))
