"""PackedAttention: binary attention in integers, every number it needs fixed when it was converted."""

from __future__ import annotations

import torch
from torch import Tensor

from bitquant import ops
from bitquant.nn.attention import BitAttention
from bitquant.nn.mask import keep_mask
from bitquant.packed.weights import finite, positive
from bitquant.quantizers import FixedDtype


class PackedAttention(FixedDtype):
    """Same arguments and shapes as ``BitAttention``, whose eval-mode output it equals bit for bit.

    Buffers: ``scale`` fp32 [1]; for ``"row-max"`` ``margin`` int64 [1]; for ``"table"`` ``table`` int64
    [head_dim + 1] and ``ratio`` int64 [1]. They hold for one score scale, checked at every call.
    """

    def __init__(self, rule: str, head_dim: int, score_scale: float, *, device: torch.device | None = None):
        super().__init__()
        self.rule, self.head_dim, self.score_scale = rule, head_dim, score_scale
        self.register_buffer("scale", torch.ones(1, dtype=torch.float32, device=device))
        if rule == "row-max":
            self.register_buffer("margin", torch.zeros(1, dtype=torch.int64, device=device))
        else:
            self.register_buffer("table", torch.zeros(head_dim + 1, dtype=torch.int64, device=device))
            self.register_buffer("ratio", torch.zeros(1, dtype=torch.int64, device=device))

    @classmethod
    @torch.no_grad()
    def from_trained(cls, layer: BitAttention) -> PackedAttention:
        """Fix a trained ``BitAttention``. ValueError when a scale is not positive and finite."""
        for quantizer in (layer.query, layer.key, layer.value):
            finite("input scale", quantizer.alpha)
        selection, score_scale = layer.selection, layer.score_scale.item()
        temperature = layer.query.scale() * layer.key.scale() * score_scale
        packed = cls(layer.rule, layer.head_dim, score_scale, device=temperature.device)
        if layer.rule == "row-max":
            packed.margin.copy_(selection.margin(temperature))
            factor = selection.gain()
        else:
            packed.table.copy_(selection.table(temperature, layer.head_dim))
            packed.ratio.copy_(selection.ratio())
            factor = selection.probability.scale()
        packed.scale.copy_(factor * layer.value.scale())
        positive(torch.stack([packed.scale[0], temperature]))
        return packed

    def spec(self) -> dict:
        """JSON-able arguments that build this layer's skeleton."""
        return {"rule": self.rule, "head_dim": self.head_dim, "score_scale": self.score_scale}

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
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if scale != self.score_scale:
            raise ValueError(
                f"this attention was packed for score scale {self.score_scale}, it was called with {scale}"
            )
        if enable_gqa:
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        if not query.shape == key.shape == value.shape:
            key, value = (t.expand(*query.shape[:-2], *t.shape[-2:]) for t in (key, value))
        keep = None
        if attn_mask is not None or is_causal:
            keep = keep_mask(attn_mask, is_causal, query.shape[-2], key.shape[-2], device=query.device)
        if query.ndim == 4:
            return self.product(query, key, value, keep)
        lead = query.shape[:-2]
        query, key, value = (t.reshape(-1, 1, *t.shape[-2:]) for t in (query, key, value))  # a batch with one head
        if keep is not None:
            keep = keep.expand(*lead, *keep.shape[-2:]).reshape(-1, 1, *keep.shape[-2:])
        out = self.product(query, key, value, keep)
        return out.view(*lead, *out.shape[-2:])

    def product(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None) -> Tensor:
        """Both products, (B, H, Tq, d), (B, H, Tk, d), (B, H, Tk, dv) -> (B, H, Tq, dv), by the rule; ``keep`` as in
        ``ops.binary_attention_rowmax``."""
        has = self._buffers  # nn.Module takes long to find an attribute
        if self.rule == "row-max":
            return ops.binary_attention_rowmax(query, key, value, keep, has["margin"], has["scale"])
        return ops.binary_attention_table(query, key, value, keep, has["table"], has["ratio"], has["scale"])

    def extra_repr(self) -> str:
        return f"{self.rule}, head_dim={self.head_dim}"
