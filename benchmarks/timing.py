"""Times of several calls in one run, and what a user would run in place of a packed linear layer."""

import math
import random
import statistics
import time

import torch
from torch.nn.functional import linear


def median_times(calls, seconds, *, rounds=7, settle=False):
    """Median seconds of each call, taking turns for ``seconds`` and at least ``rounds``, after two that do not count.

    The turns are in random order: what ran just before decides what is left in the caches. With ``settle`` each turn
    calls twice and times the second: threads of another runtime spin for a while after its own turn.
    """
    order = random.Random(0)
    times = {name: [] for name in calls}
    done, end = -2, math.inf
    while done < rounds or time.perf_counter() < end:
        for name, call in order.sample(list(calls.items()), len(calls)):
            if settle:
                call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
        done += 1
        if done == 0:
            times = {name: [] for name in calls}
            end = time.perf_counter() + seconds
    return {name: statistics.median(t) for name, t in times.items()}


def geometric_mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


def bf16_layer(weight, bias):
    """x -> ``linear`` in bf16, fp32 in and out. weight (N, K), bias (N) or None."""
    weight, bias = weight.bfloat16(), None if bias is None else bias.bfloat16()
    return lambda x: linear(x.bfloat16(), weight, bias).float()


def int8_layer(weight, bias):
    """x (M, K) -> its product with an int8 weight (N, K), fp32 in and out, through ``torch._int_mm``; the scale of x
    is found per row at every call."""
    weight_scale = weight.abs().amax(1) / 127
    quantized = (weight / weight_scale.unsqueeze(1)).round().to(torch.int8).t()

    def layer(x):
        scale = x.abs().amax(1, keepdim=True) / 127
        product = torch._int_mm((x / scale).round_().to(torch.int8), quantized).float()
        product.mul_(scale).mul_(weight_scale)
        return product if bias is None else product.add_(bias)

    return layer
