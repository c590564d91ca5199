"""The loss of the outputs fits what they are."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import bitquant
from bitquant.distillation.losses import output_loss


def loss(student, teacher, problem_type=None, name="logits"):
    return output_loss({name: student}, {name: teacher}, None, problem_type).item()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("problem_type", [None, "regression"])
def test_one_logit_is_a_regression(problem_type):
    teacher = torch.randn(16, 1)
    assert loss(teacher, teacher, problem_type) == 0
    assert loss(teacher + teacher.std(), teacher, problem_type) == pytest.approx(1, rel=0.1)


def test_each_regression_target_counts_alike():
    teacher = torch.randn(64, 2) * torch.tensor([1.0, 1000.0])
    wrong = torch.diag(teacher.std(0))  # by a standard deviation, in one of them
    small, large = (loss(teacher + shift, teacher, "regression") for shift in wrong)
    assert small == pytest.approx(large, rel=1e-3) and small == pytest.approx(0.5, rel=0.05)


def test_labels_are_each_yes_or_no():
    teacher = torch.randn(8, 5)
    assert loss(teacher, teacher, "multi_label_classification") == pytest.approx(0, abs=1e-6)
    shifted = teacher + 3  # no change to a distribution over classes, one to every label
    assert loss(shifted, teacher) == pytest.approx(0, abs=1e-5)
    assert loss(shifted, teacher, "multi_label_classification") > 0.1


def test_masked_classes_are_left_out():
    teacher = torch.randn(4, 5)
    teacher[:, 4] = -torch.inf
    student = torch.randn(4, 5, requires_grad=True)
    value = output_loss({"logits": student}, {"logits": teacher}, None)
    value.backward()
    assert value.isfinite() and value > 0 and student.grad.isfinite().all()
    masked = student.detach().clone()
    masked[:, 4] = -torch.inf
    assert loss(masked, teacher) == pytest.approx(loss(student.detach()[:, :4], teacher[:, :4]), rel=1e-5)


def test_a_scalar_loss_is_no_output():
    both = {"loss": torch.tensor(3.0), "logits": torch.randn(2, 3)}
    assert output_loss({**both, "loss": torch.tensor(9.0)}, both, None).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="no float output"):
        output_loss({"loss": torch.tensor(9.0)}, {"loss": torch.tensor(3.0)}, None)


class Scorer(nn.Module):
    def __init__(self, outputs=1, problem_type=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.head, self.config = nn.Linear(16, outputs), SimpleNamespace(problem_type=problem_type)

    def forward(self, x):
        return {"logits": self.head(self.layers(x))}


@pytest.mark.parametrize(("outputs", "kind"), [(1, None), (3, "regression"), (3, "multi_label_classification")])
def test_distilling_them_is_never_a_loss_of_nothing(outputs, kind):
    teacher, x, losses = Scorer(outputs, kind), torch.randn(32, 8), []
    student = copy.deepcopy(teacher)
    bitquant.quantize_(student, None, x)
    bitquant.distill(
        student, teacher, [x], steps=60, lr=1e-2, hidden_weight=0.0, progress=lambda told: losses.append(told["loss"])
    )
    assert losses[0] > 0 and losses[-1] < losses[0]


def test_an_option_says_what_logits_are():
    teacher, x = Scorer(3), torch.randn(8, 8)
    student = copy.deepcopy(teacher)
    bitquant.quantize_(student, None, x)
    with pytest.raises(ValueError, match="problem_type must be one of single_label_classification"):
        bitquant.distill(student, teacher, [x], steps=1, problem_type="ranking")
    told = {}
    for kind in ("single_label_classification", "regression"):
        bitquant.distill(
            copy.deepcopy(student), teacher, [x], steps=1, problem_type=kind,
            progress=lambda state, kind=kind: told.update({kind: state["loss"]}),
        )  # fmt: skip
    assert told["regression"] != told["single_label_classification"]
