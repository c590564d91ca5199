"""Every family of the zoo, rewritten with float children, equals the original on three different calls."""

import copy

import encoder_zoo as zoo
import pytest
import torch
from identity import Meter, call, difference, double, gradient_difference, gradients, rewrite_

from bitquant.capture import owners
from bitquant.capture.owner import OwnerMixin

RETURN_WEIGHTS = {"bert-eager", "nn-multihead-attention"}  # their float attention stays, to return its weights


def _fall_back_(model, reason="asked for"):
    for module in model.modules():
        if isinstance(module, OwnerMixin):
            module._capture.path, module._capture.reason = "fall-back", reason


@pytest.mark.parametrize("path", ["fx", "fall-back"])
@pytest.mark.parametrize("name", zoo.NAMES)
def test_equals_the_original(name, path):
    model, calls = zoo.build(name)
    original = copy.deepcopy(model)
    discovery = rewrite_(model, calls[0])
    assert discovery.total_macs == discovery.seen_macs == sum(site.macs for site in discovery.sites) > 0
    assert all(site.traced in ("module", "fx") and site.reason is None for site in discovery.sites)
    if path == "fall-back":
        _fall_back_(model)
    for inputs in calls:
        with torch.no_grad():
            assert difference(call(model, inputs), call(original, inputs)) < 1e-5
            with Meter() as meter:  # the second call, since the first may trace
                call(model, inputs)
        assert meter.inside == meter.total or name in RETURN_WEIGHTS or path == "fall-back"
    assert {record["path"] for record in owners(model).values()} <= {path}
    assert set(original.state_dict()) <= set(model.state_dict())
    model.load_state_dict(original.state_dict(), strict=False)
    inputs = double(calls[1])
    got, expected = (gradients(m.double().train(), inputs) for m in (model, original))
    assert gradient_difference(got, expected) < 1e-5


@pytest.mark.parametrize("name", ["hubert", "wavlm", "bert", "deberta-v2", "swin", "nn-transformer-encoder"])
def test_lengths_and_batch_sizes_do_not_retrace(name):
    model, calls = zoo.build(name)
    rewrite_(model, calls[0])
    with torch.no_grad():
        for inputs in calls:
            call(model, inputs)
        counts = [sum(map(len, m._capture.graphs.values())) for m in model.modules() if isinstance(m, OwnerMixin)]
    assert max(counts) <= 3  # with mask, without, and at most one branch on a size
