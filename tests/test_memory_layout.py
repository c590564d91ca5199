"""Strides, alignment and frozen parameters of a model, given to another; what a file says of them is checked."""

import pytest
import torch
from torch import nn

from bitquant.memory_layout import align_, contiguous, lay_out_, layout


@pytest.mark.parametrize(
    "wrong",
    [
        {"strides": {"weight": [1, 1]}, "frozen": []},
        {"strides": {"weight": [1, 3, 1]}, "frozen": []},
        {"strides": {"weight": [1, -3]}, "frozen": []},
        {"strides": {"weight": [4.0, 1.0]}, "frozen": []},
        {"strides": {"weight": [1 << 62, 1 << 62]}, "frozen": []},
        {"strides": {"other": [4, 1]}, "frozen": []},
        {"strides": [], "frozen": []},
        {"strides": {}, "frozen": ["other"]},
        {"strides": {}, "frozen": [["weight"]]},
        {"strides": {}, "frozen": {}},
        {"strides": {}},
        [],
    ],
    ids=str,
)
def test_a_layout_of_another_model_is_refused(wrong):
    with pytest.raises(ValueError, match="layout|frozen") as error:
        lay_out_(nn.Linear(4, 3), wrong)
    assert "\n" not in str(error.value)


def test_layout():
    model = nn.Sequential(nn.Conv2d(4, 2, 3), nn.Conv2d(4, 2, 1)).to(memory_format=torch.channels_last)
    model[1].bias.requires_grad_(False)
    plain = nn.Sequential(nn.Conv2d(4, 2, 3), nn.Conv2d(4, 2, 1))
    lay_out_(plain, layout(model))
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert a.stride() == b.stride() and a.requires_grad == b.requires_grad


def test_what_torch_calls_contiguous_is_made_so():
    odd = torch.randn(2, 3, 1, 1).to(memory_format=torch.channels_last)
    assert odd.is_contiguous() and odd.stride() != (3, 1, 1, 1)
    assert contiguous(odd).stride() == (3, 1, 1, 1) and torch.equal(contiguous(odd), odd)
    usual = torch.randn(2, 1, 3)
    assert contiguous(usual) is usual


def test_parts_of_tensors_get_memory_of_their_own():
    whole, model = torch.randn(4, 8), nn.Linear(4, 4)
    model.weight.data, model.bias.data = whole[:, :4], whole[:1, 5:6].expand(1, 4)[0]
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    align_(model)
    assert model.weight.stride() == (4, 1) and model.bias.stride() == (1,)
    assert torch.equal(model.weight, weight) and torch.equal(model.bias, bias)
    kept = model.weight.data_ptr()
    align_(model)
    assert model.weight.data_ptr() == kept
