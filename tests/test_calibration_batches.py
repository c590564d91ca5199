"""Calibration goes through its data with one batch in memory, twice where low-rank paths need it."""

import copy
import weakref

import torch
from torch import nn

import bitquant


def student(low_rank):
    torch.manual_seed(0)
    layers = (nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(2))
    model = nn.Sequential(*layers)
    bitquant.quantize_(model, {"name": "bit-plus", "low_rank": low_rank}, torch.randn(4, 7, 16))
    return model


def test_an_iterator_is_held_one_batch_at_a_time():
    live, most = [], 0

    def batches():
        nonlocal most
        for _ in range(30):
            batch = torch.randn(4, 7, 16)
            live.append(weakref.ref(batch))
            most = max(most, sum(ref() is not None for ref in live))
            yield batch

    bitquant.calibrate_(student(low_rank=2), batches())
    assert len(live) == 30 and most <= 2


def test_an_iterator_calibrates_as_a_list_does():
    first = student(low_rank=2)
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    data = [{"input": torch.randn(2, 5, 16)}, {"input": torch.randn(3, 4, 16)}]
    bitquant.calibrate_(first, data)
    bitquant.calibrate_(second, iter(data))
    bitquant.calibrate_(third, (batch for batch in data))
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value) and torch.equal(third.state_dict()[key], value), key
