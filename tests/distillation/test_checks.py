"""Trainings that would train nothing or could not work are refused before the first step, and failures say why."""

import copy
import math

import pytest
import torch
from torch import nn

import bitquant


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(4, 5, 8)


@pytest.fixture
def pair(x):
    teacher = Net().eval()
    student = copy.deepcopy(teacher)
    bitquant.quantize_(student, "bit-plus", x)
    return student, teacher


def trained(pair, x, **options):
    told = []
    bitquant.distill(*pair, [x], **{"steps": 2, "progress": told.append, **options})
    return [state["loss"] for state in told]


# trainings of nothing


def test_the_student_as_its_own_teacher(pair, x):
    student, teacher = pair
    with pytest.raises(ValueError, match="its own teacher"):
        bitquant.distill(student, student, [x], steps=1)
    teacher.head = student.head
    with pytest.raises(ValueError, match=r"share 2 parameter\(s\) that train, such as head.weight"):
        bitquant.distill(student, teacher, [x], steps=1)
    teacher.head = copy.deepcopy(student.head)
    teacher.head.weight.data = student.head.weight.data.view(-1)[:24].view(3, 8)
    with pytest.raises(ValueError, match="such as head.weight"):
        bitquant.distill(student, teacher, [x], steps=1)
    student.head.requires_grad_(False)
    bitquant.distill(student, teacher, [x], steps=1)  # what does not train may be shared


def test_a_student_with_nothing_to_train(pair, x):
    pair[0].requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter has requires_grad"):
        trained(pair, x)


def test_a_frozen_copy_is_said(x):
    teacher = Net().requires_grad_(False)
    student = copy.deepcopy(teacher)
    bitquant.quantize_(student, "bit-plus", x)
    with pytest.warns(UserWarning, match=r"weights of (\d) of \1 quantized layers, such as \S+, are frozen"):
        trained((student, teacher), x)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"output_weight": 0, "hidden_weight": 0}, "hidden_weight is 0: there is no loss"),
        ({"output_weight": math.nan}, "output_weight must be at least 0, got nan"),
        ({"hidden_weight": -1.0}, "hidden_weight must be at least 0"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"lr": math.inf}, "lr must be finite"),
        ({"lr": "fast"}, "lr must be at least 0, got 'fast'"),
        ({"lr": 0, "scale_lr": 0}, "nothing would train"),
        ({"warmup": 1.5}, "warmup must be at least 0 and at most 1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 2.5}, "steps must be at least 1, got 2.5"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"seed": 0.5}, "seed must be a whole number"),
    ],
)
def test_settings_out_of_range(pair, x, options, problem):
    before = copy.deepcopy(pair[0].state_dict())
    with pytest.raises(ValueError, match=problem):
        trained(pair, x, **options)
    assert all(torch.equal(before[name], value) for name, value in pair[0].state_dict().items())


def test_a_teacher_of_another_kind(pair, x):
    with pytest.raises(ValueError, match=r"the teacher has no layers.0, which the student learns from"):
        trained((pair[0], nn.Linear(8, 3)), x)


# wrappers


@pytest.mark.parametrize("wrap", ["DataParallel", "compile", "in place", "layers in place"])
def test_wrapped_models_train_as_what_is_inside(pair, x, wrap):
    def compiled(model, parts):
        for part in parts:
            part.compile(backend="eager")
        return model

    wrapped = {
        "DataParallel": nn.DataParallel,
        "compile": lambda model: torch.compile(model, backend="eager"),
        "in place": lambda model: compiled(model, [model]),
        "layers in place": lambda model: compiled(model, model.layers),
    }[wrap]
    expected = copy.deepcopy(pair[0])
    losses = trained((expected, pair[1]), x)
    student, teacher = wrapped(pair[0]), wrapped(pair[1])
    if wrap != "DataParallel":
        with torch.no_grad():
            teacher(x)  # what is compiled now knows of no hooks
    assert trained((student, teacher), x) == losses
    assert not student.training
    inside = pair[0].state_dict()
    assert all(torch.equal(value, inside[name]) for name, value in expected.state_dict().items())


def test_distributed_models_are_unwrapped_alone_and_refused_among_others(pair, x, monkeypatch):
    if not torch.distributed.is_available():
        pytest.skip("torch without torch.distributed")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(pair[0])
        assert all(math.isfinite(loss) for loss in trained((wrapped, pair[1]), x))
        monkeypatch.setattr(type(wrapped.process_group), "size", lambda group: 2)
        with pytest.raises(ValueError, match="distill trains in one process: give it .* student.module"):
            trained((wrapped, pair[1]), x)
    finally:
        torch.distributed.destroy_process_group()


# modes


def test_modes_around_it_change_nothing(pair, x):
    losses = trained((copy.deepcopy(pair[0]), pair[1]), x)
    teacher = copy.deepcopy(pair[1]).train().requires_grad_()
    for mode in (torch.no_grad, torch.inference_mode):
        student = copy.deepcopy(pair[0])
        with mode():
            assert trained((student, teacher), x) == losses
    assert all(parameter.grad is None for parameter in teacher.parameters())


# numbers that are not finite


def test_what_is_not_finite_is_named(pair, x):
    student, teacher = pair
    before = copy.deepcopy(student.state_dict())
    broken = copy.deepcopy(teacher)
    nn.init.constant_(broken.layers[1][3].bias, math.nan)
    with pytest.raises(FloatingPointError, match=r"at step 1 \(NaN in the teacher's layers, layers.1\)"):
        trained((student, broken), x)
    with pytest.raises(FloatingPointError, match=r"at step 1 \(NaN in the batch\)"):
        trained((student, teacher), x * math.nan)
    with pytest.raises(FloatingPointError, match="extra_loss gave nan at step 1"):
        trained((student, teacher), x, extra_loss=lambda given, wanted: given.sum() * math.nan)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    nn.init.constant_(student.head.bias, math.nan)
    with pytest.raises(FloatingPointError, match=r"at step 1 \(NaN in the student's outputs\)"):
        trained((student, teacher), x)


def test_a_gradient_that_is_not_finite_stops_before_the_step(pair, x):
    student, teacher = pair
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(FloatingPointError, match="the gradient is .* at step 1"):
        trained((student, teacher), x, extra_loss=lambda given, wanted: (given - given.detach()).abs().sum().sqrt())
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


@pytest.mark.parametrize(
    ("given", "problem"),
    [(None, "gave NoneType"), (torch.zeros(2), r"gave shape \(2,\)"), ("x", "gave str")],
)
def test_extra_losses_that_are_no_number(pair, x, given, problem):
    with pytest.raises(ValueError, match=f"extra_loss must give one number, a scalar tensor; it {problem}"):
        trained(pair, x, extra_loss=lambda *outputs: given)


def test_a_graph_that_is_kept_where_no_attribute_shows_it(pair, x):
    student, teacher = pair
    kept = []

    def hook(module, inputs, output):
        kept.append(module.weight.square().sum())
        return output + 0 * kept[0]

    student.head.register_forward_hook(hook)
    with pytest.raises(ValueError, match="keeps a tensor with gradients"):
        trained((student, teacher), x)
