"""Products of two activations around a float softmax as nodes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bitquant.nn import BitAttention, BitEinsum, BitMatmul
from bitquant.nn.mask import keep_mask, masked_softmax
from bitquant.nn.selection import RowMaxSelection
from bitquant.onnx.emit import emit
from bitquant.onnx.quantizer import quantizer
from bitquant.quantizers import ActivationQuantizer


class Product(nn.Module):
    """(levels of a) x (levels of b) * ``scale``, one node.

    Args:
        left, right: the trained quantizers. scale: fp32 [1].
    """

    def __init__(self, path: str, left: ActivationQuantizer, right: ActivationQuantizer, scale: Tensor):
        super().__init__()
        self.path, self.left, self.right = path, left, right
        self.register_buffer("scale", scale.reshape(1).clone())
        self.sides = [self._side(prefix, side) for prefix, side in (("a_", left), ("b_", right))]

    def _side(self, prefix: str, side: ActivationQuantizer):
        offset = side.threshold() if side.bits == 1 else torch.zeros(1)
        return quantizer(self, side.bits, side.levels == "signed", offset, side.scale().reshape(1), prefix)

    def forward(
        self, a: Tensor, b: Tensor, operator: Callable = torch.matmul, name: str = "MatMul", **attributes: str
    ) -> Tensor:
        left, right = self.sides
        kinds = left.kind if left.kind == right.kind else left.kind + right.kind
        for prefix, side in (("a_", left), ("b_", right)):
            attributes |= {f"{prefix}{key}": value for key, value in side.settings.items()}
        inputs = [a, *left.vectors(), b, *right.vectors(), self.scale]
        return emit(
            self,
            kinds + name,
            inputs,
            operator(a, b).shape,
            lambda: operator(self.left(a)[0], self.right(b)[0]) * self.scale,
            levels={0: left.levels, 1 + len(left.vectors()): right.levels},
            **attributes,
        )


class RowMaxProduct(nn.Module):
    """Probabilities of a float softmax, of which the row-max rule takes keys, times the signs of values: one node."""

    def __init__(self, path: str, selection: RowMaxSelection, value: ActivationQuantizer):
        super().__init__()
        self.path, self.selection, self.value = path, selection, value
        self.register_buffer("share", torch.tensor([selection.keep], dtype=torch.float32))
        self.register_buffer("scale", (selection.gain() * value.scale()).reshape(1).detach())

    def forward(self, p: Tensor, v: Tensor) -> Tensor:
        return emit(
            self,
            "RowMaxMatMul",
            [p, v, self.share, self.scale],
            torch.matmul(p, v).shape,
            lambda: self.selection.from_probability(p, None, 0.0).mix(self.value(v)[0]) * self.scale,
            levels={0: self._taken, 1: lambda x: x >= 0},
        )

    def _taken(self, p: Tensor) -> Tensor:
        return self.selection.from_probability(p, None, 0.0).levels


def _probability_product(path: str, selection: nn.Module, value: ActivationQuantizer) -> nn.Module:
    if isinstance(selection, RowMaxSelection):
        return RowMaxProduct(path, selection, value)
    return Product(path, selection.probability, value, selection.probability.scale() * value.scale())


class AttentionNode(BitAttention):
    """Two nodes, ``scores`` and ``mix``, around the model's float softmax."""

    def prepare(self, fold: bool) -> None:
        if not torch.isfinite(self.score_scale):
            raise ValueError("it was called with several score scales, or never calibrated")
        temperature = self.query.scale() * self.key.scale() * self.score_scale.item()
        self.scores = Product(f"{self.path}.scores", self.query, self.key, temperature)
        self.mix = _probability_product(f"{self.path}.mix", self.selection, self.value)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        logits = self.scores(query, key.transpose(-2, -1))
        keep = keep_mask(attn_mask, is_causal, *logits.shape[-2:], device=logits.device, score_bias=self.score_bias)
        if self.score_bias and attn_mask is not None and attn_mask.dtype != torch.bool:
            logits = logits + attn_mask
        probability = masked_softmax(logits, keep)
        if keep is not None:  # a fully masked row has probabilities, of which none is taken
            probability = probability.masked_fill(~keep, 0.0)
        return self.mix(probability, value)


class MatmulNode(BitMatmul):
    def prepare(self, fold: bool) -> None:
        if self.probability:
            self.mix = _probability_product(self.path, self.left, self.right)
        else:
            self.mix = Product(self.path, self.left, self.right, self.left.scale() * self.right.scale())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.mix(a, b)


class EinsumNode(BitEinsum):
    def prepare(self, fold: bool) -> None:
        self.mix = Product(self.path, self.left, self.right, self.left.scale() * self.right.scale())

    def forward(self, equation: str, *operands: Tensor) -> Tensor:
        a, b = operands[0] if len(operands) == 1 else operands
        return self.mix(a, b, lambda x, y: torch.einsum(equation, x, y), "Einsum", equation=equation.replace(" ", ""))
