"""How costs are counted. One code path computes every table; a convention is the list of choices it makes.

``consistent`` counts every product once and is the default. ``paper`` reproduces Table 1 of arXiv 2311.02772 from the
same captured graph; where no reason for one of its numbers is known, the coefficient is marked as fitted
(profiling.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field

GIGA, GIBI = 1e9, 2.0**30


@dataclass(frozen=True)
class Count:
    """How often a kind of work is counted: in a float model (``whole``), and in a quantized one outside (``rest``) and
    inside (``quantized``) the quantized operations."""

    whole: float = 1.0
    rest: float = 0.0
    quantized: float = 1.0


@dataclass(frozen=True)
class Convention:
    """
    Args:
        float_bytes: of one stored float.
        vectors: learned vectors of the block's width that a quantized block of each family stores (BiT's shifts of
            queries, keys and values).
        attention: ``"dense"`` counts every pair of frames, ``"ideal"`` the pairs that a boolean mask keeps.
        bops: ``"product"``: MACs x weight bits x activation bits; ``"mac32"``: 32 a float MAC, 2 a quantized one.
        bop_unit: of printed BOPs, 1e9 or 2^30. FLOPs are printed in 1e9.
        counts: (family of the block, component) -> ``Count``; what is not listed is counted once.
        bop_counts: replaces ``counts`` for the BOPs of a float model.
        elementwise: family -> (operations a frame and channel, operations a frame and feed-forward unit) that a
            quantized block adds to the FLOPs.
        softmax_reduced: whether layers at a lower frame rate have fewer softmax operations.
        fp16_peak: time float work by MACs x 32 / (16-bit peak in 2^40), as the paper does, rather than FLOPs / 32-bit
            peak.
        fitted: what in here matches numbers without a known reason.
    """

    name: str
    float_bytes: int = 4
    vectors: dict[str, int] = field(default_factory=lambda: {"attention": 3})
    attention: str = "dense"
    bops: str = "product"
    bop_unit: float = GIGA
    counts: dict[tuple[str, str], Count] = field(default_factory=dict)
    bop_counts: dict[tuple[str, str], Count] = field(default_factory=dict)
    elementwise: dict[str, tuple[float, float]] = field(default_factory=dict)
    softmax_reduced: bool = True
    fp16_peak: bool = False
    fitted: tuple[str, ...] = ()

    def __post_init__(self):
        for key, allowed in (("attention", ("dense", "ideal")), ("bops", ("product", "mac32"))):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} must be one of {', '.join(allowed)}; got {getattr(self, key)!r}")


# Softmax, mask and dropout: operations on a (queries, keys) pair of a head. Only the paper counts them.
CONSISTENT = Convention("consistent", counts={(family, "pairs"): Count(0.0, 0.0, 0.0) for family in
                                              ("attention", "convolution", "none")})

PAPER = Convention(
    "paper",
    bops="mac32",
    bop_unit=GIBI,
    fp16_peak=True,
    softmax_reduced=False,
    counts={
        # derived: 4 operations a pair, the public profiler's formula for mask (1), softmax (2) and dropout (1)
        ("attention", "pairs"): Count(7.0, 4.0, 0.0),  # fitted: mask and softmax counted twice in the float rows
        ("convolution", "pairs"): Count(4.0, 4.0, 0.0),
        # fitted: one product of two counted twice; one of four projections, one of two products
        ("attention", "projection"): Count(1.0, 0.0, 1 / 4),
        ("attention", "product"): Count(1.5, 0.0, 1 / 2),
        # fitted: one of two feed-forward modules, no attention in the float rows; pointwise convolutions 4/3 times and
        # the depthwise one twice, and once more outside the quantized operations
        ("convolution", "feed-forward"): Count(1 / 2, 0.0, 1 / 2),
        ("convolution", "projection"): Count(0.0, 0.0, 1 / 4),
        ("convolution", "product"): Count(0.0, 0.0, 1 / 2),
        ("convolution", "pointwise"): Count(1.0, 0.0, 4 / 3),
        ("convolution", "depthwise"): Count(1.0, 1.0, 2.0),
        # fitted: the projection between front end and encoder is not counted
        ("stem", "linear"): Count(0.0, 0.0, 0.0),
    },
    # fitted: LayerNorm, activations and binarizers of a quantized block
    elementwise={"attention": (32.0, 4.0), "convolution": (79.5, 4.0)},
    fitted=(
        "how often each product is counted",
        "element-wise work of quantized layers",
        "softmax of half-rate layers at the full rate",
    ),
)

CONVENTIONS = {"consistent": CONSISTENT, "paper": PAPER}
