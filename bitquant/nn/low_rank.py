"""LowRank: a narrow float path beside a 1-bit product, for the few directions in which most of its input lies."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitquant.masks import valid_tokens
from bitquant.quantizers import OptionalState
from bitquant.quantizers.elastic import check_numbers

ITERATIONS = 4  # of the power method


class LowRank(OptionalState):
    """``y = product(x - D'D x) + U D x``: the bits take what the float path leaves of the input.

    D starts at the ``rank`` directions that hold most of the calibration inputs' power, U at the weight times them, so
    that the path is exact there; both are trained. Their values are rounded to fp16, which a packed model keeps. A
    float product rounds by the shape it is given, as those of float layers do: contract 1 holds for equal shapes.

    Args:
        rank: 1 to the smaller of the two widths.
        packed: the factors are fp16 buffers, rather than fp32 parameters.

    State: ``down`` D (rank, in_features), ``up`` U (out_features, rank).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        packed: bool = False,
        device: torch.device | None = None,
    ):
        super().__init__()
        for name, shape in (("down", (rank, in_features)), ("up", (out_features, rank))):
            factor = torch.zeros(shape, dtype=torch.float16 if packed else torch.float32, device=device)
            if packed:
                self.register_buffer(name, factor)
            else:
                self.register_parameter(name, nn.Parameter(factor))
        self.observing = False
        self.valid: Tensor | None = None
        self._seen: Tensor | None = None  # (rank, in_features): the directions so far, as long as their power's root

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates in float for a number of input vectors."""
        return tokens * (2 * self.down.numel() + self.up.numel())

    def forward(self, x: Tensor, weight: Tensor | None, product: Callable[[Tensor], Tensor], dim: int = -1) -> Tensor:
        """The product of x with the float path beside it.

        Args:
            x: any float dtype, in_features long in ``dim``.
            weight: (out_features, in_features) of the layer, for while ``calibrate_`` runs; None once packed.
            product: maps the rest of x, fp32 of its shape, to a new contiguous fp32 tensor, out_features long in
                ``dim``.

        Returns:
            What ``product`` gave, the path added.
        """
        x = x.float()
        if self.observing:
            self.observe(x.detach().movedim(dim, -1), weight)
        down, up = in_half(self.down), in_half(self.up)
        if dim == -1:
            rows = x.reshape(-1, x.shape[-1])
            coordinates = rows @ down.T
            out = product(torch.addmm(rows, coordinates, down, alpha=-1).view(x.shape))
            out.view(-1, len(up)).addmm_(coordinates, up.T)
        else:  # a transposed copy takes longer than the products
            planes = _planes(x, dim)
            coordinates = torch.bmm(down.expand(len(planes), -1, -1), planes)
            rest = torch.baddbmm(planes, down.T.expand(len(planes), -1, -1), coordinates, alpha=-1)
            out = product(rest.view(x.shape))
            _planes(out, dim).baddbmm_(up.expand(len(planes), -1, -1), coordinates)
        return out

    @torch.no_grad()
    def observe(self, vectors: Tensor, weight: Tensor) -> None:
        """Start again from all inputs, fp32 (..., in_features), seen so far, padding left out, and the layer's weight.
        NaN raises."""
        check_numbers(vectors)
        tokens = valid_tokens(vectors, self.valid).reshape(-1, vectors.shape[-1]).cpu()
        rows = tokens if self._seen is None else torch.cat([self._seen, tokens])
        if not len(rows):
            return
        most = min(self.rank, *rows.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, lengths, directions = torch.svd_lowrank(rows, q=min(2 * self.rank, *rows.shape), niter=ITERATIONS)
        self._seen = (directions * lengths).T[:most]
        self.down.zero_()
        self.down[:most] = directions.T[:most]
        self.start(weight)

    @classmethod
    def beside(cls, shape: tuple[int, int], rank: int, device: torch.device | None) -> LowRank | None:
        """For a layer whose weight has a shape (out_features, in_features); None for no rank."""
        rank = min(rank, *shape)
        return cls(shape[1], shape[0], rank, device=device) if rank else None

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Make the path exact for a weight (out_features, in_features)."""
        self.up.copy_(F.linear(weight.float(), self.down))

    def extra_repr(self) -> str:
        return f"rank={self.rank}"


def _planes(x: Tensor, dim: int) -> Tensor:
    """(batch, channels, *space) or (channels, *space), the channels in ``dim`` -> (batch, channels, places)."""
    flat = x.flatten(dim + 1)
    return flat if flat.ndim == 3 else flat.unsqueeze(0)


def in_half(factor: Tensor) -> Tensor:
    """fp32, the values of ``factor`` rounded to fp16, with the gradient of no rounding."""
    if factor.dtype is torch.float16:
        return factor.float()
    return factor.float() + (factor.half().float() - factor.float()).detach()
