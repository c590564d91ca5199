"""``package.module:factory`` with safetensors weights, and a checkpoint that remembers it but does not obey it."""

import pickle

import pytest
import tiny_models
import torch
from safetensors.torch import save_file

import bitquant
from bitquant.sources import open_source

NAME = "tiny_models:mlp"


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(1)
    file = tmp_path / "mlp.safetensors"
    save_file(tiny_models.mlp().state_dict(), file)
    return file


def test_factory_with_weights(weights):
    source = open_source(NAME, weights)
    assert source.factory == NAME
    assert not source.model.training
    assert source.arguments == ["features", "offset"]
    assert source.files() == [weights]
    torch.manual_seed(1)
    expected = tiny_models.mlp().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in source.model.state_dict().items())


def test_half_precision_becomes_float32(weights):
    save_file({k: v.half() for k, v in tiny_models.mlp().state_dict().items()}, weights)
    assert {p.dtype for p in open_source(NAME, weights).model.parameters()} == {torch.float32}


def test_tied_tensors_need_one_name(tmp_path):
    file = tmp_path / "tied.safetensors"
    save_file({"second.weight": torch.eye(4)}, file)
    assert torch.equal(open_source("tiny_models:Tied", file).model.first.weight, torch.eye(4))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("layers.0.bias"), "lacks layers.0.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "has unknown extra"),
        (lambda t: t.update({"layers.0.bias": torch.zeros(3)}), r"layers.0.bias has shape \(3,\)"),
        (lambda t: t["layers.0.bias"].fill_(torch.nan), "layers.0.bias of .* holds NaN"),
    ],
)
def test_weights_that_do_not_fit(weights, change, words):
    tensors = tiny_models.mlp().state_dict()
    change(tensors)
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=words):
        open_source(NAME, weights)


def test_weights_are_never_unpickled(tmp_path, weights):
    from test_huggingface import Bomb

    trace = tmp_path / "was-unpickled"
    for file in (tmp_path / "weights.pt", weights):
        file.write_bytes(pickle.dumps(Bomb(trace)))
        with pytest.raises(ValueError, match="is a pickle|truncated or damaged"):
            open_source(NAME, file)
    assert not trace.exists()


@pytest.mark.parametrize(
    "name, words",
    [
        ("no_such_module:mlp", "ModuleNotFoundError"),
        ("tiny_models:no_such_name", "AttributeError"),
        ("tiny_models:broken", "the factory's own trouble"),
        ("tiny_models:not_a_model", "returned Tensor, not a torch.nn.Module"),
    ],
)
def test_factories_that_give_no_model(weights, name, words):
    with pytest.raises(ValueError, match=words):
        open_source(name, weights)


def test_weights_missing_or_out_of_place(tmp_path):
    with pytest.raises(ValueError, match="needs its weights: --weights"):
        open_source(NAME)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(NAME, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="--weights belongs to a package.module:factory"):
        open_source(str(tmp_path), tmp_path / "none.safetensors")


def test_checkpoint_names_its_factory_and_does_not_import_it(weights, tmp_path, monkeypatch):
    source = open_source(NAME, weights)
    inputs = {"features": torch.randn(2, 16)}
    bitquant.quantize_(source.model, "bit-plus", inputs)
    bitquant.convert_(source.model)
    bitquant.save(source.model, tmp_path / "out", factory=source.factory)
    expected = source.model(**inputs)
    with monkeypatch.context() as patch:
        patch.setattr("bitquant.checkpoint.make", lambda name: pytest.fail("was imported"))
        with pytest.raises(ValueError, match="tiny_models:mlp.*model=.*allow_factory=True"):
            bitquant.load(tmp_path / "out")
        assert torch.equal(bitquant.load(tmp_path / "out", model=tiny_models.mlp())(**inputs), expected)
    assert torch.equal(bitquant.load(tmp_path / "out", allow_factory=True)(**inputs), expected)
