"""BitAttention: scaled dot product attention whose two products are binary (DESIGN contract 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from bitquant.config import QuantConfig
from bitquant.nn.exact import exact, scaled
from bitquant.nn.mask import keep_mask, masked_softmax
from bitquant.nn.selection import at_bits, selection
from bitquant.quantizers import ActivationQuantizer, OptionalState


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
        signed = {
            "bits": config.activation_bits,
            "smooth": config.ste == "smooth",
            "init": config.signed_init,
            "device": device,
        }
        self.query = ActivationQuantizer("signed", **signed)
        self.key = ActivationQuantizer("signed", **signed)
        self.value = ActivationQuantizer("signed", **signed)
        self.selection = selection(config, device=device)
        self.rule, self.head_dim, self.score_bias = config.attention, head_dim, score_bias
        self.register_buffer("score_scale", torch.tensor(head_dim**-0.5, dtype=torch.float64, device=device))

    @property
    def in_integers(self) -> bool:
        """Whether no float but the final scale is involved, so that the layer can be packed."""
        return self.query.bits == 1 and not self.score_bias

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
                self.score_scale.fill_(scale)
            temperature = alpha_q * alpha_k * scale
            scores = q @ k.transpose(-2, -1)
            keep = keep_mask(attn_mask, is_causal, *scores.shape[-2:], device=scores.device, score_bias=self.score_bias)
            if self.score_bias:
                probability = masked_softmax(scores * temperature + attn_mask, keep)
                chosen = self.selection.from_probability(probability, keep, dropout_p)
            else:
                chosen = self.selection.from_scores(scores, q.shape[-1], temperature, keep, dropout_p)
            return scaled(chosen.mix(v), chosen.factor * alpha_v).to(query.dtype)
