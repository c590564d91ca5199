"""From what torch's exporter gives to the file: functions, names, versions, and nothing that only torch reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from onnx import ModelProto, NodeProto, helper
from torch import Tensor

from bitquant.onnx.emit import LAYER
from bitquant.onnx.functions import DOMAIN, OPSET, VERSION, functions

IR_VERSION = 10


def finish_(model: ModelProto) -> None:
    """Add the functions that the nodes call, name nodes after modules and dimensions after inputs, in place."""
    _name_layers(model)
    _name_dimensions(model)
    for holder in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer, model.graph):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    model.graph.ClearField("value_info")
    model.ClearField("metadata_props")
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "bitquant", ""
    del model.functions[:], model.opset_import[:]
    model.functions.extend(functions(sorted({node.op_type for node in layers(model)})))
    model.opset_import.extend([helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)])


def layers(model: ModelProto) -> list[NodeProto]:
    """The nodes that stand for packed layers, in the order of the graph."""
    return [node for node in model.graph.node if node.domain == DOMAIN]


def layers_alone(model: ModelProto, values: Mapping[str, list[Tensor]]) -> ModelProto:
    """The nodes of all layers side by side, each with inputs of its own, ``node/position``, of the types of ``values``
    by node, and an output, ``node``; what a node reads from an initializer stays one."""
    kept = {tensor.name: tensor for tensor in model.graph.initializer}
    replay = ModelProto()
    replay.CopyFrom(model)
    for field in ("node", "input", "output", "initializer", "value_info"):
        replay.graph.ClearField(field)
    used = set()
    for node in layers(model):
        copy = replay.graph.node.add()
        copy.CopyFrom(node)
        for position, name in enumerate(node.input):
            if name in kept:
                used.add(name)
            elif name:
                copy.input[position] = f"{node.name}/{position}"
                kind = helper.np_dtype_to_tensor_dtype(values[node.name][position].numpy().dtype)
                replay.graph.input.append(helper.make_tensor_value_info(copy.input[position], kind, None))
        copy.output[0] = node.name
        replay.graph.output.add().name = node.name
    replay.graph.initializer.extend(kept[name] for name in sorted(used))
    return replay


def _name_layers(model: ModelProto) -> None:
    seen: Counter[str] = Counter()
    for node in layers(model):
        name = next(attribute.s.decode() for attribute in node.attribute if attribute.name == LAYER)
        kept = [attribute for attribute in node.attribute if attribute.name != LAYER]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.name = f"{name}:{seen[name]}" if seen[name] else name  # a layer that runs twice is two nodes
        seen[name] += 1


def _name_dimensions(model: ModelProto) -> None:
    """Symbols of torch -> ``batch`` for the first dimension of every input, ``input.dimension`` for the others."""
    names: dict[str, str] = {}
    for value in model.graph.input:
        for index, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.dim_param:
                names.setdefault(dimension.dim_param, f"{value.name}.{index}" if index else "batch")
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = re.sub(r"\w+", lambda m: names.get(m[0], m[0]), dimension.dim_param)
