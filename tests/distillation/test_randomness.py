"""One seed gives one result, and a resumed run that of an uninterrupted one, whatever draws the random numbers."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import bitquant
from bitquant.distillation.batches import lasting
from bitquant.distillation.randomness import Randomness, derived_seed, seed_all

STEPS, STOPS = 7, (4, 9)  # saved at step 2 of the first stage, then of the second


class Noisy(nn.Module):
    """Draws in training from every kind of generator."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(2))
        self.dropout = nn.Dropout(0.1)
        self.own, self.numbers = torch.Generator(), np.random.default_rng()

    def forward(self, x):
        if self.training:
            x = x * (1 + 0.1 * np.random.rand())  # noqa: NPY002
            x = x + 0.1 * random.random() + 0.1 * torch.randn(8, generator=self.own) + 0.1 * self.numbers.random()
        for layer in self.layers:
            x = x + self.dropout(layer(x))
        return x


class Samples(Dataset):
    """Six samples, each changed at random when it is read."""

    def __init__(self):
        self.rows = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(0))
        self.rng = np.random.RandomState()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        drawn = random.random() + np.random.rand() + torch.rand(()).item() + self.rng.rand()  # noqa: NPY002
        return self.rows[index] + 0.1 * drawn


class MapStyle:
    """Batches by their number, without ``__iter__``."""

    def __init__(self):
        self.samples = Samples()

    def __getitem__(self, index):
        if index >= 3:
            raise IndexError(index)
        return self.samples[index][None]


class Passes:
    """Starts anew each time, in another order."""

    def __init__(self):
        self.rng = random.Random()

    def __iter__(self):
        rows = list(Samples().rows)
        self.rng.shuffle(rows)
        yield from (row[None] for row in rows)


def loader(**options):
    return DataLoader(Samples(), batch_size=2, shuffle=True, **options)


DATA = {
    "list": lambda: list(Samples().rows[:, None]),
    "shuffled": loader,
    "own generator": lambda: loader(generator=torch.Generator().manual_seed(5)),
    "workers": lambda: loader(num_workers=1),
    "workers that stay": lambda: loader(num_workers=1, persistent_workers=True, generator=torch.Generator()),
    "passes": Passes,
    "map style": MapStyle,
    "iterator": lambda: iter(list(torch.randn(100, 1, 3, 8, generator=torch.Generator().manual_seed(0)))),
}


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    teacher = Noisy().eval()
    student = copy.deepcopy(teacher)
    bitquant.quantize_(student, "bit-plus", torch.randn(2, 3, 8))
    return student, teacher


def train(pair, batches, *, stop=None, **options):
    """A student trained for two stages, or until a step of the second."""
    student, told = copy.deepcopy(pair[0]), []

    def progress(state):
        told.append(state["loss"])
        if len(told) == stop:
            raise InterruptedError

    settings = {"steps": STEPS, "chain": "w1a2,w1a1", "dropout": True, "seed": 3, "checkpoint_every": 2}
    bitquant.distill(student, pair[1], batches, progress=progress, **settings, **options)
    return student.state_dict(), told


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", DATA)
def test_resumed_and_uninterrupted_runs_are_equal(pair, kind, tmp_path):
    make = DATA[kind]
    seed_all(1)
    whole, told = train(pair, make())
    seed_all(2)
    batches = make()  # as in a notebook: the same object goes on after the interruption
    for stop in STOPS:
        with pytest.raises(InterruptedError):
            train(pair, batches, stop=stop, checkpoint=tmp_path, resume=True)
        batches = make() if kind == "iterator" else batches
    again, rest = train(pair, batches, checkpoint=tmp_path, resume=True)
    assert len(rest) == STEPS - 2 and told[-len(rest) :] == rest
    assert equal(whole, again)


def test_another_seed_is_another_run(pair):
    batches = loader(generator=torch.Generator().manual_seed(5))
    first, second = copy.deepcopy(pair[0]), copy.deepcopy(pair[0])
    for seed, student in enumerate((first, second)):
        bitquant.distill(student, pair[1], batches, steps=2, seed=seed)
    assert not equal(first.state_dict(), second.state_dict())


def test_spec_augment_follows_the_seed():
    transformers = pytest.importorskip("transformers")
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        config = transformers.HubertConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=[8] * 7,
            num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, layerdrop=0.0, mask_time_prob=0.3,
            mask_time_length=2,
        )  # fmt: skip
        teacher = transformers.HubertModel(config).eval()
        student, batch = copy.deepcopy(teacher), {"input_values": torch.randn(2, 4000)}
        bitquant.quantize_(student, "bit-plus", batch)
        bitquant.distill(student, teacher, [batch], steps=2, dropout=True, seed=3)
        found.append(student.state_dict())
    assert equal(*found)


def test_every_generator_is_found_and_seeded():
    held = [torch.Generator(), np.random.default_rng(), np.random.RandomState(), random.Random(), np.random.PCG64()]
    hidden = held[3]

    class Data:
        def __init__(self):
            self.parts, self.other = {"a": [held[0], (held[1],)]}, nn.Sequential(nn.Identity())
            self.other[0].rng, self.seeds = held[2], held[4]

        def method(self):
            return hidden

    randomness = Randomness(7, Data().method, [0.0] * 5000, None)
    assert {id(generator) for generator in randomness.held} == {id(generator) for generator in held}

    def draw():
        numbers = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
        return [*numbers, torch.rand((), generator=held[0]).item(), held[1].random(), held[2].rand(), held[3].random(),
                held[4].random_raw()]  # fmt: skip

    drawn = []
    for numbers in ((1, 2), (1, 3), (1, 2)):
        randomness.begin(*numbers)
        drawn.append(draw())
    assert drawn[0] == drawn[2] and all(a != b for a, b in zip(*drawn[:2], strict=True))
    assert len(set(drawn[0])) == len(held) + 3
    assert 0 <= derived_seed(-1, 2**70) < 2**63


@pytest.mark.parametrize(
    ("batches", "problem"),
    [
        ((x for x in range(100)), "an iterator.*8 batches are needed: give a list"),
        (iter([1] * 7), "an iterator.*8 batches are needed, 7 left"),
        (iter(DataLoader([1.0] * 3)), "an iterator"),
        (torch.zeros(9, 2), "put a single Tensor in a list"),
        ({"x": torch.zeros(9, 2)}, "put a single dict in a list"),
        (lambda: [], "not a function"),
        (None, "not a NoneType"),
    ],
)
def test_batches_that_cannot_last_are_refused(batches, problem):
    with pytest.raises(ValueError, match=problem):
        lasting(batches, 8)


def test_an_iterator_is_refused_before_the_first_step(pair):
    told = []
    with pytest.raises(ValueError, match="8 batches are needed"):
        bitquant.distill(*copy.deepcopy(pair), (torch.zeros(1, 8) for _ in range(5)), steps=8, progress=told.append)
    assert not told
    assert lasting(iter([1] * 9), 8) == [1] * 8
    assert lasting([1], 8) == [1]


@pytest.mark.parametrize(
    ("batch", "problem"),
    [
        (None, "batch 2 is a NoneType that holds no tensor"),
        ({}, "batch 2 is a dict that holds no tensor"),
        (torch.zeros(0, 3, 8), r"batch 2 is empty: it has the shape \(0, 3, 8\)"),
        ({"x": torch.zeros(2, 0, 8)}, "batch 2 is empty: its tensor 'x'"),
        ({"x": torch.zeros(1, 3, 8), "attention_mask": torch.zeros(1, 3)}, "batch 2 is all padding"),
    ],
)
def test_batches_that_hold_nothing_are_refused(pair, batch, problem):
    student, teacher = copy.deepcopy(pair)
    with pytest.raises(ValueError, match=problem):
        bitquant.distill(student, teacher, [torch.randn(1, 3, 8), batch], steps=2)
