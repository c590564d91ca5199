"""Many families of encoders at W1A1: everything in the encoder binarized, trainable, packed to the same bits, rebuilt
from their structure."""

import copy
import json

import encoder_zoo
import pytest
import torch
from torch.utils import _pytree as pytree

import bitquant
from bitquant.inputs import run
from bitquant.metadata import FORMAT_VERSION, METHOD, check_metadata
from bitquant.packed import restore_, structure

RUNS = [(name, "bit-plus") for name in encoder_zoo.NAMES]
RUNS += [(name, "bit-ref") for name in ("hubert", "bert-eager", "swin", "wav2vec2-conformer", "nn-transformer-encoder")]
# what an encoder layer may hold that has no 1-bit form worth having
ALLOWED = {"position or type embedding"}


def outputs(model, call):
    with torch.no_grad():
        output = run(model, call)
    leaves = pytree.tree_leaves(output.to_tuple() if hasattr(output, "to_tuple") else output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("name", "preset"), RUNS, ids=lambda value: value)
def test_one_bit(name, preset):
    teacher, calls = encoder_zoo.build(name)
    student = copy.deepcopy(teacher)
    # every form, those that bit-plus leaves out by itself too
    bitquant.quantize_(student, bitquant.QuantConfig.preset(preset, depthwise="binary"), calls[0])

    report, blocks = bitquant.report(student), student._bitquant.blocks
    inside = [row for row in report.rows if not blocks or any(row.path.startswith(block + ".") for block in blocks)]
    macs = sum(row.macs for row in inside)
    assert report.share_seen == 1.0
    assert sum(row.macs for row in inside if row.binarized) >= 0.95 * macs > 0
    assert {row.reason for row in inside if row.reason} <= ALLOWED

    losses = []
    bitquant.distill(
        student,
        teacher,
        [calls[0]],
        steps=20,
        lr=1e-2,
        scale_lr=1e-2,
        progress=lambda told: losses.append(told["loss"]),
    )
    assert sum(losses[-3:]) < sum(losses[:3])

    packed = copy.deepcopy(student)
    bitquant.convert_(packed)
    rebuilt = {}
    for kind, model in (("student", student), ("packed", packed)):
        rebuilt[kind] = copy.deepcopy(teacher)
        described = json.loads(json.dumps(structure(model)))
        head = {"quant_method": METHOD, "format_version": FORMAT_VERSION, "sha256": "", "tied": {}, "attention": None}
        check_metadata({**head, "structure": described, "layout": {"strides": {}, "frozen": []}})
        restore_(rebuilt[kind], described)
        rebuilt[kind].load_state_dict(model.state_dict())
        rebuilt[kind].eval()
    for call in calls:  # padded with a mask, other lengths, without a mask
        expected = outputs(student, call)
        for model in (packed, rebuilt["student"], rebuilt["packed"]):
            assert equal(outputs(model, call), expected)
