"""A training checkpoint that is damaged, or that somebody made up, gives one sentence; a whole one, equal weights."""

import copy
import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import bitquant
from bitquant.distillation.state import CURRENT, seconds_trained

MUTATIONS = 300


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A student after a training of two stages that was stopped in the second, and how to go on with it."""
    torch.manual_seed(0)
    layers = (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(2))
    teacher, x = nn.Sequential(*layers).eval(), torch.randn(2, 3, 8)
    student = copy.deepcopy(teacher)
    bitquant.quantize_(student, "bit-plus", x)

    def train(directory, **options):
        given, told = copy.deepcopy(student), []
        settings = {"steps": 2, "chain": "w1a2,w1a1", "stage_teacher": "previous", "checkpoint_every": 1}
        bitquant.distill(given, teacher, [x], checkpoint=directory, **(settings | options))
        return given.state_dict(), told

    def stop(state):
        if state["stage"] == "w1a1" and state["step"] == 2:
            raise InterruptedError

    directory = tmp_path_factory.mktemp("run")
    whole, _ = train(None)
    with pytest.raises(InterruptedError):
        train(directory, progress=stop)
    return train, directory, whole


@pytest.fixture
def changed(run, tmp_path):
    """A copy of the directory with one of its files written anew by a function of its facts and tensors."""

    def write(change, name=CURRENT):
        for file in run[1].iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        with safe_open(tmp_path / name, framework="pt") as stream:
            facts = json.loads(stream.metadata()["bitquant"])
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        facts = change(facts, tensors) or facts
        save_file(
            tensors, tmp_path / name, metadata={"bitquant": facts if isinstance(facts, str) else json.dumps(facts)}
        )
        return tmp_path

    return write


def refused(run, directory):
    """The sentence with which a run does not go on."""
    with pytest.raises(ValueError) as caught:
        run[0](directory, resume=True)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    return text


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_unharmed_goes_on(run, changed):
    assert equal(run[0](changed(lambda facts, tensors: None), resume=True)[0], run[2])


FACTS = [
    ({"stage": 2}, "stage is not a whole number from 0 to 1"),
    ({"stage": -1}, "stage is not"),
    ({"stage": "1"}, "stage is not"),
    ({"stage": True}, "stage is not"),
    ({"stage": None}, "stage is not"),
    ({"step": 0}, "step is not a whole number from 1 to 2"),
    ({"step": 3}, "step is not"),
    ({"step": 1.0}, "step is not"),
    ({"step": [1]}, "step is not"),
    ({"seconds": "long"}, "seconds are no time"),
    ({"seconds": float("nan")}, "seconds are no time"),
    ({"seconds": -1}, "seconds are no time"),
    ({"settings": None}, "no settings"),
    ({"settings": [1]}, "no settings"),
    ({"settings": {"steps": {"a": 1}}}, "no settings"),
    ({"settings": {"steps": "x" * 100_000}}, "other settings"),
]


@pytest.mark.parametrize(("facts", "problem"), FACTS)
def test_facts_are_typed_and_bounded(run, changed, facts, problem):
    directory = changed(lambda found, tensors: found.update(facts))
    assert problem in refused(run, directory)
    if "seconds" in facts:
        with pytest.raises(ValueError, match="no time"):
            seconds_trained(directory)


@pytest.mark.parametrize("text", ["[]", "1", "null", "{", "[" * 100_000, '{"stage": ' + "9" * 5000 + "}"])
def test_facts_that_are_no_object(run, changed, text):
    assert "damaged" in refused(run, changed(lambda facts, tensors: text))


def tensor(name, value):
    def change(facts, tensors):
        tensors[name] = value(tensors.get(name))

    return change


def without(name):
    def change(facts, tensors):
        del tensors[name]

    return change


TENSORS = [
    (tensor("student.1.1.weight", lambda t: t[:4]), "1.1.weight' is of another model"),
    (tensor("student.1.1.weight", lambda t: t.double()), "1.1.weight' is of another model"),
    (tensor("student.9.weight", lambda t: torch.zeros(1)), "9.weight' is of another model"),
    (without("student.1.1.weight"), "1.1.weight' is missing"),
    (tensor("optimizer.0.exp_avg", lambda t: t[:1]), "0.exp_avg' is of another model"),
    (tensor("optimizer.0.exp_avg", lambda t: t * float("nan")), "0.exp_avg' is not finite"),
    (tensor("optimizer.0.step", lambda t: t.view(1)), "0.step' is of another model"),
    (without("optimizer.0.step"), "0.step' is missing"),
    (tensor("optimizer.x.step", lambda t: torch.ones(())), "x.step' is of another model"),
    (tensor("optimizer.-1.step", lambda t: torch.ones(())), "-1.step' is of another model"),
    (tensor("optimizer.99.step", lambda t: torch.ones(())), "99.step' is of another model"),
    (tensor("optimizer.0.more", lambda t: torch.ones(())), "0.more' is of another model"),
    (tensor("optimizer.", lambda t: torch.ones(())), "'' is of another model"),
    (tensor("optimizer.1", lambda t: torch.ones(())), "1' is of another model"),
]


@pytest.mark.parametrize(("change", "problem"), TENSORS)
def test_tensors_must_be_those_of_the_student(run, changed, change, problem):
    assert problem in refused(run, changed(change))


def test_the_stage_before_is_checked_too(run, changed):
    directory = changed(without("1.1.weight"), "stage-0.safetensors")
    assert "1.1.weight' is missing" in refused(run, directory)
    (directory / "stage-0.safetensors").unlink()
    assert "stage-0.safetensors, the teacher of the stage to go on with, is missing" in refused(run, directory)


def test_mutated_files_are_refused_or_of_other_numbers(run, tmp_path):
    """Whatever bytes change: one sentence, or a file whose numbers alone are others."""
    (tmp_path / "stage-0.safetensors").write_bytes((run[1] / "stage-0.safetensors").read_bytes())
    good, chooser = (run[1] / CURRENT).read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(good[:8], "little")
    outcomes = {"refused": 0, "went on": 0}
    for trial in range(MUTATIONS):
        data = bytearray(good)
        kind = trial % 4
        if kind == 0:
            del data[chooser.randrange(len(data)) :]
        elif kind == 1:
            place = chooser.randrange(header)
            data[place : place + chooser.randrange(3)] = chooser.randbytes(chooser.randrange(3))
        else:
            for _ in range(chooser.randint(1, 4)):
                data[chooser.randrange(header if kind == 2 else len(data))] = chooser.randrange(256)
        (tmp_path / CURRENT).write_bytes(data)
        try:
            run[0](tmp_path, resume=True)
            outcomes["went on"] += 1
        except FloatingPointError:
            outcomes["went on"] += 1
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            outcomes["refused"] += 1
    assert outcomes["refused"] > MUTATIONS / 2


def test_a_state_that_is_no_tensor_is_refused_before_the_first_step(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"count": 1}

        def set_extra_state(self, state):
            pass

    torch.manual_seed(0)
    teacher, x, told = nn.Sequential(nn.Linear(4, 4), Extra(4, 4)), torch.randn(2, 4), []
    student = copy.deepcopy(teacher)
    bitquant.quantize_(student, "bit-plus", x)
    with pytest.raises(ValueError, match=r"1\._extra_state of the student is a dict"):
        bitquant.distill(student, teacher, [x], steps=1, checkpoint=tmp_path, progress=told.append)
    bitquant.distill(student, teacher, [x], steps=1, progress=told.append)
    assert len(told) == 1
