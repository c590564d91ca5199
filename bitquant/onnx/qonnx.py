"""The QONNX flavour: BipolarQuant and Quant nodes around float products, as FPGA tools (FINN, hls4ml) read them.

Weights are fp32 signs, so the file is as large as the float model's. Levels are the same as in the standard file, and
float products of levels are exact, so the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, inliner, numpy_helper
from torch import nn

from bitquant import packing
from bitquant.onnx.export import build
from bitquant.onnx.functions import OPSET, TEXTS, functions
from bitquant.onnx.graph import layers

QONNX = "qonnx.custom_op.general"

_MASK = """
        removed = Constant <value_float: float = -1073741824.0> ()
        scores = Where (keep, all, removed)"""
_ATTENTION = f"""{{
        one = Constant <value_float: float = 1.0> ()
        half = Constant <value_float: float = 0.5> ()
        last = Constant <value_ints: ints = [-1]> ()
        floor = Constant <value_float: float = -268435456.0> ()
        queries = {QONNX}.BipolarQuant (q, one)
        key_signs = {QONNX}.BipolarQuant (k, one)
        values = {QONNX}.BipolarQuant (v, one)
        keys = Transpose <perm: ints = [0, 1, 3, 2]> (key_signs)
        %s = MatMul (queries, keys)%s
        best = ReduceMax <keepdims: int = 1> (scores, last)
        distance = Cast <to: int = 1> (margin)
        reach = Sub (best, distance)
        threshold = Max (reach, floor)
        above = Sub (scores, threshold)
        near = {QONNX}.BipolarQuant (above, one)
        raised = Add (near, one)
        taken = Mul (raised, half)
        total = MatMul (taken, values)
        number = ReduceSum <keepdims: int = 1> (taken, last)
        count = Max (number, one)
        mean = Div (total, count)
        y = Mul (mean, scale)
    }}"""
_ATTENTIONS = {
    "BinaryAttention": "(q, k, v, margin, scale) => (y) " + _ATTENTION % ("scores", ""),
    "MaskedBinaryAttention": "(q, k, v, keep, margin, scale) => (y) " + _ATTENTION % ("all", _MASK),
}


def build_qonnx(model: nn.Module, inputs: Mapping[str, Any], *, dynamic: Any = True) -> ModelProto:
    """The file of a packed model in this flavour; arguments and errors as for ``export.build``."""
    _, proto = build(model, inputs, dynamic=dynamic)
    texts = {**TEXTS, **_ATTENTIONS}
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    for number, node in enumerate(layers(proto)):
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type.endswith(("Linear", "Conv1d", "Conv2d")):
            packed = list(node.input)[-3]
            proto.graph.initializer.append(_float_signs(weights[packed], node, settings))
            node.input[len(node.input) - 3] = proto.graph.initializer[-1].name
            texts[f"Layer{number}"] = _weight_layer(node.op_type, settings)
            node.op_type = f"Layer{number}"
            del node.attribute[:]
    del proto.functions[:]
    found = functions(sorted({node.op_type for node in layers(proto)}), texts)
    for function in found:
        function.opset_import.append(helper.make_opsetid(QONNX, 1))
    proto.functions.extend(found)
    proto.opset_import.append(helper.make_opsetid(QONNX, 1))
    proto = inliner.inline_local_functions(proto)
    used = {name for node in proto.graph.node for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:], proto.opset_import[:]
    proto.graph.initializer.extend(kept)
    proto.opset_import.extend([helper.make_opsetid("", OPSET), helper.make_opsetid(QONNX, 1)])
    checker.check_model(proto)
    return proto


def _float_signs(packed: TensorProto, node: NodeProto, settings: Mapping[str, Any]) -> TensorProto:
    """Signs of a weight as fp32: (K, N) of a linear layer, (N, C / G, *kernel) of a convolution."""
    bits = packing.unpack_bits(torch.from_numpy(numpy_helper.to_array(packed).copy()), settings["columns"])
    signs = bits.float() * 2 - 1
    if "kernel_shape" in settings:
        signs = signs.view(len(signs), *settings["kernel_shape"], -1).movedim(-1, 1)
    else:
        signs = signs.T
    return numpy_helper.from_array(np.ascontiguousarray(signs.numpy()), f"{node.name}.signs")


def _weight_layer(kind: str, settings: Mapping[str, Any]) -> str:
    """The body of one linear or convolution layer."""
    space = range(1, 1 + len(settings.get("kernel_shape", ())))
    axes = f"axes = Constant <value_ints: ints = {list(space)}> ()" if space else ""
    wide = (lambda name: f"Unsqueeze ({name}, axes)") if space else (lambda name: f"Identity ({name})")
    signed = settings["zero_point"] > 0
    if kind.startswith("Binary"):
        names = "x, threshold"
        lines = [f"offset = {wide('threshold')}", "above = Sub (x, offset)"]
        lines.append(f"{'levels' if signed else 'signs_of_x'} = {QONNX}.BipolarQuant (above, one)")
        if not signed:
            lines += ["raised = Add (signs_of_x, one)", "levels = Mul (raised, half)"]
    else:
        names, bits = "x, shift, step", (settings["top"] + 1).bit_length() - 1
        lines = [
            f"width = Constant <value_float: float = {bits}.0> ()",
            f"offset = {wide('shift')}",
            "shifted = Add (x, offset)",
            "units = Div (shifted, step)",
            f'levels = {QONNX}.Quant <signed: int = {int(signed)}, narrow: int = 0, rounding_mode: string = "ROUND"> '
            "(units, one, zero, width)",
        ]
    product = "MatMul (levels, weight)"
    if space:
        lines += [
            "channels = Constant <value_ints: ints = [1]> ()",
            "magnitude = ReduceL1 <keepdims: int = 1> (x, channels)",
            "some = Greater (magnitude, zero)",
            "present = Cast <to: int = 1> (some)",
            "counted = Mul (levels, present)",
        ]
        geometry = ", ".join(
            f"{name}: {'int' if name == 'group' else 'ints'} = {value}"
            for name, value in settings.items()
            if name in ("group", "kernel_shape", "strides", "pads", "dilations")
        )
        product = f"Conv <{geometry}> (counted, weight)"
    body = "\n".join(lines)
    return f"""({names}, signs, scale, bias) => (y) {{
        one = Constant <value_float: float = 1.0> ()
        zero = Constant <value_float: float = 0.0> ()
        half = Constant <value_float: float = 0.5> ()
        {axes}
        {body}
        weight = {QONNX}.BipolarQuant (signs, one)
        sums = {product}
        scales = {wide("scale")}
        biases = {wide("bias")}
        scaled = Mul (sums, scales)
        y = Add (scaled, biases)
    }}"""
