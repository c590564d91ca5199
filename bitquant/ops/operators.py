"""The binary products as torch operators (``torch.ops.bitquant.*``), with fake kernels for compile and export; what
they compute and take is said by the functions of ``bitquant.ops`` that call them."""

from __future__ import annotations

import torch

from ..packing import words_for
from . import checks, dispatch, naive
from .checks import output_size
from .direct import is_direct

_library = torch.library.Library("bitquant", "DEF")


def _operator(schema: str, check, fake):
    """Define one op whose kernels are the functions of that name in ``naive`` and in a device's current backend,
    and return what calls it: past torch's dispatcher where nothing there looks on."""
    name = schema.partition("(")[0]
    definition = getattr(naive, name)

    def on_any_device(*args):
        check(*args)
        return definition(*args)

    def on(device):
        def kernel(*args):
            checks.memory(args)
            check(*args)
            return getattr(dispatch.current(device), name, definition)(*args)

        return kernel

    def dispatched(kernel):
        def of_one_device(*args):
            checks.one_device(args)
            return kernel(*args)

        return of_one_device

    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, dispatched(on_any_device), "CompositeExplicitAutograd")
    on_cpu = on("cpu")
    _library.impl(name, dispatched(on_cpu), "CPU")
    _library.impl(name, dispatched(on("cuda")), "CUDA")
    torch.library.register_fake(f"bitquant::{name}", dispatched(fake), lib=_library)
    operator = getattr(torch.ops.bitquant, name).default

    def call(*args):  # what is direct is on one device
        return (on_cpu if is_direct(args) else operator)(*args)

    return call


threshold_pack = _operator(
    "threshold_pack(Tensor x, Tensor threshold, bool strict) -> (Tensor, Tensor)",
    lambda x, threshold, strict: checks.threshold_pack(x, threshold),
    lambda x, threshold, strict: (
        x.new_empty((*x.shape[:-1], words_for(x.shape[-1])), dtype=torch.int32),
        x.new_empty(x.shape[:-1], dtype=torch.int32),
    ),
)
binary_linear = _operator(
    "binary_linear(Tensor x, Tensor threshold, bool strict, Tensor lanes, int out_features, Tensor scale, Tensor? bias)"
    " -> Tensor",
    lambda x, threshold, strict, *weight: checks.binary_linear(x, threshold, *weight),
    lambda x, threshold, strict, lanes, out_features, scale, bias: x.new_empty((*x.shape[:-1], out_features)),
)
linear_of_bits = _operator(
    "linear_of_bits(Tensor words, int features, bool strict, Tensor lanes, int out_features, Tensor scale,"
    " Tensor? bias) -> Tensor",
    lambda words, features, strict, *weight: (checks.words(words, features), checks.weight(features, *weight)),
    lambda words, features, strict, lanes, out_features, scale, bias: scale.new_empty(
        (*words.shape[:-1], out_features)
    ),
)
bits_of_linear = _operator(
    "bits_of_linear(Tensor words, int features, bool strict, Tensor lanes, int out_features, Tensor scale,"
    " Tensor? bias, bool relu, Tensor next_threshold, bool next_strict) -> Tensor",
    lambda words, features, strict, lanes, out_features, scale, bias, relu, next_threshold, next_strict: (
        checks.words(words, features),
        checks.weight(features, lanes, out_features, scale, bias),
        checks.vector(next_threshold, out_features, "next_threshold"),
    ),
    lambda words, features, strict, lanes, out_features, *rest: words.new_empty(
        (*words.shape[:-1], words_for(out_features))
    ),
)
integer_linear = _operator(
    "integer_linear(Tensor x, Tensor offset, Tensor? step, int bits, bool signed, Tensor lanes, int out_features,"
    " Tensor scale, Tensor? bias) -> Tensor",
    lambda x, offset, step, bits, signed, *weight: (
        checks.binary_linear(x, offset, *weight),
        checks.quantizer(bits, step, x.shape[-1]),
    ),
    lambda x, offset, step, bits, signed, lanes, out_features, scale, bias: x.new_empty((*x.shape[:-1], out_features)),
)
convolution = _operator(
    "convolution(Tensor x, Tensor offset, Tensor? step, int bits, bool signed, Tensor lanes, int out_channels,"
    " int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, Tensor scale, Tensor? bias)"
    " -> Tensor",
    checks.convolution,
    lambda x, offset, step, bits, signed, lanes, out_channels, *geometry: x.new_empty(
        (x.shape[0], out_channels, *output_size(x.shape[2:], *geometry[:4]))
    ),
)
binary_attention_rowmax = _operator(
    "binary_attention_rowmax(Tensor q, Tensor k, Tensor v, Tensor? keep, Tensor margin, Tensor scale) -> Tensor",
    lambda q, k, v, keep, margin, scale: (checks.binary_attention(q, k, v, keep, scale), checks.rowmax(margin)),
    lambda q, k, v, keep, margin, scale: q.new_empty((*q.shape[:3], v.shape[3])),
)
binary_attention_table = _operator(
    "binary_attention_table(Tensor q, Tensor k, Tensor v, Tensor? keep, Tensor table, Tensor ratio, Tensor scale)"
    " -> Tensor",
    lambda q, k, v, keep, table, ratio, scale: (
        checks.binary_attention(q, k, v, keep, scale),
        checks.table(table, ratio, q.shape[3]),
    ),
    lambda q, k, v, keep, table, ratio, scale: q.new_empty((*q.shape[:3], v.shape[3])),
)
embedding = _operator(
    "embedding(Tensor indices, Tensor packed, int bits, int dim, Tensor scale) -> Tensor",
    checks.embedding,
    lambda indices, packed, bits, dim, scale: scale.new_empty((*indices.shape, dim)),
)
