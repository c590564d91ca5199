"""What a user would run in place of a packed encoder: the float model in bf16, in int8, and in ONNX Runtime."""

import copy
import logging
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from benchmarks.timing import int8_layer

ONNX_RUNTIME = find_spec("onnxruntime") is not None and find_spec("onnxscript") is not None
MISSING = 'ONNX Runtime is not installed and left out: pip install -c constraints.txt ".[onnx]"'


class Int8Linear(nn.Module):
    """A linear layer through ``int8_layer``: (..., K) -> (..., N)."""

    def __init__(self, linear):
        super().__init__()
        self.features, self.layer = linear.out_features, int8_layer(linear.weight, linear.bias)

    def forward(self, x):
        return self.layer(x.flatten(0, -2)).view(*x.shape[:-1], self.features)


class InBfloat16(nn.Module):
    """A model in bf16, with fp32 in and out."""

    def __init__(self, model):
        super().__init__()
        self.model = copy.deepcopy(model).bfloat16()

    def forward(self, x):
        return self.model(x.bfloat16()).float()


def in_int8(model):
    """A copy whose linear layers are int8; attention stays in fp32, as in torch's dynamic quantization."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
    return model


def in_onnx_runtime(model, x):
    """Calls of the model in ONNX Runtime on ``torch.get_num_threads()`` threads: fp32, and dynamic int8 by its own
    quantizer. Empty where it is not installed."""
    if not ONNX_RUNTIME:
        return {}
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from bitquant.onnx.runtime import Session

    logging.disable(logging.WARNING)  # both libraries are talkative
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("fp32", "int8")}
        torch.onnx.export(model, (x,), files["fp32"], input_names=["x"], dynamo=True, verbose=False,
                          external_data=False)  # fmt: skip
        quantize_dynamic(files["fp32"], files["int8"], weight_type=QuantType.QInt8)
        logging.disable(logging.NOTSET)
        sessions = {name: Session(file.read_bytes(), torch.get_num_threads()) for name, file in files.items()}
    return {f"ORT {name}": (lambda s=session: s({"x": x})) for name, session in sessions.items()}


def rivals(model, x):
    """Name -> call of the float model on x fp32, in every form that runs here."""
    torch_forms = {"fp32": model, "bf16": InBfloat16(model), "int8": in_int8(model)}
    return {name: (lambda m=form: m(x)) for name, form in torch_forms.items()} | in_onnx_runtime(model, x)
