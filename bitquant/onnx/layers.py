"""The layers of a packed model as nodes: the same classes, with the product replaced by one node of ``functions``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitquant.nn import BitAttention, BitEinsum, BitFunctionalLinear, BitMatmul
from bitquant.nn.weights import QuantizedWeight
from bitquant.onnx.emit import emit
from bitquant.onnx.products import AttentionNode, EinsumNode, MatmulNode
from bitquant.onnx.quantizer import quantizer
from bitquant.ops.checks import output_size
from bitquant.packed import PackedAttention, PackedConv, PackedEmbedding, PackedFunctionalLinear, PackedLinear
from bitquant.packing import unpack_bits


class _WeightNode:
    """Shared by layers with packed signs; ``weight_packed`` is what a file holds, int8 ``signs`` where it is folded."""

    def prepare(self, fold: bool) -> None:
        self.quantizer = quantizer(self, self.bits, self.signed, self.offset, self.step)
        self.stored(fold)
        if self.bias is None:
            self.register_buffer("zero_bias", torch.zeros(1))

    def stored(self, fold: bool) -> None:
        packed = self.packed()
        self.folded = fold
        self.register_buffer(
            "weight_stored", unpack_bits(packed, self.columns).to(torch.int8) * 2 - 1 if fold else packed
        )

    def weight_node(self, name: str, x: Tensor, bias: Tensor | None, shape: tuple, run, **attributes) -> Tensor:
        kind, vectors, settings = self.quantizer.kind, self.quantizer.vectors(), self.quantizer.settings
        bias = self.zero_bias if bias is None else bias
        return emit(
            self,
            f"{'Folded' if self.folded else ''}{kind}{name}",
            [x, *vectors, self.weight_stored, self.scale, bias],
            shape,
            run,
            levels={0: self.quantizer.levels},
            columns=self.columns,
            **settings,
            **attributes,
        )


class LinearNode(_WeightNode, PackedLinear):
    def prepare(self, fold: bool) -> None:
        super().prepare(fold)
        self.defers_from = None  # the input of every layer is looked at

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        torch._check(x.shape[-1] == self.columns)  # so that torch does not take it for a dimension that varies
        shape = (*x.shape[:-1], self.rows)
        return self.weight_node("Linear", x, bias, shape, lambda: PackedLinear.product(self, x, bias))


class FunctionalLinearNode(LinearNode, PackedFunctionalLinear):
    pass


class ConvNode(_WeightNode, PackedConv):
    def prepare(self, fold: bool) -> None:
        super().prepare(fold)
        self.quantizer.channels = 1

    def product(self, x: Tensor, padding: list[int]) -> Tensor:
        torch._check(x.shape[1] == self.in_channels)
        name = "DepthwiseConv" if self.groups == self.in_channels else "Conv"
        space = output_size(x.shape[2:], self.kernel_size, self.stride, padding, self.dilation)
        return self.weight_node(
            f"{name}{len(self.kernel_size)}d",
            x,
            self.bias,
            (x.shape[0], self.rows, *space),
            lambda: PackedConv.product(self, x, padding),
            group=self.groups,
            kernel_shape=self.kernel_size,
            strides=self.stride,
            pads=[*padding[::2], *padding[1::2]],
            dilations=self.dilation,
        )


class EmbeddingNode(PackedEmbedding):
    def prepare(self, fold: bool) -> None:
        pass  # rows are unpacked as they are looked up

    def product(self, indices: Tensor) -> Tensor:
        name, more = ("BinaryEmbedding", {}) if self.bits == 1 else ("IntegerEmbedding", {"bits": self.bits})
        return emit(
            self,
            name,
            [indices, self.weight_packed, self.scale],
            (*indices.shape, self.dim),
            lambda: PackedEmbedding.product(self, indices),
            levels={},
            columns=self.dim,
            **more,
        )


class PackedAttentionNode(PackedAttention):
    def prepare(self, fold: bool) -> None:
        pass

    def product(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None) -> Tensor:
        name = "BinaryAttention" if self.rule == "row-max" else "TableAttention"
        numbers = [self.margin] if self.rule == "row-max" else [self.table, self.ratio]
        mask = [] if keep is None else [keep.reshape(*[1] * (4 - keep.ndim), *keep.shape)]
        return emit(
            self,
            f"{'' if keep is None else 'Masked'}{name}",
            [query, key, value, *mask, *numbers, self.scale],
            (*query.shape[:-1], value.shape[-1]),
            lambda: PackedAttention.product(self, query, key, value, keep),
            levels=dict.fromkeys(range(3), lambda x: x >= 0),
        )


NODES = {
    PackedFunctionalLinear: FunctionalLinearNode,
    PackedLinear: LinearNode,
    PackedConv: ConvNode,
    PackedEmbedding: EmbeddingNode,
    PackedAttention: PackedAttentionNode,
    BitAttention: AttentionNode,
    BitMatmul: MatmulNode,
    BitEinsum: EinsumNode,
}


def to_nodes_(model: nn.Module, *, fold: bool = False) -> None:
    """Turn every packed layer of a model, in place, into its node.

    Raises:
        ValueError: a layer that has no form in a file, named.
    """
    found = False
    for path, module in model.named_modules():
        node = NODES.get(type(module))
        if node is not None:
            module.__class__, module.path, found = node, path, True
            try:
                module.prepare(fold)
            except ValueError as error:
                raise ValueError(f"{path} cannot be exported: {error}") from None
        elif isinstance(module, (QuantizedWeight, BitFunctionalLinear)):
            raise ValueError(
                f"{path} cannot be exported: its weight is not packed; call convert_ first, and note that layers with "
                "float weights are never packed"
            )
    if not found:
        raise ValueError("this model has no packed layer: call quantize_, distill and convert_ before export_onnx")
