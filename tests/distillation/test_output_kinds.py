"""The output loss fits what outputs are: class scores, yes-or-no labels, regression, embeddings."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import bitquant
from bitquant.distillation.losses import label_error, output_loss, problem_type_of, soft_cross_entropy, target_error
from bitquant.fidelity import outputs

MULTI, REGRESSION = "multi_label_classification", "regression"


class Net(nn.Module):
    def __init__(self, labels, problem_type=None):
        super().__init__()
        self.config = SimpleNamespace(problem_type=problem_type)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(2))
        self.head = nn.Linear(16, labels)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return {"logits": self.head(x), "loss": self.head.bias.sum()}


def losses(teacher, x, steps=1, **options):
    student, told = copy.deepcopy(teacher), []
    bitquant.quantize_(student, "bit-plus", x)
    progress = lambda state: told.append(state["loss"])  # noqa: E731
    bitquant.distill(student, teacher, [x], steps=steps, hidden_weight=0.0, progress=progress, **options)
    return told


@pytest.mark.parametrize(
    ("labels", "problem_type"), [(1, None), (1, REGRESSION), (3, REGRESSION), (3, MULTI), (3, None)]
)
def test_no_loss_is_a_silent_zero(labels, problem_type):
    torch.manual_seed(0)
    told = losses(Net(labels, problem_type), torch.randn(32, 16), steps=60)
    assert told[0] > 0 and sum(told[-5:]) / 5 < told[0]


def test_the_option_overrides_what_the_configuration_says():
    torch.manual_seed(0)
    x, told = torch.randn(32, 16), {}
    for configured in (None, REGRESSION):
        for option in (None, "single_label_classification", MULTI, REGRESSION):
            torch.manual_seed(1)
            told[configured, option] = losses(Net(3, configured), x, problem_type=option)[0]
    assert told[REGRESSION, None] == told[None, REGRESSION] == told[REGRESSION, REGRESSION]
    assert (
        told[None, None] == told[None, "single_label_classification"] == told[REGRESSION, "single_label_classification"]
    )
    assert len({told[None, option] for option in (None, MULTI, REGRESSION)}) == 3
    with pytest.raises(ValueError, match="problem_type must be one of"):
        losses(Net(3), x, problem_type="ranking")
    assert problem_type_of(nn.Linear(1, 1)) is None


def test_masked_classes_carry_no_loss():
    torch.manual_seed(0)
    teacher, student = torch.randn(4, 6), torch.randn(4, 6)
    for loss in (soft_cross_entropy, label_error, target_error):
        masked = teacher.clone()
        masked[:, 4:] = -torch.inf
        leaf = student.clone().requires_grad_()
        value = loss(leaf.where(masked.isfinite(), -torch.inf), masked, None)
        value.backward()
        assert value > 0 and bool(leaf.grad.isfinite().all()) and not bool(leaf.grad[:, 4:].any())
        assert loss(masked, masked, None).abs() < 1e-6
    masked[:, :4] = -torch.inf
    assert soft_cross_entropy(student, masked, None) == 0
    expected = soft_cross_entropy(student[:, :4], teacher[:, :4], None)
    masked = teacher.clone()
    masked[:, 4:] = -torch.inf
    torch.testing.assert_close(soft_cross_entropy(student, masked, None), expected)


def test_every_regression_target_counts_alike():
    torch.manual_seed(0)
    teacher = torch.randn(64, 2) * torch.tensor([1.0, 100.0]) + 5
    worse = [teacher.clone(), teacher.clone()]
    for target, student in enumerate(worse):
        student[:, target] = teacher[:, target].mean()
    shares = [target_error(student, teacher, None).item() for student in worse]
    assert shares == pytest.approx([63 / 64 / 2] * 2, rel=1e-3)
    one = teacher[:1]
    assert target_error(one + 1, one, None).isfinite()


def test_labels_by_hand():
    student, teacher = torch.tensor([[0.5, -2.0]]), torch.tensor([[1.0, 0.0]])
    p, q = teacher.sigmoid(), student.sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(label_error(student, teacher, None), expected)


def test_a_scalar_loss_is_no_output():
    x = torch.randn(4, 3)
    student, teacher = {"loss": torch.tensor(7.0), "logits": x}, {"loss": torch.tensor(1.0), "logits": x}
    assert output_loss(student, teacher, None).abs() < 1e-6
    with pytest.raises(ValueError, match="no float output"):
        output_loss({"loss": torch.tensor(7.0)}, {"loss": torch.tensor(1.0)}, None)


def test_agreement_on_classes_is_told_of_classes_only():
    class Named(Net):
        def forward(self, x):
            return {"hidden": x, "logits": self.head(x)}

    batch = [{"x": torch.randn(4, 16)}]
    assert "classes" in outputs(Named(3), batch)
    assert all("classes" not in outputs(model, batch) for model in (Named(1), Named(3, MULTI), Named(3, REGRESSION)))
