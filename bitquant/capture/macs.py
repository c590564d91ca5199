"""Multiply-accumulates of a run, counted below autograd on the ATen calls themselves."""

from __future__ import annotations

import functools
import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from .errors import CaptureError

aten = torch.ops.aten

_MATRIX = {  # operator: positions of the two factors, the result's last factor dimension is summed over
    aten.mm: (0, 1),
    aten.bmm: (0, 1),
    aten.addmm: (1, 2),
    aten.baddbmm: (1, 2),
    aten.addbmm: (1, 2),
    aten._addmm_activation: (1, 2),
    aten._sparse_addmm: (1, 2),
    aten.mv: (0, 1),
    aten.addmv: (1, 2),
    aten.dot: (0, 1),
    aten.vdot: (0, 1),
    aten._int_mm: (0, 1),
    aten._scaled_mm: (0, 1),
    aten._grouped_mm: (0, 1),
}
# products whose second factor is packed in a form of its own, distances among them: each result sums over the first
# factor's last dimension
_BY_RESULT = {
    aten._cdist_forward,
    aten._euclidean_dist,
    aten._pdist_forward,
    aten.mkldnn_linear,
    aten._weight_int8pack_mm,
    aten._weight_int4pack_mm,
    aten._sparse_semi_structured_linear,
}
_RECURRENT = {aten.mkldnn_rnn_layer: slice(1, 3), aten._cudnn_rnn: 1, aten.miopen_rnn: 1}  # where their weights are
_CONVOLUTIONS = {aten.convolution, aten._convolution}
_BAGS = {aten._embedding_bag, aten._embedding_bag_forward_only}
_COUNTED = {*_MATRIX, *_BY_RESULT, *_RECURRENT, *_CONVOLUTIONS, *_BAGS, aten.conv_tbc, aten._trilinear}
# in the names of other operators that multiply
_WORDS = {"mm", "addmm", "matmul", "attention", "convolution", "linear", "lstm", "gru", "encoder"}
_PLAIN = {"prims", "prim", "c10d", "_c10d_functional", "profiler", "inductor", "bitquant"}  # no products of a model


def count(func, args, out) -> int:
    """Multiply-accumulates of one ATen call (0 for every operator that is no product)."""
    packet = func.overloadpacket
    if packet in _MATRIX:
        first, second = (args[i] for i in _MATRIX[packet])
        if packet is aten._grouped_mm and first.ndim == 2 and second.ndim == 3:
            return first.numel() * second.shape[-1]
        values = first.numel() if first.layout == torch.strided else first._nnz()
        return values * (second.shape[-1] if second.ndim > 1 else 1)
    if packet in _BY_RESULT:
        return out.numel() * args[0].shape[-1]
    if packet in _CONVOLUTIONS:
        source, weight, transposed = args[0], args[1], args[6]
        return (source if transposed else out).numel() * math.prod(weight.shape[1:])
    if packet is aten.conv_tbc:
        return out.numel() * math.prod(args[1].shape[:2])
    if packet is aten._trilinear:
        return math.prod(torch.broadcast_shapes(*map(_expanded, args[:3], args[3:6])))
    if packet in _BAGS:
        weighted = len(args) > 6 and args[6] is not None
        return args[1].numel() * args[0].shape[1] if weighted else 0
    if "scaled_dot_product" in packet.__name__ and "backward" not in packet.__name__:
        query, key, value = args[:3]
        return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    if packet in _RECURRENT:
        steps = args[0].shape[0] * args[0].shape[1]
        return steps * sum(weight.numel() for weight in args[_RECURRENT[packet]] if weight.ndim == 2)
    return 0


def _expanded(factor, dims) -> list[int]:
    """The shape of a factor with a dimension of 1 at each of `dims`."""
    shape = list(factor.shape)
    for dim in sorted(dims):
        shape.insert(dim, 1)
    return shape


@functools.cache
def _composite(func) -> bool:
    """Whether an operator is made of others: autograd takes it apart, inference mode hands it on whole."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@functools.cache
def _is_uncounted(func) -> bool:
    """Whether an operator may multiply in a way that `count` does not know."""
    if func.namespace != "aten":
        return func.namespace not in _PLAIN
    name = func.overloadpacket.__name__
    if func.overloadpacket in _COUNTED or "scaled_dot_product" in name or name.endswith("_cell"):
        return False
    return not _WORDS.isdisjoint(name.split("_"))


class MacCounter(TorchDispatchMode):
    """Counts the multiply-accumulates of everything that runs inside it.

    Compiled code runs eagerly under a dispatch mode, so that its products are counted too. `uncounted` is the number
    of calls of operators whose products cannot be seen: of other libraries, of higher order, packed or fused ones.
    """

    supports_higher_order_operators = True

    def __init__(self):
        super().__init__()
        self.total = 0
        self.uncounted = 0
        self._products = WeakIdKeyDictionary()  # tensor -> (shapes of) the two factors it is the product of

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            if "flex_attention" in str(func):
                raise CaptureError(
                    "flex_attention compiles its products, so that they cannot be found: use "
                    "scaled_dot_product_attention, in transformers model.set_attn_implementation('sdpa')"
                )
            self.uncounted += 1
            return func(*args, **kwargs)
        if _composite(func) and "scaled_dot_product" not in func.name():
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self.total += count(func, args, out) + self._summed(func, args, out)
        self.uncounted += _is_uncounted(func)
        return out

    def _summed(self, func, args, out) -> int:
        """Multiply-accumulates of the sum of a product that was taken element by element, as by `vecdot`."""
        packet = func.overloadpacket
        if packet is aten.mul and all(isinstance(a, torch.Tensor) and a.is_floating_point() for a in args):
            self._products[out] = [(1,) * (out.ndim - a.ndim) + tuple(a.shape) for a in args]
        elif packet is aten.sum and args[0] in self._products:
            dims = args[1] if len(args) > 1 and args[1] else range(args[0].ndim)
            if any(all(shape[dim] > 1 for shape in self._products[args[0]]) for dim in dims):
                return args[0].numel()
        return 0
