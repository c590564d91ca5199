"""What discovery reports: one `Site` per product of a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from .parameters import TRANSPOSED, WHOLE

UNCOUNTED = "an operator whose products cannot be counted"  # a site's reason


@dataclass
class Site:
    """One product (linear, convolution, attention, matmul, ...) of a model.

    Args:
        path (str): module path of a linear, convolution or embedding, else owner path + "." + child name.
        owner (str): path of the module whose own forward issues the product.
        name (str): name of the child that stands for a functional product ("bit_attention_0"), "" for modules.
        kind (str): "linear", "conv1d", "conv2d", "conv3d", "embedding" for modules; "attention", "matmul", "einsum",
            "linear_fn", "conv1d_fn", ... for functional products; the function's name for any other.
        role (str): "weight" (a module's), "attention", "qk", "pv", "relative-position", "parameter" (one operand is a
            parameter), "constant" (no operand depends on the model's input) or "unknown".
        shapes (tuple): operand shapes of the first call, in the order of the child's signature.
        macs (int): multiply-accumulates of all calls in one run, counted at ATen level.
        calls (int): calls in one run.
        nonnegative (tuple[bool, ...]): per operand, whether it is non-negative by construction (softmax, ReLU, ...).
        dynamic (tuple[bool, ...]): per operand, whether it depends on the model's input.
        parameters (tuple[str | None, ...]): per operand, path of the parameter it is (or is a view of).
        form (str | None): of the parameter that is the second operand: "whole", "transposed", or "part" for any other
            view, and where the calls of a run disagree.
        shares_input (str | None): path of an earlier site that reads the very same first operand.
        score_bias (bool): attention only: the mask holds values other than 0 and <= -1e4.
        traced (str | None): "module", "fx" or "fall-back"; None while or because it is not rewritten.
        reason (str | None): why the product cannot be rewritten, or why its owner falls back.
    """

    path: str
    owner: str
    name: str
    kind: str
    role: str
    shapes: tuple = ()
    macs: int = 0
    calls: int = 0
    nonnegative: tuple = ()
    dynamic: tuple = ()
    parameters: tuple = ()
    form: str | None = None
    shares_input: str | None = None
    score_bias: bool = False
    traced: str | None = None
    reason: str | None = None

    @property
    def functional(self) -> bool:
        """Whether a child can stand for the product (it is neither a module's own nor out of reach)."""
        return bool(self.name)

    @property
    def out_of_reach(self) -> bool:
        """Whether neither a layer nor a child can stand for the product."""
        return self.traced is None and not self.functional

    @property
    def by_parameter(self) -> bool:
        """Whether a functional product has a parameter, or a part of one, among its operands."""
        return self.functional and self.kind != "attention" and any(self.parameters)

    @property
    def by_matrix(self) -> bool:
        """Whether it is the product of an input with a whole matrix parameter of its owner, transposed or not."""
        product = self.kind in ("linear_fn", "matmul") and self.parameters[:1] == (None,) and len(self.shapes[1]) == 2
        return product and self.form in (WHOLE, TRANSPOSED) and len(self.shapes[0]) > 1


@dataclass
class Discovery:
    """The products of one run of a model.

    Args:
        sites (list[Site]): in call order.
        total_macs (int): all multiply-accumulates of the run at ATen level, whoever issued them.
        readers (dict[str, set[str]]): parameter -> paths of the sites that multiply by it as their second operand, and
            "" where anything else reads it; tied parameters are one, under their first name.
        never_called (dict[str, str]): layers that multiply (or look up) and did not run, with the reason.
    """

    sites: list[Site] = field(default_factory=list)
    total_macs: int = 0
    never_called: dict[str, str] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)

    @property
    def seen_macs(self) -> int:
        """Multiply-accumulates of sites that can be rewritten."""
        return sum(site.macs for site in self.sites if site.traced == "module" or site.functional)
