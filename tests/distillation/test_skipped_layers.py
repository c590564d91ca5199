"""Layers that did not run in a forward, of either model, are not matched."""

import copy

import pytest
import torch
from torch import nn

import bitquant
from bitquant.distillation.hidden import hidden_states, in_both
from bitquant.distillation.losses import hidden_loss


class Dropping(nn.Module):
    """Skips layers in training, all of them now and then."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            if not self.training or torch.rand(()) > 0.6:
                x = x + layer(x)
        return x


def test_dropped_layers_are_not_matched():
    torch.manual_seed(0)
    teacher, x = Dropping().eval(), torch.randn(8, 16)
    student, told = copy.deepcopy(teacher), []
    bitquant.quantize_(student, "bit-plus", x)
    bitquant.distill(student, teacher, [x], steps=30, dropout=True, progress=lambda state: told.append(state["loss"]))
    assert len(told) == 30


def test_layer_drop_of_a_default_configuration():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        layerdrop=0.5,
    )
    teacher, batch, told = transformers.HubertModel(config).eval(), {"input_values": torch.randn(2, 4000)}, []
    student = copy.deepcopy(teacher)
    bitquant.quantize_(student, "bit-plus", batch)
    bitquant.distill(student, teacher, [batch], steps=12, dropout=True, progress=lambda state: told.append(state))
    assert len(told) == 12


def test_states_are_of_the_latest_forward_alone():
    model = Dropping().eval()
    with hidden_states(model, ["layers.0", "layers.2"]) as states:
        model(torch.randn(2, 16))
        assert set(states) == {"layers.0", "layers.2"}
        model.layers[0](torch.randn(2, 16))
        assert set(states) == {"layers.0", "layers.2", "layers.0 again 1"}
        model(torch.randn(2, 16))
        assert set(states) == {"layers.0", "layers.2"}
    assert not model._forward_pre_hooks and not model.layers[0]._forward_hooks


def test_runs_are_matched_where_both_models_have_as_many():
    x = torch.randn(2, 4)
    teacher = {"a": x, "a again 1": x, "b": x, "c": x}
    assert in_both({"a": x, "b": x}, teacher) == ["b"]
    assert in_both({"a": x, "a again 1": x}, teacher) == ["a", "a again 1"]
    assert hidden_loss({}, teacher, None) == 0
