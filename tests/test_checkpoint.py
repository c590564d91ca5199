"""Saving and loading students and packed models; damaged, lying and half-written checkpoints."""

import copy
import errno
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bitquant
from bitquant import checkpoint
from bitquant.checkpoint import check_target, is_checkpoint, load, save
from bitquant.metadata import digest
from bitquant.sources import load_source

pytest.importorskip("transformers")


@pytest.fixture
def source(tiny_bert):
    return load_source(tiny_bert)


@pytest.fixture
def packed(source):
    model = source.model
    bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus"), source.example_inputs())
    bitquant.convert_(model)
    return model


@pytest.fixture
def saved(packed, source, tmp_path):
    save(packed, tmp_path / "out", tokenizer_file=source.tokenizer.file)
    return tmp_path / "out"


def outputs(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


def edit(directory, change):
    file = directory / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def reseal(directory):
    """Recomputes the sha256, as whoever changes a file can."""
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"]["sha256"] = digest(config, directory / "bitquant.safetensors")
    (directory / "config.json").write_text(json.dumps(config))


def replace_weights(directory, tensors):
    """Other weights with a sha256 that fits them: what a liar would do."""
    save_file(tensors, directory / "bitquant.safetensors")
    reseal(directory)


@pytest.mark.parametrize("preset", ["bit-plus", "bit-ref"])
@pytest.mark.parametrize("stage", ["student", "packed"])
def test_round_trip_is_bit_for_bit(source, tmp_path, preset, stage):
    model, inputs = source.model, source.example_inputs()
    bitquant.quantize_(model, bitquant.QuantConfig.preset(preset), inputs)
    if stage == "packed":
        bitquant.convert_(model)
    model.eval()
    save(model, tmp_path / "out", tokenizer_file=source.tokenizer.file)
    again = load(tmp_path / "out")
    assert not again.training
    assert torch.equal(outputs(again, inputs), outputs(model, inputs))
    assert {k: v.dtype for k, v in again.state_dict().items()} == {k: v.dtype for k, v in model.state_dict().items()}
    assert bitquant.report(again).to_dict() == bitquant.report(model).to_dict()
    assert sorted(os.listdir(tmp_path / "out")) == ["bitquant.safetensors", "config.json", "tokenizer.json"]


def test_saving_what_was_loaded_gives_the_same_file(saved, tmp_path):
    save(load(saved), tmp_path / "again")
    assert (tmp_path / "again" / "bitquant.safetensors").read_bytes() == (saved / "bitquant.safetensors").read_bytes()


def test_student_can_be_trained_after_loading(source, tmp_path):
    inputs = source.example_inputs()
    bitquant.quantize_(source.model, "bit-plus", inputs)
    save(source.model, tmp_path / "out")
    student = load(tmp_path / "out")
    student(**inputs)[0].square().mean().backward()
    assert all(p.grad is not None for name, p in student.named_parameters() if "layer.0" in name and p.requires_grad)


def test_files_have_the_permissions_of_any_new_file(saved):
    modes = {file.stat().st_mode for file in saved.iterdir()}
    assert len(modes) == 1


def test_packed_file_holds_no_float_weight(saved):
    tensors = load_file(saved / "bitquant.safetensors")
    assert tensors["encoder.layer.0.output.dense.weight_packed"].shape == (64, 12)
    assert tensors["encoder.layer.0.output.dense.weight_packed"].dtype == torch.uint8
    assert "encoder.layer.0.output.dense.weight" not in tensors


def test_config_is_the_models_own_with_ours_inside(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert config["architectures"] == ["BertModel"]
    assert config["quantization_config"]["quant_method"] == "bitquant"
    assert config["quantization_config"]["format_version"] == 2


class Plain(nn.Module):
    """An encoder that transformers does not know; its output projection is tied to its input's."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 32)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32)) for _ in range(2))
        self.head = nn.Linear(32, 30, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.full((1,), 0.5), persistent=False)

    def forward(self, ids):
        x = self.embed(ids) + self.offset
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def test_model_that_is_not_from_transformers(tmp_path):
    torch.manual_seed(0)
    ids = torch.arange(10).view(2, 5)
    model = Plain().eval()
    bitquant.quantize_(model, "bit-plus", (ids,))
    bitquant.convert_(model)
    save(model, tmp_path / "out")
    with pytest.raises(ValueError, match=r"pass an instance of its class"):
        load(tmp_path / "out")
    skeleton = Plain()
    before = copy.deepcopy(skeleton.state_dict())
    again = load(tmp_path / "out", model=skeleton)
    assert torch.equal(again(ids), model(ids))
    assert again.head.weight.data_ptr() == again.embed.weight.data_ptr()
    assert all(torch.equal(v, before[k]) for k, v in skeleton.state_dict().items())
    assert type(skeleton.layers[0][0]) is nn.Linear


def test_overwrite(saved, packed):
    with pytest.raises(FileExistsError, match="--overwrite"):
        save(packed, saved)
    save(packed, saved, overwrite=True)
    assert sorted(os.listdir(saved)) == ["bitquant.safetensors", "config.json"]
    load(saved)


def test_float_model_directory_is_never_overwritten(tiny_bert, packed):
    with pytest.raises(FileExistsError, match="never replaced"):
        save(packed, tiny_bert, overwrite=True)


def test_float_model_is_not_saved(source, tmp_path):
    with pytest.raises(ValueError, match="not quantized"):
        save(source.model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("victim", ["_write_tensors", "write"])
@pytest.mark.parametrize("existing", [False, True])
def test_full_disk_leaves_no_half_file(packed, saved, tmp_path, monkeypatch, victim, existing):
    target = saved if existing else tmp_path / "new" / "out"
    names = sorted(os.listdir(tmp_path))
    before = {f.name: f.read_bytes() for f in saved.iterdir()}

    def full(first, second):
        file = second if victim == "_write_tensors" else first
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(checkpoint, victim, full)
    with pytest.raises(OSError, match="No space left"):
        save(packed, target, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == names
    assert {f.name: f.read_bytes() for f in saved.iterdir()} == before


def test_disk_that_fills_up_inside_the_weights_writer(packed, tmp_path):
    """A real limit on the file size, which the writer meets as it would meet a full disk."""
    import resource
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError):
            save(packed, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not [name for name in os.listdir(tmp_path) if "out" in name]


def test_unwritable_target(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot be written"):
        check_target(tmp_path / "file" / "out")
    with pytest.raises(FileExistsError, match="never replaced"):
        check_target(tmp_path / "file", overwrite=True)


def test_missing_and_other_directories(tmp_path, tiny_bert):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a bitquant checkpoint"):
        load(tiny_bert)
    assert not is_checkpoint(tiny_bert)
    assert not is_checkpoint(tmp_path)


def test_newer_format_is_refused(saved):
    edit(saved, lambda config: config["quantization_config"].update(format_version=3))
    with pytest.raises(ValueError, match="format version 3; this bitquant reads version 2"):
        load(saved)


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_truncated_weights(saved, keep):
    file = saved / "bitquant.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="damaged"):
        load(saved)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_flipped_bit(saved, part):
    file = saved / "bitquant.safetensors"
    content = bytearray(file.read_bytes())
    content[int(part * len(content))] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load(saved)


def test_pickle_is_refused_unread(saved, tmp_path):
    from sources.test_huggingface import Bomb

    trace = tmp_path / "was-unpickled"
    for name in ("bitquant.safetensors", "pytorch_model.bin"):
        (saved / "bitquant.safetensors").unlink(missing_ok=True)
        (saved / name).write_bytes(pickle.dumps(Bomb(trace)))
        with pytest.raises(ValueError, match="damaged|is a pickle"):
            load(saved)
    with pytest.raises(ValueError, match="is a pickle"):
        load(saved / "pytorch_model.bin")
    assert not trace.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update({"pooler.dense.bias": torch.zeros(65)}),
        lambda t: t.update({"pooler.dense.bias": torch.zeros(64, dtype=torch.float64)}),
        lambda t: t.update({"encoder.layer.0.output.dense.weight_packed": torch.zeros(64, 13, dtype=torch.uint8)}),
        lambda t: t.update({"extra": torch.zeros(1)}),
        lambda t: t.pop("pooler.dense.bias"),
    ],
    ids=["shape", "dtype", "packed-shape", "extra", "missing"],
)
def test_weights_that_do_not_fit_the_metadata(saved, change):
    tensors = load_file(saved / "bitquant.safetensors")
    change(tensors)
    replace_weights(saved, tensors)
    with pytest.raises(ValueError, match="pooler.dense.bias|weight_packed|extra"):
        load(saved)


LIES = {
    "layers": lambda c: c.update(num_hidden_layers=10**9),
    "width": lambda c: c.update(hidden_size=2**40),
    "vocabulary": lambda c: c.update(vocab_size=10**15),
    "positions": lambda c: c.update(max_position_embeddings=10**13),
    "labels": lambda c: c.update(num_labels=10**11),
    "packed-width": lambda c: _module(c).update(in_features=2**50),
    "packed-rows": lambda c: _module(c).update(out_features=2**70),
    "table-bits": lambda c: _modules(c)["embeddings.word_embeddings"].update(bits=8),
    "no-table-bits": lambda c: _modules(c)["embeddings.word_embeddings"].update(bits="many"),
    "negative": lambda c: _module(c).update(out_features=-8),
    "not-a-number": lambda c: _module(c).update(out_features="many"),
    "unknown-argument": lambda c: _module(c).update(colour="red"),
    "unknown-type": lambda c: _module(c).update(type="os.system"),
    "unknown-path": lambda c: _modules(c).update(no_such={"type": "PackedLinear"}),
    "no-structure": lambda c: c["quantization_config"].update(structure={}),
    "structure-is-text": lambda c: c["quantization_config"].update(structure="x"),
    "modules-is-a-list": lambda c: c["quantization_config"]["structure"].update(modules=[1]),
    "tied-to-nothing": lambda c: c["quantization_config"].update(tied={"a": "b"}),
    "no-digest": lambda c: c["quantization_config"].pop("sha256"),
}


def _modules(config):
    return config["quantization_config"]["structure"]["modules"]


def _module(config):
    return _modules(config)["encoder.layer.0.output.dense"]


@pytest.mark.parametrize("lie", LIES)
def test_metadata_that_lies_allocates_nothing(saved, lie):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    edit(saved, LIES[lie])
    if lie not in ("no-digest", "quantization-is-text"):
        reseal(saved)
    with pytest.raises(ValueError) as caught:
        load(saved)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
