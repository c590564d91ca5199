"""Weights that something makes of other parameters: parametrizations are trained along, hooks are refused where a layer
is to be quantized."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import bitquant

X = torch.randn(2, 16, 30, generator=torch.Generator().manual_seed(1))


class Tcn(nn.Module):
    def __init__(self, wrap=lambda layer: layer, wrap_head=lambda layer: layer):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(wrap(nn.Conv1d(16, 16, 3, padding=1)), nn.ReLU(), wrap(nn.Conv1d(16, 16, 1)))
            for _ in range(2)
        )
        self.mix = nn.ModuleList(wrap(nn.Linear(30, 30)) for _ in range(2))
        self.head = wrap_head(nn.Linear(30, 5))

    def forward(self, x):
        for layer, mix in zip(self.layers, self.mix, strict=True):
            x = x + mix(layer(x))
        return self.head(x)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight + 0.01


def doubled(layer):
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", amount=0.5)


def pruned_bias(layer):
    return prune.l1_unstructured(layer, "bias", amount=0.5)


HOOKS = {"weight_norm": weight_norm, "spectral_norm": spectral_norm, "prune": pruned, "prune a bias": pruned_bias}
KEPT = {
    "weight_norm": (parametrizations.weight_norm,),
    "spectral_norm": (parametrizations.spectral_norm,),
    "of one's own": (doubled,),
    "hooks on a float head": (lambda layer: layer, weight_norm),
    "a pruned float head": (lambda layer: layer, pruned),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("wrap", HOOKS)
def test_hooks_are_refused(wrap):
    model = Tcn(HOOKS[wrap])
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"layers\.0\.0: its (weight|bias) is made by a hook") as error:
        bitquant.quantize_(model, None, X)
    assert "\n" not in str(error.value) and kinds == [type(module) for module in model.modules()]
    late = Tcn()
    bitquant.quantize_(late, None, X)
    HOOKS[wrap](late.layers[1][0])
    late.train()
    with pytest.raises(ValueError, match=r"layers\.1\.0: its (weight|bias) is made by a hook"):
        bitquant.convert_(late)
    assert late.training and late.layers[1][0].training


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("preset", ["bit-plus", "bit-ref"])
@pytest.mark.parametrize("wraps", KEPT)
def test_made_weights_are_trained_packed_and_loaded(wraps, preset, tmp_path):
    torch.manual_seed(0)
    teacher, student, fresh = (Tcn(*KEPT[wraps]) for _ in range(3))
    student.load_state_dict(teacher.state_dict())
    bitquant.quantize_(student, preset, X)
    names = dict(student.named_parameters())
    bitquant.distill(student, teacher, [X], steps=2)
    made = "head.weight" if "head" in wraps else "layers.1.0.parametrizations.weight.original"
    changed = [name for name, before in teacher.named_parameters() if not torch.equal(before, names[name])]
    assert any(name.startswith(made) for name in changed)
    with torch.no_grad():
        expected = student(X)
        packed = copy.deepcopy(student.train())
        bitquant.convert_(packed)
        assert torch.equal(packed(X), expected)
        student.eval()
        for name, saved in (("student", student), ("packed", packed)):
            bitquant.save(saved, tmp_path / name)
            loaded = bitquant.load(tmp_path / name, model=fresh)
            assert torch.equal(loaded(X), expected)
    again = bitquant.load(tmp_path / "student", model=fresh)
    bitquant.distill(again, teacher, [X], steps=1)
    with torch.no_grad():
        expected = again(X)
        bitquant.convert_(again)
        assert torch.equal(again(X), expected)
