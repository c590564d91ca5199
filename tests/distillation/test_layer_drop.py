"""Layers that were left out of a forward are not matched."""

import copy
import math

import pytest
import torch

import bitquant
from bitquant.distillation.hidden import in_both


@pytest.mark.parametrize("drop", [0.1, 0.5])
def test_layer_drop_trains(drop):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, layerdrop=drop,
    )  # fmt: skip
    teacher = transformers.HubertModel(config).eval()
    student, batch, losses = copy.deepcopy(teacher), {"input_values": torch.randn(2, 400)}, []
    bitquant.quantize_(student, "bit-plus", batch)
    bitquant.distill(
        student, teacher, [batch], steps=20, dropout=True, progress=lambda told: losses.append(told["loss"])
    )
    assert len(losses) == 20 and all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_layers_that_ran_as_often_in_both():
    state = torch.zeros(1)
    teacher = {"a": state, "b": state, "b again 1": state, "c": state}
    assert in_both({"a": state, "b": state}, teacher) == ["a"]
    assert in_both({"b again 1": state, "b": state, "c": state}, teacher) == ["b", "b again 1", "c"]
    assert in_both({}, teacher) == []
