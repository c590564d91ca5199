"""A checkpoint of pre-training that is damaged or of another model gives one sentence and changes nothing."""

import copy
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("kaldi_native_fbank")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from test_hubert_workers import CONFIG  # noqa: E402

from recipes.hubert import HubertForPretraining  # noqa: E402
from recipes.hubert.training import checkpoint  # noqa: E402
from recipes.hubert.training.config import Optimization  # noqa: E402
from recipes.hubert.training.update import Updater  # noqa: E402
from recipes.hubert.training.workers import Workers  # noqa: E402

NAME = "head.final_proj.weight"


def updater():
    torch.manual_seed(0)
    return Updater(HubertForPretraining(CONFIG), Workers(device="cpu"), Optimization(precision="fp32"), seed=0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory, made = tmp_path_factory.mktemp("run"), updater()
    for parameter in made.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.optimizer.step()
    checkpoint.save(directory, made, updates=3)
    return directory, made


def test_it_comes_back(saved):
    directory, made = saved
    fresh = updater()
    assert checkpoint.load(directory, fresh, updates=3) == 3
    for (name, mine), theirs in zip(fresh.model.named_parameters(), made.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
        assert all(torch.equal(fresh.optimizer.state[mine][k], v) for k, v in made.optimizer.state[theirs].items())


def put(name, value):
    def change(facts, tensors):
        tensors[name] = value(tensors.get(name))

    return change


CHANGES = [
    (lambda facts, tensors: facts.update(updates=4), "updates is not a whole number from 0 to 3"),
    (lambda facts, tensors: facts.update(updates="3"), "updates is not"),
    (lambda facts, tensors: facts.clear(), "updates is not"),
    (put(f"model.{NAME}", lambda t: t[:1]), f"'{NAME}' is of another model"),
    (lambda facts, tensors: tensors.pop(f"model.{NAME}"), f"'{NAME}' is missing"),
    (put("optimizer.step.nothing", lambda t: torch.ones(())), "'nothing' is of another model"),
    (put(f"optimizer.exp_avg.{NAME}", lambda t: t[:1]), f"'{NAME}' is of another model"),
    (put(f"optimizer.exp_avg_sq.{NAME}", lambda t: t * float("nan")), f"'{NAME}' is not finite"),
    (lambda facts, tensors: tensors.pop(f"optimizer.exp_avg.{NAME}"), f"'{NAME}' is missing"),
]


@pytest.mark.parametrize(("change", "problem"), CHANGES)
def test_what_is_not_its_own_is_refused(saved, change, problem, tmp_path):
    with safe_open(saved[0] / checkpoint.FILE, framework="pt") as stream:
        facts = json.loads(stream.metadata()["bitquant"])
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    change(facts, tensors)
    save_file(tensors, tmp_path / checkpoint.FILE, metadata={"bitquant": json.dumps(facts)})
    fresh = updater()
    before = copy.deepcopy(fresh.model.state_dict())
    with pytest.raises(
        ValueError, match=r"is damaged or not a training checkpoint: .*; remove it to start anew"
    ) as caught:
        checkpoint.load(tmp_path, fresh, updates=3)
    assert problem in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in fresh.model.state_dict().items())
    assert not fresh.optimizer.state
