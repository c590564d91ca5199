"""Feed-forward and convolution modules that the encoders share."""

from __future__ import annotations

from torch import Tensor, nn

from ..norms import BatchNorm, LayerNorm


class FeedForward(nn.Module):
    """Linear, activation, Linear: (B, T, D) -> (B, T, D).

    Args:
        act: the activation module. dropout: after each Linear. act_dropout: instead, after the activation.
    """

    def __init__(self, dim: int, ffn: int, act: nn.Module, *, dropout: float = 0.0, act_dropout: float | None = None):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, ffn), act, nn.Linear(ffn, dim)
        self.act_dropout = nn.Dropout(dropout if act_dropout is None else act_dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.act_dropout(self.act(self.fc1(x)))))


class ConvModule(nn.Module):
    """Pointwise to 2D, gate, depthwise over time, norm, SiLU, pointwise to D: (B, T, D) -> (B, T, D).

    Padded frames are zero before the depthwise convolution and take no part in the norm's statistics.

    Args:
        gate: ``"glu"`` halves to D channels (Conformer); ``"swish"`` keeps 2D (Squeezeformer, hubert.md 4.1).
        norm: after the depthwise convolution: ``"batch"``, or ``"layer"`` where batches are small.
    """

    def __init__(self, dim: int, kernel: int, *, gate: str, bias: bool, dropout: float = 0.0, norm: str = "batch",
                 momentum: float = 0.1):
        super().__init__()
        if norm not in ("batch", "layer"):
            raise ValueError(f"the norm of a convolution module must be batch or layer; got {norm!r}")
        if kernel % 2 == 0:
            raise ValueError(f"a convolution module needs an odd kernel; got {kernel}")
        inner = dim if gate == "glu" else 2 * dim
        self.pointwise1 = nn.Conv1d(dim, 2 * dim, 1, bias=bias)
        self.gate = nn.GLU(dim=1) if gate == "glu" else nn.SiLU()
        self.depthwise = nn.Conv1d(inner, inner, kernel, padding=kernel // 2, groups=inner, bias=bias)
        self.norm = BatchNorm(inner, momentum=momentum) if norm == "batch" else LayerNorm(inner)
        self.act = nn.SiLU()
        self.pointwise2 = nn.Conv1d(inner, dim, 1, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        x = self.gate(self.pointwise1(x.transpose(1, 2)))
        if valid is not None:
            x = x.masked_fill(~valid[:, None], 0.0)
        x = self.depthwise(x)
        x = self.norm(x, valid) if isinstance(self.norm, BatchNorm) else self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.pointwise2(self.act(x)).transpose(1, 2))
