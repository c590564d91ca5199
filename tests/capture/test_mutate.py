"""Class mutation leaves everything of a module but its forward."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from bitquant.capture import mutate_class_, original_class
from bitquant.capture.mutate import restore_class_


class Doubled:
    """A mixin at module level, so that pickle finds it."""

    def forward(self, x):
        return 2 * super().forward(x)


class Wide(nn.Linear):
    """A derived class with its own forward."""

    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 4), lambda: Wide(3, 4)], ids=["linear", "derived"])
def test_forward_names_hooks_and_ties(make):
    module, calls = make(), []
    module.register_forward_hook(lambda *_: calls.append(1))
    x, weight = torch.randn(2, 3), module.weight
    expected, keys, cls = module(x), list(module.state_dict()), type(module)
    assert mutate_class_(module, Doubled) is module is mutate_class_(module, Doubled)
    assert torch.equal(module(x), 2 * expected)
    assert module.weight is weight and list(module.state_dict()) == keys and len(calls) == 2
    assert isinstance(module, cls) and isinstance(module, Doubled) and type(module).__name__ == f"Bit{cls.__name__}"
    assert original_class(module) is cls


def test_name_and_cache():
    first, second = (mutate_class_(nn.Linear(2, 2), Doubled, "Twice") for _ in range(2))
    assert type(first) is type(second) and type(first).__name__ == "Twice"


def test_deepcopy_and_pickle():
    module = mutate_class_(nn.Linear(3, 4), Doubled)
    x = torch.randn(2, 3)
    duplicate = copy.deepcopy(module)
    assert type(duplicate) is type(module) and duplicate.weight is not module.weight
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded) is type(module) and torch.equal(loaded(x), module(x)) and torch.equal(duplicate(x), module(x))


def test_parametrized():
    module = parametrizations.weight_norm(nn.Conv1d(4, 4, 3), dim=2)
    x = torch.randn(1, 4, 9)
    expected, keys = module(x), list(module.state_dict())
    mutate_class_(module, Doubled)
    mutate_class_(module, Doubled)
    assert torch.equal(module(x), 2 * expected) and list(module.state_dict()) == keys
    module(x).sum().backward()
    assert module.parametrizations.weight.original0.grad is not None
    assert torch.equal(copy.deepcopy(module)(x), 2 * expected)
    restore_class_(module)
    assert torch.equal(module(x), expected)
    mutate_class_(module, Doubled)
    parametrize.remove_parametrizations(module, "weight")
    assert type(module).__name__ == "BitConv1d" and torch.allclose(module(x), 2 * expected)
