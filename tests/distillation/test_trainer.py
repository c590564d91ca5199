"""Distillation: the loss falls, padding carries no loss, one seed gives one result, errors say what is wrong."""

import copy

import pytest
import torch
from torch import nn

import bitquant
from bitquant.distillation.losses import hidden_loss, masked_error, output_loss, pooled_loss, soft_cross_entropy
from bitquant.distillation.optimizer import parameter_groups, rate
from bitquant.padding import Padding


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(16, 4)

    def forward(self, ids, attention_mask=None):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=None if attention_mask is None else ~attention_mask.bool())
        return {"logits": self.head(x), "hidden": x}


@pytest.fixture
def pair():
    torch.manual_seed(0)
    teacher = Classifier().eval()
    student = copy.deepcopy(teacher)
    batches = [{"ids": torch.randint(30, (8, 12)), "attention_mask": torch.ones(8, 12).long()} for _ in range(4)]
    bitquant.quantize_(student, "bit-plus", batches[0])
    return student, teacher, batches


def test_loss_falls_and_progress_is_told(pair):
    student, teacher, batches = pair
    seen = []
    bitquant.distill(student, teacher, batches, steps=40, lr=5e-3, scale_lr=5e-3, progress=seen.append)
    assert [s["step"] for s in seen] == list(range(1, 41))
    assert sum(s["loss"] for s in seen[-5:]) < 0.7 * sum(s["loss"] for s in seen[:5])
    assert set(seen[0]) == {"stage", "step", "steps", "loss", "flip_ratio", "tokens_per_s", "eta_s"}
    assert 0 < seen[-1]["flip_ratio"] < 0.5 and seen[-1]["eta_s"] == 0
    assert not student.training
    bitquant.convert_(student)


def test_teacher_is_untouched(pair):
    student, teacher, batches = pair
    before = copy.deepcopy(teacher.state_dict())
    bitquant.distill(student, teacher, batches, steps=2)
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert not teacher._forward_hooks and not teacher.layers[0]._forward_hooks


def test_same_seed_same_weights(pair):
    student, teacher, batches = pair
    runs = []
    for seed in (3, 3, 4):
        run = copy.deepcopy(student)
        bitquant.distill(run, teacher, batches, steps=3, seed=seed, dropout=True)
        runs.append(run.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(runs[0].values(), runs[2].values(), strict=True))


def test_errors(pair):
    student, teacher, batches = pair
    with pytest.raises(ValueError, match="batches is empty"):
        bitquant.distill(student, teacher, [], steps=1)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        bitquant.distill(student, teacher, batches, steps=0)
    with pytest.raises(ValueError, match="not quantized"):
        bitquant.distill(teacher, teacher, batches, steps=1)
    spent = iter(batches[:1])
    with pytest.raises(ValueError, match="spent iterator"):
        bitquant.distill(student, teacher, spent, steps=2)
    flat = {"logits": torch.zeros(2, 3, 4), "pooled": torch.zeros(2, 4)}
    with pytest.raises(ValueError, match="leave pooled_weight at 0"):
        pooled_loss(flat, flat, None)


def test_infinite_loss_stops_before_the_step(pair):
    student, teacher, batches = pair
    nn.init.constant_(student.head.bias, float("inf"))
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(FloatingPointError, match="at step 1"):
        bitquant.distill(student, teacher, batches, steps=2)
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_padding_carries_no_loss():
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    garbage = student.clone()
    garbage[0, 3:] = 1e6
    for loss in (masked_error, soft_cross_entropy):
        assert loss(student, teacher, mask) == loss(garbage, teacher, mask)
        assert loss(teacher, teacher, mask).abs() < 1e-6
    tokens = teacher[mask]
    mean = tokens.mean(0).expand(teacher.shape)
    assert masked_error(mean, teacher, mask) == pytest.approx((len(tokens) - 1) / len(tokens))
    assert masked_error(mean + 7, teacher + 7, mask) == pytest.approx((len(tokens) - 1) / len(tokens), rel=1e-4)


def test_losses_by_hand():
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 4.0]])
    assert masked_error(student, teacher, None) == pytest.approx(5 / 20)
    pair = torch.tensor([[[1.0, 2.0], [3.0, 2.0]]])
    assert masked_error(pair + 1, pair, None) == pytest.approx(4 / 4)  # the variance of 1 and 3 is 2, twice
    alike = pair[:, :1].expand(1, 2, 2)
    assert masked_error(alike + 1, alike, None) == pytest.approx(4 / (0.01 * 10))
    assert masked_error(pair[:, :1] + 1, pair[:, :1], None) == pytest.approx(2 / 5)  # one token: its power
    assert masked_error(pair[None] + 1, pair[None], None) == pytest.approx(4 / 18)
    assert hidden_loss({"a": student, "b": teacher}, {"a": teacher, "b": teacher}, None) == pytest.approx(0.125)
    p, q = teacher.softmax(-1), student.softmax(-1)
    expected = (p * (p.log() - q.log())).sum()
    assert soft_cross_entropy(student, teacher, None) == pytest.approx(expected.item(), rel=1e-5)
    both = output_loss({"logits": student, "x": student}, {"logits": teacher, "x": teacher, "y": teacher}, None)
    assert both == pytest.approx((expected.item() + 0.25) / 2, rel=1e-5)
    assert output_loss((student,), (teacher,), None) == pytest.approx(0.25)


def test_pooled_loss_by_hand():
    teacher = torch.tensor([[[1.0, 2.0], [3.0, 2.0], [9.0, 9.0]], [[4.0, 0.0], [4.0, 4.0], [4.0, 2.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)  # means (2, 2) and (4, 2): a variance of 2
    student = teacher.clone()
    student[0, :2] += torch.tensor([[1.0, 5.0], [1.0, -5.0]])  # which leaves a mean of (3, 2)
    student[0, 2] = 1e6
    both = {"logits": student, "x": student}, {"logits": -teacher, "x": teacher}
    padding = Padding([(teacher, mask.unsqueeze(-1).expand(teacher.shape))], tokens=5)
    assert pooled_loss(*both, padding) == pytest.approx(1 / 2 / 2)
    assert pooled_loss(teacher[:1], teacher[:1] + 1, None) == pytest.approx(2 / (teacher[0].mean(0) + 1).square().sum())


def test_pooled_weight_counts(pair):
    student, teacher, batches = pair
    told = {}
    for weight in (0.0, 1.0, 3.0):
        bitquant.distill(
            copy.deepcopy(student),
            teacher,
            batches,
            steps=1,
            pooled_weight=weight,
            progress=lambda state, weight=weight: told.setdefault(weight, state["loss"]),
        )
    assert told[1.0] > told[0.0]
    assert told[3.0] - told[0.0] == pytest.approx(3 * (told[1.0] - told[0.0]), rel=1e-4)


def test_extra_loss_is_added_and_trained(pair):
    student, teacher, batches = pair
    head = nn.Linear(16, 3).requires_grad_(False)

    def answers(given, wanted):
        return 5 * (head(given["hidden"]) - head(wanted["hidden"])).square().mean()

    told, students = {}, {}
    for loss in (None, answers):
        students[loss] = copy.deepcopy(student)
        bitquant.distill(
            students[loss],
            teacher,
            batches,
            steps=30,
            extra_loss=loss,
            progress=lambda state, loss=loss: told.setdefault(loss, state["loss"]),
        )
    with torch.no_grad():
        first = answers(student(**batches[0]), teacher(**batches[0]))
        ends = {loss: answers(model(**batches[0]), teacher(**batches[0])) for loss, model in students.items()}
    assert told[answers] - told[None] == pytest.approx(first.item(), rel=1e-3)
    assert ends[answers] < ends[None]


def test_extra_loss_is_part_of_what_resumes(pair, tmp_path):
    student, teacher, batches = pair
    bitquant.distill(student, teacher, batches, steps=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="extra_loss: None then"):
        bitquant.distill(
            student, teacher, batches, steps=1, checkpoint=tmp_path, resume=True, extra_loss=lambda given, wanted: 0.0
        )


def test_parameter_groups(pair):
    student = torch.nn.ModuleDict({"encoder": pair[0], "words": torch.nn.Embedding(5, 4)})
    weights, others, scales = parameter_groups(student, lr=1.0, scale_lr=2.0, weight_decay=0.1)
    student, words = student.values()
    assert (weights["lr"], weights["weight_decay"], scales["lr"], scales["weight_decay"]) == (1.0, 0.1, 2.0, 0.0)
    ids = {id(p) for group in (weights, others, scales) for p in group["params"]}
    assert ids == {id(p) for p in (*student.parameters(), words.weight)}
    assert others["weight_decay"] == 0.0 and id(words.weight) in {id(p) for p in others["params"]}
    assert id(student.layers[0].linear1.input_quantizer.alpha) in {id(p) for p in scales["params"]}
    assert id(student.layers[0].linear1.input_quantizer.shift) in {id(p) for p in others["params"]}


def test_schedule():
    rates = [rate(step, steps=10, warmup=0.2) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[-1] == pytest.approx(0.125)
    assert all(a > b for a, b in zip(rates[2:], rates[3:], strict=False))
