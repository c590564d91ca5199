"""Inference mode: counts are right inside it, and what was made in it can be quantized and trained."""

import copy

import pytest
import torch
from torch import nn

import bitquant


class Cached(nn.Module):
    """Keeps a buffer and an attribute for the latest length."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.register_buffer("ramp", torch.zeros(1), persistent=False)
        self.ones = None

    def forward(self, x):
        if self.ramp.shape[0] != x.shape[1]:
            self.ramp, self.ones = torch.linspace(0, 1, x.shape[1]), torch.ones(32)
        return x + self.down(torch.relu(self.up(x * self.ramp[:, None]) * self.ones))


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(*(Cached() for _ in range(3))).eval()


@pytest.fixture
def x():
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


def test_reports_are_the_same_inside(x):
    outside = bitquant.report(encoder(), x), str(bitquant.profile(encoder(), x))
    ranking = bitquant.sensitivity(encoder(), None, [x])
    with torch.inference_mode():
        assert bitquant.report(encoder(), x).to_dict() == outside[0].to_dict()
        assert str(bitquant.profile(encoder(), x)) == outside[1]
        inside = bitquant.sensitivity(encoder(), None, [x])
        inside.propose(0.5)
    assert inside.total_macs == ranking.total_macs > 0 and inside.rules
    model = encoder()
    bitquant.quantize_(model, None, x)
    expected = bitquant.profile(model, x).total
    with torch.inference_mode():
        assert bitquant.profile(model, x).total == expected
    bitquant.convert_(model)
    expected = bitquant.profile(model, x).total
    with torch.inference_mode():
        assert bitquant.profile(model, x).total == expected


def test_a_model_that_ran_in_inference_mode(x):
    model = encoder()
    with torch.inference_mode():
        model(x)
    held = model[0].ramp, model[0].ones
    assert all(tensor.is_inference() for tensor in held)
    assert bitquant.report(model, x).share_seen == 1.0 and bitquant.profile(model, x)
    assert (model[0].ramp, model[0].ones) == held  # a report leaves the model as it was
    teacher = copy.deepcopy(model)
    bitquant.quantize_(model, None, x)
    assert not model[0].ramp.is_inference() and not model[0].ones.is_inference()
    bitquant.distill(model, teacher, [x], steps=2)


def test_a_changed_buffer_is_put_back(x):
    class Counts(nn.Sequential):
        def forward(self, x):
            self.count += 1
            return super().forward(x)

    model = Counts(*encoder())
    with torch.inference_mode():
        model.register_buffer("count", torch.zeros(()))
    bitquant.report(model, x)
    assert model.count == 0


def test_inputs_made_in_inference_mode(x):
    with torch.inference_mode():
        made = x.clone()
    model, teacher = encoder(), encoder()
    bitquant.quantize_(model, None, made)
    bitquant.distill(model, teacher, [{"input": made}], steps=1)
    bitquant.distill(model, teacher, [(made,)], steps=1)


def test_every_verb_inside(x, tmp_path):
    with torch.inference_mode():
        model, teacher = encoder(), encoder()
        bitquant.quantize_(model, None, x)
        bitquant.calibrate_(model, [x])
        bitquant.distill(model, teacher, [x], steps=1)
        expected = model(x)
        bitquant.save(model, tmp_path / "student")
        student = bitquant.load(tmp_path / "student", model=encoder())
    bitquant.distill(student, teacher, [x], steps=1)  # outside
    with torch.inference_mode():
        bitquant.convert_(model)
        assert torch.equal(model(x), expected)
    ours = [tensor for name, tensor in model.named_buffers() if not name.endswith("ramp")]  # its own call made that
    assert ours and not any(tensor.is_inference() for tensor in ours)


def test_an_evaluation_between_trainings(x):
    model, teacher = encoder(), encoder()
    bitquant.quantize_(model, None, x)
    with torch.inference_mode():
        model(x[:, :3])  # keeps a buffer of this length
    bitquant.distill(model, teacher, [x[:, :3]], steps=1)


def test_training_without_gradients_switched_on(x):
    model, teacher = encoder(), encoder()
    bitquant.quantize_(model, None, x)
    before = model[0].up.weight.clone()
    with torch.no_grad():
        bitquant.distill(model, teacher, [x], steps=1)
    assert not torch.equal(model[0].up.weight, before)
