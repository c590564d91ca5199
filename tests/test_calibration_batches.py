"""Calibration goes through batches of any kind, one in memory at a time."""

import weakref
from collections import UserDict

import pytest
import torch
from torch import nn

import bitquant
from bitquant.repeatable import repeatable


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(2))

    def forward(self, x, scale=1.0):
        for layer in self.layers:
            x = x + layer(x) * scale
        return x


def student(**config):
    torch.manual_seed(0)
    model = Net()
    bitquant.quantize_(model, {"name": "bit-plus", **config}, torch.randn(4, 16))
    return model


def data():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(64, 16, generator=generator) for _ in range(20)]


@pytest.mark.parametrize("config", [{}, {"low_rank": 4}])
def test_an_iterator_gives_what_a_list_gives_with_one_batch_in_memory(config):
    live, most = [], 0

    def batches():
        nonlocal most
        for x in data():
            batch = x.clone()
            del x
            live.append(weakref.ref(batch))
            most = max(most, sum(ref() is not None for ref in live))
            yield batch

    class Again:
        def __iter__(self):
            return batches()

    states = []
    for given in (data(), batches(), Again()):
        model = student(**config)
        bitquant.calibrate_(model, given)
        states.append(model.state_dict())
    assert most < 4
    for other in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(states[0].values(), other.values(), strict=True))


def test_nested_batches_are_read_back_as_they_were():
    shared = torch.randn(3, 4)
    given = [UserDict(x=shared.T, more=[shared, (1, "a", None)]), {"x": torch.ones(2, dtype=torch.bool), "scale": 2.0}]
    with repeatable(iter(given)) as again:
        first = list(again)
        second = list(again)
    assert first == given
    assert torch.equal(second[0]["x"], shared.T) and torch.equal(second[0]["more"][0], shared)
    assert second[0]["more"][1] == (1, "a", None) and second[1]["scale"] == 2.0 and second[1]["x"].dtype == torch.bool


def test_nothing_to_calibrate_on_is_refused():
    for config in ({}, {"low_rank": 4}):
        with pytest.raises(ValueError, match="batches is empty"):
            bitquant.calibrate_(student(**config), iter([]))
    with pytest.raises(ValueError, match="a batch is empty"):
        bitquant.calibrate_(student(), [torch.randn(0, 16)])
    model = Net()
    with pytest.raises(ValueError):
        bitquant.quantize_(model, None, torch.randn(0, 16))
    assert type(model.layers[0][0]) is nn.Linear
