"""Casts of a packed model give what its student gives, cast alike, or are refused and change nothing."""

import copy

import pytest
import torch
from test_casts import Words, student_and_packed

import bitquant

IDS = torch.arange(14).view(2, 7)
CASTS = {
    "bfloat16": lambda model: model.bfloat16(),
    "half": lambda model: model.half(),
    "to": lambda model: model.to(torch.bfloat16),
    "to a device too": lambda model: model.to("cpu", torch.float16),
    "a part": lambda model: model.layers[0].up.half() and None,
    "a table": lambda model: model.words.bfloat16() and None,
}


def built(dtype=torch.float32, preset="bit-plus"):
    torch.manual_seed(0)
    return student_and_packed(Words().to(dtype).eval(), preset, IDS)


@pytest.mark.parametrize("reloaded", [False, True])
@pytest.mark.parametrize("cast", CASTS)
def test_narrowing_is_refused(cast, reloaded, tmp_path):
    student, packed = built()
    if reloaded:
        bitquant.save(packed, tmp_path / "packed")
        packed = bitquant.load(tmp_path / "packed", model=Words())
    packed = copy.deepcopy(packed)
    with pytest.raises(ValueError, match="cast the student before convert_") as error:
        CASTS[cast](packed)
    assert "\n" not in str(error.value) and {p.dtype for p in packed.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(packed(IDS), student(IDS))
        assert torch.equal(packed.to("cpu")(IDS), student(IDS))


@pytest.mark.parametrize("preset", ["bit-plus", "bit-ref"])
@pytest.mark.parametrize("start", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_widening_and_back(start, preset):
    student, packed = built(start, preset)
    for dtype in (torch.float64, torch.float32, start):
        with torch.no_grad():
            assert torch.equal(student.to(dtype)(IDS), packed.to(dtype)(IDS))
    assert packed.words.weight.dtype == start
    other = torch.bfloat16 if start == torch.float16 else torch.float16
    with pytest.raises(ValueError, match=f"packed from {start} weights"):
        packed.to(other)


@pytest.mark.parametrize("preset", ["bit-plus", "bit-ref"])
def test_autocast(preset):
    student, packed = built(preset=preset)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(student(IDS), packed(IDS))


def test_the_class_keeps_its_name():
    _, packed = built()
    assert type(packed).__name__ == "Words" and isinstance(packed, Words)
