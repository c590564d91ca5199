"""The float twin of a packed model: the same network with float layers, for timing against."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitquant import packing
from bitquant.capture import owners
from bitquant.capture.reference import FLOAT, kind_of
from bitquant.packed import PackedConv, PackedEmbedding, PackedFunctionalLinear, PackedLinear
from bitquant.packed.structure import replace_everywhere_
from bitquant.packed.weights import PackedLayer


def float_twin(model: nn.Module) -> nn.Module:
    """A copy of a packed model whose layers are ordinary float ones of the same shape, their weights the packed signs
    times a scale. It takes the time of the float model; its outputs are not the float model's."""
    twin = copy.deepcopy(model)
    for module in list(twin.modules()):
        if isinstance(module, (PackedLayer, PackedEmbedding)):
            replace_everywhere_(twin, module, _float_layer(module))
    for path, owner in owners(twin).items():
        for name in owner["children"]:
            child = getattr(twin.get_submodule(path), name)
            if not isinstance(child, _FunctionalLinear):
                setattr(twin.get_submodule(path), name, _Function(kind_of(name)))
    return twin


def _float_layer(layer: PackedLayer | PackedEmbedding) -> nn.Module:
    if isinstance(layer, PackedEmbedding):
        return nn.Embedding.from_pretrained(layer.product(torch.arange(layer.rows, device=layer.scale.device)))
    signs = packing.unpack_bits(layer.packed(), layer.columns).float() * 2 - 1
    weight = signs * layer.scale.unsqueeze(-1)
    if isinstance(layer, PackedFunctionalLinear):
        return _FunctionalLinear(weight)
    if isinstance(layer, PackedLinear):
        return _with_weights(nn.Linear(layer.columns, layer.rows, bias=layer.bias is not None), weight, layer.bias)
    taps = weight.view(layer.rows, *layer.kernel_size, -1).movedim(-1, 1).contiguous()
    return _with_weights(_convolution(layer), taps, layer.bias)


def _convolution(layer: PackedConv) -> nn.Module:
    kind = nn.Conv1d if len(layer.kernel_size) == 1 else nn.Conv2d
    even = all(before == after for before, after in layer.padding)
    return kind(
        layer.in_channels,
        layer.rows,
        tuple(layer.kernel_size),
        stride=tuple(layer.stride),
        padding=tuple(before for before, _ in layer.padding) if even else "same",
        dilation=tuple(layer.dilation),
        groups=layer.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
    )


def _with_weights(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return module.eval()


class _FunctionalLinear(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.kept = nn.Parameter(weight, requires_grad=False)

    def forward(self, input: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
        return F.linear(input, self.kept, bias)


class _Function(nn.Module):
    """A product of two activations, or attention, in float."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, *args, **kwargs):
        return FLOAT[self.kind](*args, **kwargs)
