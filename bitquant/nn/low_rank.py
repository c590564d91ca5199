"""LowRank: a narrow float path beside a quantized product, for the few directions in which most of its input lies."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitquant.masks import valid_tokens
from bitquant.nn.exact import exact
from bitquant.quantizers import OptionalState

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
        self.packed = packed
        down = torch.eye(rank, in_features, dtype=torch.float32, device=device)
        up = torch.zeros(out_features, rank, dtype=torch.float32, device=device)
        for name, factor in (("down", down), ("up", up)):
            if packed:
                self.register_buffer(name, factor.half())
            else:
                self.register_parameter(name, nn.Parameter(factor))
        self.observing = False
        self.valid: Tensor | None = None
        self._seen: Tensor | None = None  # (rank, in_features): the directions so far, as long as their power's root

    @classmethod
    def beside(cls, shape: tuple[int, int], rank: int, device: torch.device | None) -> LowRank | None:
        """For a layer whose weight has a shape (out_features, in_features); None for no rank."""
        rank = min(rank, *shape)
        return cls(shape[1], shape[0], rank, device=device) if rank else None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates in float for a number of input vectors."""
        return tokens * (2 * self.down.numel() + self.up.numel())

    def forward(
        self,
        x: Tensor,
        product: Callable[[Tensor], Tensor],
        weight: Callable[[], Tensor] | None = None,
        dim: int = -1,
    ) -> Tensor:
        """The product of x with the float path beside it.

        Args:
            x: any float dtype, in_features long in ``dim``.
            product: maps the rest of x, fp32 of its shape, to a new contiguous fp32 tensor, out_features long in
                ``dim``.
            weight: gives the layer's (out_features, in_features), for while ``calibrate_`` runs; None once packed.

        Returns:
            What ``product`` gave, the path added, in the dtype of x.
        """
        # what is packed has no gradient: its bits cannot follow one
        with exact(x), torch.set_grad_enabled(torch.is_grad_enabled() and not self.packed):
            floats = x.float()
            if self.observing:
                self.observe(floats.detach().movedim(dim, -1), weight())
            down, up = in_half(self.down), in_half(self.up)
            if dim == -1:
                rows = floats.reshape(-1, x.shape[-1])
                coordinates = rows @ down.T
                out = product(torch.addmm(rows, coordinates, down, alpha=-1).view(x.shape))
                out.view(-1, out.shape[-1]).addmm_(coordinates, up.T)
            else:  # channels first: a transposed copy would take longer than the products
                planes = _planes(floats, dim)
                batch = planes.shape[0]  # not len, which is a constant to torch.export
                coordinates = torch.bmm(down.expand(batch, -1, -1), planes)
                rest = torch.baddbmm(planes, down.T.expand(batch, -1, -1), coordinates, alpha=-1)
                out = product(rest.view(x.shape))
                _planes(out, dim).baddbmm_(up.expand(batch, -1, -1), coordinates)
            return out.to(x.dtype)

    @torch.no_grad()
    def observe(self, vectors: Tensor, weight: Tensor) -> None:
        """Start again from all inputs, fp32 (..., in_features), seen so far, padding left out, and the layer's weight.

        ValueError: an input is NaN or infinite.
        """
        tokens = valid_tokens(vectors, self.valid).reshape(-1, vectors.shape[-1]).cpu()
        if not bool(torch.isfinite(tokens).all()):
            raise ValueError("a layer is given NaN or infinity: calibration needs finite numbers")
        rows = tokens if self._seen is None else torch.cat([self._seen, tokens])
        if len(rows):
            directions, lengths = _principal(rows, self.rank)
            self._seen = (directions * lengths).T
            self.down.copy_(directions.T)
            self.reset(weight)

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        """Make the path exact for a weight (out_features, in_features), or one of a pointwise convolution."""
        self.up.copy_(F.linear(weight.flatten(1).float(), self.down))

    @torch.no_grad()
    def take(self, trained: LowRank) -> None:
        """The factors of a trained path, in fp16. ValueError when one does not fit."""
        for mine, factor in ((self.down, trained.down), (self.up, trained.up)):
            mine.copy_(factor)
            if not bool(torch.isfinite(mine).all()):
                raise ValueError("a float path's factor is too large for fp16: training diverged, it cannot be packed")

    def extra_repr(self) -> str:
        return f"rank={self.rank}"


def _principal(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Orthonormal directions (features, rank) that hold most of the power of rows (count, features), and the root of
    the power in each; with fewer rows than ``rank`` the other directions hold none. The same for the same rows."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        _, lengths, directions = torch.svd_lowrank(rows, q=min(2 * rank, *rows.shape), niter=ITERATIONS)
        lengths, directions = lengths[:rank], directions[:, :rank]
        if (missing := rank - len(lengths)) > 0:
            others = torch.randn(rows.shape[1], missing, dtype=rows.dtype)
            others -= directions @ (directions.T @ others)
            directions = torch.cat([directions, torch.linalg.qr(others).Q], dim=1)
            lengths = F.pad(lengths, (0, missing))
    return directions, lengths


def _planes(x: Tensor, dim: int) -> Tensor:
    """(batch, channels, *space) or (channels, *space), the channels in ``dim`` -> (batch, channels, places)."""
    flat = x.flatten(dim + 1)
    return flat if flat.ndim == 3 else flat.unsqueeze(0)


def in_half(factor: Tensor) -> Tensor:
    """fp32, the values of ``factor`` rounded to fp16, with the gradient of no rounding."""
    if factor.dtype is torch.float16:
        return factor.float()
    return factor.float() + (factor.half().float() - factor.float()).detach()
