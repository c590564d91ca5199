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
    return _FloatConv(layer, weight)


def _with_weights(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return module.eval()


class _FloatConv(nn.Module):
    def __init__(self, layer: PackedConv, weight: Tensor):
        super().__init__()
        taps = weight.view(layer.rows, *layer.kernel_size, -1).movedim(-1, 1).contiguous()
        self.weight = nn.Parameter(taps, requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.clone(), requires_grad=False)
        self.sides = [side for pair in reversed(layer.padding) for side in pair]
        self.mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        self.geometry = layer.stride, layer.dilation, layer.groups
        self.equal = layer.padding_mode == "zeros" and all(before == after for before, after in layer.padding)
        self.padding = [before for before, _ in layer.padding] if self.equal else [0] * len(layer.padding)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.equal else F.pad(x, self.sides, mode=self.mode)
        stride, dilation, groups = self.geometry
        convolve = F.conv1d if self.weight.ndim == 3 else F.conv2d
        return convolve(x, self.weight, self.bias, stride, self.padding, dilation, groups)


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
