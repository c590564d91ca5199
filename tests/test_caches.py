"""What modules keep of a forward in eval mode never outlives the weights, the scales or the graph it was made of."""

import copy

import pytest
import torch
from torch import nn

import bitquant
from bitquant.caches import caches_dropped


class Scores(nn.Module):
    """Attention with a bias table that is gathered once in eval mode."""

    def __init__(self, drops):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.randn(5))
        self.register_buffer("places", (torch.arange(5)[:, None] - torch.arange(5)).abs())
        self.drops, self.cache = drops, {}

    def train(self, mode=True):
        if mode and self.drops:
            self.cache = {}
        return super().train(mode)

    def bias(self):
        if self.training:
            return self.table[self.places]
        if "bias" not in self.cache:
            self.cache["bias"] = self.table[self.places]
        return self.cache["bias"]

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, -1)
        return self.out((query @ key.transpose(-2, -1) / 4 + self.bias()).softmax(-1) @ value)


class Kept(nn.Module):
    """Keeps a product of two parameters in an attribute, and lists what it saw, without ever dropping it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(16, 4)), nn.Parameter(torch.randn(4, 16))
        self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)
        self.product, self.seen, self.calls = None, [], 0

    def forward(self, x):
        if self.product is None:
            self.product = 0.1 * self.first @ self.second
        self.seen.append(self.product)
        self.calls += 1
        return self.down(self.up(x) + x * self.product.sum())


class Net(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(part) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


PARTS = {"dropped by train()": lambda: Scores(True), "never dropped": lambda: Scores(False), "attribute": Kept}


def caches(model):
    return [vars(m).get("cache") or vars(m).get("product") or vars(m).get("seen") for m in model.modules()]


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_caches_live_for_one_step(part, dropout):
    torch.manual_seed(0)
    teacher = Net(PARTS[part]()).eval()
    student, x = copy.deepcopy(teacher), torch.randn(2, 5, 16)
    bitquant.quantize_(student, "bit-plus", x)
    assert not any(caches(student))
    if dropout and part == "attribute":
        return  # a module that keeps a graph in training mode trains nowhere
    before = copy.deepcopy(dict(student.named_parameters()))
    bitquant.distill(student, teacher, [x], steps=4, dropout=dropout)
    assert not any(caches(student))
    names = [name for name in before if name.endswith(("table", "first", "second"))]
    assert names and all(not torch.equal(before[name], student.get_parameter(name)) for name in names)
    fresh = copy.deepcopy(student)
    assert torch.equal(student(x), fresh.train().eval()(x))
    if part == "attribute":
        assert student.layers[0].calls < 4  # set back too: a number may say that a cache is there


def test_a_model_that_was_run_before_trains_its_table():
    torch.manual_seed(0)
    model, x = Net(Scores(True)).eval(), torch.randn(2, 5, 16)
    with torch.no_grad():
        model(x)
    teacher, student = copy.deepcopy(model), copy.deepcopy(model)
    bitquant.quantize_(student, "bit-plus", x)
    before = student.layers[0].table.detach().clone()
    with torch.no_grad():
        student(x)
        model.layers[0].table.add_(1)  # the teacher's own cache is old now
        teacher.load_state_dict(model.state_dict())
    bitquant.distill(student, teacher, [x], steps=2)
    assert not torch.equal(before, student.layers[0].table)
    assert torch.equal(teacher(x), model.train().eval()(x))


def test_calibration_leaves_no_cache_and_every_mode():
    torch.manual_seed(0)
    student, x = Net(Scores(False)), torch.randn(2, 5, 16)
    bitquant.quantize_(student, "bit-plus", x)
    student.layers[1].eval()
    bitquant.calibrate_(student, [x, 2 * x])
    assert not any(caches(student))
    assert [layer.training for layer in student.layers] == [True, False]


def test_only_what_eval_mode_keeps_is_set_back():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.state, self.lists = torch.zeros(()), {"a": [1]}
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, x):
            self.mean = x.mean()
            self.lists["b"] = [x]
            self.state, self.new = self.state + 1, x
            return x

    model = Counter().eval()
    lists = model.lists
    with caches_dropped(model) as drop:
        model(torch.ones(2))
        drop()
        assert model.lists is lists == {"a": [1]} and model.state == 0 and not hasattr(model, "new") and model.mean == 1
        model.train()(torch.ones(2))
        drop()
        assert model.state == 1 and "b" in model.lists


def test_levit_trains_its_attention_biases():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LevitConfig(
        image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8]
    )
    teacher = transformers.LevitModel(config).eval()
    student, x = copy.deepcopy(teacher), torch.randn(2, 3, 64, 64)
    bitquant.quantize_(student, None, x)
    biases = {n: p.detach().clone() for n, p in student.named_parameters() if n.endswith("attention_biases")}
    bitquant.distill(student, teacher, [(x,)], steps=3)
    changed = [not torch.equal(bias, student.get_parameter(name)) for name, bias in biases.items()]
    assert all(changed[:2])  # the others see few tokens of an untrained model, and may have no gradient
    trained = student(x).pooler_output
    bitquant.convert_(student)
    assert torch.equal(student(x).pooler_output, trained)


class Keyed(nn.Module):
    """Keeps a tensor, and says by a number and by a buffer whether it is there."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.length, self.bias = 0, None
        self.register_buffer("ramp", torch.zeros(1), persistent=False)
        self.scale = None

    def forward(self, x):
        if self.length != x.shape[1]:
            self.length, self.bias = x.shape[1], self.up.bias * 2
        if self.ramp.shape[0] != x.shape[1]:
            self.ramp, self.scale = torch.ones(x.shape[1]), torch.ones(16)
        return x + self.down(torch.relu(self.up(x) * self.scale + self.bias) * self.ramp[:, None])


def test_what_says_that_a_cache_is_there_goes_with_it():
    torch.manual_seed(0)
    teacher = nn.Sequential(*(Keyed() for _ in range(3))).eval()
    student, x = copy.deepcopy(teacher), torch.randn(2, 5, 8)
    bitquant.quantize_(student, None, x)
    bitquant.calibrate_(student, [x, torch.randn(2, 7, 8)])
    bitquant.distill(student, teacher, [x], steps=3)
    with torch.no_grad():
        expected = student(x)
    packed = copy.deepcopy(student)
    bitquant.convert_(packed)
    with torch.no_grad():
        assert torch.equal(packed(x), expected)
