"""Names of what goes into and comes out of an exported file."""

from __future__ import annotations

from typing import Any

from bitquant.inputs import named_tensors


def output_names(output: Any) -> list[str]:
    """Names of the tensors in an output: ``last_hidden_state``, ``states.0``; a number alone is ``output.0``."""
    names = list(named_tensors(output))
    return [f"output.{name}" if name[:1].isdigit() else name or "output" for name in names]


def name_values_(model, inputs: list[str], outputs: list[str]) -> None:
    """Give a file's inputs and outputs these names, in place; an output that is named like an input is ``output.name``,
    and any other value of such a name gets another.

    Args:
        model (onnx_ir.Model): of torch's exporter. inputs, outputs: one name each.
    """
    from onnx_ir.passes.common import NameFixPass

    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = f"output.{name}" if name in inputs else name
    NameFixPass()(model)
