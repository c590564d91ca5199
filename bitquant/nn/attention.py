"""BitAttention: scaled dot product attention whose two products are binary (contract 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from bitquant.config import QuantConfig
from bitquant.nn.activation import activation_quantizer
from bitquant.nn.exact import exact, scaled
from bitquant.nn.mask import keep_mask, masked_softmax
from bitquant.nn.selection import at_bits, selection
from bitquant.quantizers import OptionalState


class BitAttention(OptionalState):
    """Stands in for ``scaled_dot_product_attention``: same arguments, same shapes.

    The signs of query (..., Tq, d) and key (..., Tk, d) give integer scores in {-d..d}; a rule on integers selects
    the keys of each query; the signs of value (..., Tk, dv) are summed over the selected keys. With a float bias added
    to the scores (``score_bias``) the selection compares the float softmax instead.

    At 2, 4, 8 and 32 bits the probabilities of a float softmax are quantized, between two integer products.

    Args:
        config: ``attention`` chooses the rule, ``"row-max"`` (bit-plus) or ``"table"`` (bit-ref).
        head_dim: d, the number of products in a score.
        score_bias: the additive mask of this attention carries values other than 0 and <= -1e4.
    """

    def __init__(
        self, config: QuantConfig, head_dim: int, *, score_bias: bool = False, device: torch.device | None = None
    ):
        super().__init__()
        self.query, self.key, self.value = (
            activation_quantizer(config, nonnegative=False, device=device) for _ in range(3)
        )
        self.selection = selection(config, device=device)
        self.rule, self.head_dim, self.score_bias = config.attention, head_dim, score_bias
        self.register_buffer("score_scale", torch.tensor(torch.inf, dtype=torch.float64, device=device))

    @property
    def in_integers(self) -> bool:
        """Whether no float but the final scale is involved, so that the layer can be packed for its one score scale."""
        return self.query.bits == 1 and not self.score_bias and bool(torch.isfinite(self.score_scale))

    def set_bits(self, config: QuantConfig) -> None:
        """Change the width in place to the configuration's."""
        for quantizer in (self.query, self.key, self.value):
            quantizer.set_bits(config.activation_bits)
        self.selection = at_bits(self.selection, config)

    def spec(self) -> dict:
        """JSON-able arguments that build this layer's skeleton, beside the configuration."""
        return {"head_dim": self.head_dim, "score_bias": self.score_bias}

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
        with exact(query):
            (q, alpha_q), (k, alpha_k), (v, alpha_v) = self.query(query), self.key(key), self.value(value)
            if enable_gqa:
                k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
            scale = q.shape[-1] ** -0.5 if scale is None else scale
            if self.query.observing:
                self._observe_scale(scale)
            temperature = alpha_q * alpha_k * scale
            scores = q @ k.transpose(-2, -1)
            keep = keep_mask(attn_mask, is_causal, *scores.shape[-2:], device=scores.device, score_bias=self.score_bias)
            if self.score_bias:
                logits = scores * temperature
                if attn_mask is not None and attn_mask.dtype != torch.bool:
                    logits = logits + attn_mask
                probability = masked_softmax(logits, keep)
                chosen = self.selection.from_probability(probability, keep, dropout_p)
            else:
                chosen = self.selection.from_scores(scores, q.shape[-1], temperature, keep, dropout_p)
            return scaled(chosen.mix(v), chosen.factor * alpha_v).to(query.dtype)

    def _observe_scale(self, scale: float) -> None:
        """Note the score scale of the calls; NaN once they disagree, as where layers of other scales share a module."""
        same = self.score_scale.eq(scale) | self.score_scale.isinf()
        self.score_scale.copy_(torch.where(same, torch.full_like(self.score_scale, scale), torch.nan))
