"""The model-local functions of an exported file: every packed layer in standard operators of opset 20.

A runtime inlines them and folds what does not depend on the input when it loads the file; one that has a kernel of the
same domain and name may run that instead. ``MatMulInteger(uint8, int8)`` is the one exact product that is fast
everywhere; what was compared is in reference/onnx.md 6.2 to 6.4. The texts call each other; a file gets them flat, as
ONNX Runtime 1.23 does not infer types through nested functions.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import AttributeProto, FunctionProto, NodeProto, parser

from . import attention, convolutions, layers, levels, products

DOMAIN, VERSION, OPSET = "bitquant", 1, 20

TEXTS = {**levels.TEXTS, **layers.TEXTS, **convolutions.TEXTS, **attention.TEXTS, **products.TEXTS}


def functions(names: Iterable[str], texts: dict[str, str] = TEXTS) -> list[FunctionProto]:
    """The named functions, with what they call put in its place."""
    made = []
    for name in names:
        function = _parsed(name, texts)
        same = {value: value for value in (*function.input, *function.output)}
        nodes = _expanded(function, texts, "", same, None)
        del function.node[:], function.opset_import[1:]
        function.node.extend(nodes)
        made.append(function)
    return made


def _parsed(name: str, texts: dict[str, str]) -> FunctionProto:
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}, "{DOMAIN}" : {VERSION}]>'
    return parser.parse_function(f"{head}\n{name} {texts[name]}")


def _expanded(
    function: FunctionProto,
    texts: dict[str, str],
    prefix: str,
    values: dict[str, str],
    given: dict[str, AttributeProto] | None,
) -> list[NodeProto]:
    """The body of ``function`` with its inputs and outputs called as ``values`` says, all else behind ``prefix``.

    ``given``: what the caller sets each attribute to; None for the function of the file, whose own stay.
    """
    nodes = []
    for node in function.node:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [values.get(name, prefix + name) for name in node.input]
        copy.output[:] = [values.get(name, prefix + name) for name in node.output]
        for attribute in copy.attribute:
            if given is not None and attribute.ref_attr_name:
                bound = given[attribute.ref_attr_name]
                name = attribute.name
                attribute.CopyFrom(bound)
                attribute.name = name
        if node.domain != DOMAIN:
            nodes.append(copy)
            continue
        called = _parsed(node.op_type, texts)
        inner = dict(zip((*called.input, *called.output), (*copy.input, *copy.output), strict=True))
        settings = {attribute.name: attribute for attribute in copy.attribute}
        nodes += _expanded(called, texts, f"{prefix}{node.output[0]}.", inner, settings)
    return nodes
