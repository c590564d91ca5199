"""Geometries, tensors and processes that no kernel can serve are refused with a sentence, or served on one thread."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from bitquant import QuantConfig, ops
from bitquant.capture import mutate_class_
from bitquant.nn import BitConv
from bitquant.ops import library
from bitquant.packed import PackedConv

BACKENDS = [name for name in ("native", "naive") if name == "naive" or library.unavailable_reason() is None]

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def convolution(random, **changes):
    lanes = random.weight(3, 8)[1]
    sizes = {"out_channels": 3, "kernel_size": [2, 2], "stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1]}
    call = {"x": random.floats(1, 2, 5, 5), "offset": torch.zeros(1), "step": None, "bits": 1, "signed": True}
    call |= {"lanes": lanes, **sizes, "groups": 1, "scale": torch.ones(1), "bias": None}
    return ops.convolution(**(call | changes))


@pytest.mark.parametrize("number", [0, -1, 2**31, 2**60, 2**62, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation", "groups", "out_channels"])
def test_numbers_out_of_bounds(backend, random, name, number):
    if name == "padding" and number == 0:
        return
    pairs = {"kernel_size": 2, "stride": 2, "dilation": 2, "padding": 4}
    with ops.use_backend(backend), pytest.raises(ValueError) as raised:
        convolution(random, **{name: [1] * (pairs[name] - 1) + [number] if name in pairs else number})
    assert len(str(raised.value)) < 300


def test_a_padded_plane_out_of_bounds(backend, random):
    with ops.use_backend(backend), pytest.raises(ValueError, match="too large"):
        convolution(random, padding=[2**16] * 4)


@pytest.mark.parametrize("name", ["stride", "dilation"])
def test_the_largest_step(backend, random, name):
    kernel = {"kernel_size": [1, 1], "lanes": random.weight(3, 2)[1]} if name == "dilation" else {}
    with ops.use_backend(backend):
        assert convolution(random, **kernel, **{name: [2**31 - 1, 2**31 - 1]}).shape == (
            (1, 3, 5, 5) if name == "dilation" else (1, 3, 1, 1)
        )


def emptied(offset):
    x = torch.zeros(offset + 8)[offset:]
    x.untyped_storage().resize_(0)
    return x.view(1, 8)


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("kind", ["zero", "emptied", "emptied behind an offset", "meta x", "meta weight"])
def test_tensors_without_memory(backend, random, kind, bound):
    x, lanes = random.floats(1, 8), random.weight(3, 8)[1]
    if kind == "zero":
        x = torch._efficientzerotensor((1, 8))
    elif kind.startswith("emptied"):
        x = emptied(4 if "offset" in kind else 0)
    elif kind == "meta x":
        x = x.to("meta")
    else:
        lanes = lanes.to("meta")
    wanted = "one device" if "meta" in kind else "has no memory"
    with ops.use_backend(backend), torch.no_grad(), pytest.raises(ValueError, match=wanted):
        rest = torch.zeros(1), None, lanes, torch.ones(1), None
        if bound and ops.BoundLinear(8, 3, 1, True)(x, *rest) is not None:
            return
        ops.binary_linear(x, rest[0], False, lanes, 3, *rest[3:])


@pytest.mark.parametrize("space", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3, 7])
def test_one_channel_and_a_stride_beyond_the_input(backend, random, space, stride):
    """Torch's own convolution is wrong there for an input that lies as channels last."""
    shape = (2, 1, *[3] * space)
    bits, lanes = random.weight(4, 2**space)
    plain = random.floats(*shape)
    numbers = [2] * space, [stride] * space, [0, 0] * space, [1] * space, 1
    strides = [1, 1, *([3, 1] if space == 2 else [1])]
    strides[0] = 3**space
    x = plain.as_strided(shape, strides)
    rest = torch.zeros(1), None, 1, True, lanes, 4, *numbers, torch.ones(1), None
    signs, weight = torch.where(plain >= 0, 1.0, -1.0), torch.where(bits, 1.0, -1.0)
    places = range(0, 2, stride)
    windows = [signs[:, 0, i : i + 2, j : j + 2] for i in places for j in places] if space == 2 else []
    windows = windows or [signs[:, 0, i : i + 2] for i in places]
    expected = torch.stack([window.flatten(1) @ weight.T for window in windows], -1)
    with ops.use_backend(backend):
        assert torch.equal(ops.convolution(x, *rest).flatten(2), expected)


def test_training_gives_what_packed_gives_there(backend):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(1, 4, 2, stride=7)
    mutate_class_(layer, BitConv)
    layer.add_quantizers(QuantConfig.preset("bit-plus"), nonnegative=False)
    layer.input_quantizer.alpha.data.fill_(0.8)
    x = torch.randn(2, 1, 3, 3)
    x = x.as_strided(x.shape, (9, 1, 3, 1))
    with torch.no_grad(), ops.use_backend(backend):
        assert torch.equal(layer(x), layer(x.contiguous()))
        assert torch.equal(PackedConv.from_trained(layer)(x), layer(x))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_answers(backend):
    program = f"""
import os, torch
from bitquant import ops, packing
torch.set_num_threads(2)
x, bits = torch.randn(512, 1024), torch.rand(512, 1024) < 0.5
lanes = packing.to_lanes(packing.to_words(packing.pack_bits(bits), 1024))
def call():
    with ops.use_backend({backend!r}):
        return ops.binary_linear(x, torch.zeros(1), False, lanes, 512, torch.ones(1), None)
expected = call()
child = os.fork()
if not child:
    os._exit(0 if torch.equal(call(), expected) and torch.get_num_threads() == 1 else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, said = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the forked process hangs")
    assert process.returncode == 0, said
    assert "forked" in said
