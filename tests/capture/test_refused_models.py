"""Models whose products cannot be found are refused with one sentence that says what to do."""

import pytest
import torch
from torch import nn

import bitquant
from bitquant.capture import CaptureError

VERBS = {
    "report": bitquant.report,
    "quantize_": lambda model, x: bitquant.quantize_(model, None, x),
    "profile": bitquant.profile,
    "sensitivity": lambda model, x: bitquant.sensitivity(model, None, [x]),
}


@pytest.fixture
def x():
    return torch.randn(2, 16)


def encoder():
    return nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(2))).eval()


def traced(x):
    return torch.jit.trace(encoder(), x)


def scripted(x):
    return torch.jit.script(encoder())


def part(x):
    return nn.Sequential(encoder(), traced(x))


def exported(x):
    return torch.export.export(encoder(), (x,)).module()


def program(x):
    return torch.export.export(encoder(), (x,))


def function(x):
    return encoder().forward


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (traced, "^the model is TorchScript, whose layers cannot be swapped: pass the Python module"),
        (scripted, "^the model is TorchScript"),
        (part, "^1 is TorchScript"),
        (exported, "^the model is a graph of torch.export, .*pass the Python module"),
        (program, "^ExportedProgram is no torch.nn.Module: pass the Python module"),
        (function, "^method is no torch.nn.Module"),
    ],
)
def test_no_python_modules(verb, make, message, x):
    with pytest.raises(CaptureError, match=message) as error:
        VERBS[verb](make(x), x)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


@pytest.mark.parametrize("verb", VERBS)
def test_weights_without_values(verb, x):
    with torch.device("meta"):
        model = encoder()
    with pytest.raises(CaptureError, match=r"^0\.0\.weight has no values, it is on the meta device: load"):
        VERBS[verb](model, x)


def test_costs_need_no_values(x):
    with torch.device("meta"):
        model = encoder()
    assert bitquant.report(model, x.to("meta")).total_macs == bitquant.report(encoder(), x).total_macs
    assert bitquant.profile(model, x.to("meta")).total == bitquant.profile(encoder(), x).total
    with pytest.raises(CaptureError, match="has no values"):
        bitquant.quantize_(model, None, x.to("meta"))


class Flex(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x):
        from torch.nn.attention.flex_attention import flex_attention

        x = self.inner(x)[None, None]
        return flex_attention(x, x, x)[0, 0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", VERBS)
def test_flex_attention(verb, x):
    with pytest.raises(CaptureError, match="^flex_attention .*use scaled_dot_product_attention"):
        VERBS[verb](nn.Sequential(Flex(), Flex()), x)


def test_long_errors_are_cut(x):
    class Broken(nn.Linear):
        def forward(self, x):
            raise RuntimeError("far too long\n" * 1000)

    with pytest.raises(CaptureError, match="does not run on example_inputs: RuntimeError: far too long") as error:
        bitquant.report(Broken(16, 16), x)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_traced_by_fx_is_fine(x):
    model = torch.fx.symbolic_trace(encoder())
    bitquant.quantize_(model, None, x)
    assert bitquant.report(model).share_quantized > 0
