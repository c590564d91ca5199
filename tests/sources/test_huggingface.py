"""Loading float models from Hugging Face directories, and everything that can be wrong with one."""

import json
import pickle
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitquant.sources import load_source, read_headers, weight_files

transformers = pytest.importorskip("transformers")


def edit_config(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_loads_what_transformers_loads(tiny_bert):
    source = load_source(tiny_bert)
    expected = transformers.AutoModel.from_pretrained(tiny_bert).eval()
    assert type(source.model) is transformers.BertModel
    assert not source.model.training
    inputs = source.example_inputs()
    assert inputs["attention_mask"].sum(1).unique().numel() == 2
    with torch.no_grad():
        assert torch.equal(source.model(**inputs)[0], expected(**inputs)[0])
    assert [f.name for f in source.files()] == ["model.safetensors", "config.json", "tokenizer.json"]


def test_loads_half_precision_as_float32(tiny_bert):
    edit_weights(tiny_bert, lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}))
    edit_config(tiny_bert, dtype="float16")
    assert {p.dtype for p in load_source(tiny_bert).model.parameters()} == {torch.float32}


def test_loads_shards(tiny_bert):
    model = transformers.BertModel.from_pretrained(tiny_bert)
    (tiny_bert / "model.safetensors").unlink()
    model.save_pretrained(tiny_bert, max_shard_size="60KB")
    assert len(weight_files(tiny_bert)) > 1
    state = load_source(tiny_bert).model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_loads_the_class_with_its_head(tiny_bert):
    config = transformers.AutoConfig.from_pretrained(tiny_bert)
    transformers.BertForMaskedLM(config).save_pretrained(tiny_bert)
    assert type(load_source(tiny_bert).model) is transformers.BertForMaskedLM


def test_model_without_tokenizer_loads_but_makes_no_example(tiny_bert):
    (tiny_bert / "tokenizer.json").unlink()
    source = load_source(tiny_bert)
    with pytest.raises(ValueError, match="no tokenizer"):
        source.example_inputs()


def test_missing_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_source(tmp_path / "nowhere")


def test_not_a_model_directory(tmp_path, tiny_bert):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no config.json"):
        load_source(tmp_path / "empty")
    with pytest.raises(ValueError, match="is a file: give the directory"):
        load_source(tiny_bert / "model.safetensors")
    (tiny_bert / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no model.safetensors"):
        load_source(tiny_bert)


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, '{"model_type": 3}', "{}"])
def test_config_that_is_none(tiny_bert, content):
    (tiny_bert / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json"):
        load_source(tiny_bert)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickle_is_refused_unread(tiny_bert, tmp_path, name):
    (tiny_bert / "model.safetensors").unlink()
    trace = tmp_path / "was-unpickled"
    (tiny_bert / name).write_bytes(pickle.dumps(Bomb(trace)))
    for path in (tiny_bert, tiny_bert / name):
        with pytest.raises(ValueError, match="is a pickle, which is not read.*safetensors"):
            load_source(path)
    assert not trace.exists()


def test_pickle_named_safetensors_is_refused_unread(tiny_bert, tmp_path):
    (tiny_bert / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "was-unpickled")))
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_source(tiny_bert)
    assert not (tmp_path / "was-unpickled").exists()


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights(tiny_bert, keep):
    file = tiny_bert / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_source(tiny_bert)


@pytest.mark.parametrize("position", [2, 7, 8, 40])
def test_bit_flip_in_the_header(tiny_bert, position):
    file = tiny_bert / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[position] ^= 0x80
    file.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_source(tiny_bert)


def test_shape_that_differs_from_the_configuration(tiny_bert):
    edit_config(tiny_bert, intermediate_size=128)
    with pytest.raises(ValueError, match=r"layer.0.* has shape .*96.* in the weights file but .*128"):
        load_source(tiny_bert)


@pytest.mark.parametrize(
    "lie",
    [
        {"num_hidden_layers": 10**9},
        {"hidden_size": 2**40, "num_attention_heads": 1},
        {"vocab_size": 10**15},
        {"vocab_size": 10**30},
        {"intermediate_size": 2**62},
        {"max_position_embeddings": 10**12},
        {"num_labels": 10**12},
        {"hidden_size": -64},
        {"hidden_size": "64"},
    ],
)
def test_absurd_sizes_allocate_nothing(tiny_bert, lie):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    edit_config(tiny_bert, **lie)
    with pytest.raises(ValueError, match="config.json"):
        load_source(tiny_bert)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_missing_weights(tiny_bert):
    edit_weights(tiny_bert, lambda tensors: tensors.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(ValueError, match="holds no weights for encoder.layer.1.output.dense.weight"):
        load_source(tiny_bert)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tiny_bert, value):
    edit_weights(tiny_bert, lambda tensors: tensors["encoder.layer.0.output.dense.weight"].view(-1)[5:6].fill_(value))
    with pytest.raises(ValueError, match="encoder.layer.0.output.dense.weight .* holds NaN or infinite"):
        load_source(tiny_bert)


def test_unknown_architecture(tiny_bert):
    edit_config(tiny_bert, model_type="dodo")
    with pytest.raises(ValueError, match="architecture 'dodo' is unknown to transformers"):
        load_source(tiny_bert)


def test_code_in_the_directory_is_not_run(tiny_bert, tmp_path):
    trace = tmp_path / "was-run"
    (tiny_bert / "modeling_own.py").write_text(f"open({str(trace)!r}, 'w')\nclass Own: pass\n")
    edit_config(tiny_bert, auto_map={"AutoModel": "modeling_own.Own", "AutoConfig": "modeling_own.Own"})
    assert type(load_source(tiny_bert).model) is transformers.BertModel
    assert not trace.exists()


def test_quantized_by_another_tool(tiny_bert):
    edit_config(tiny_bert, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ValueError, match="already quantized by gptq"):
        load_source(tiny_bert)


def test_without_transformers_the_extra_is_named(tiny_bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bitquant-torch\[hf\]'"):
        load_source(tiny_bert)


def test_loading_is_silent(tiny_bert, capfd):
    load_source(tiny_bert)
    assert capfd.readouterr() == ("", "")


def test_headers_are_read_without_values(tiny_bert):
    headers = read_headers(weight_files(tiny_bert))
    assert headers["encoder.layer.0.output.dense.weight"] == ((64, 96), "F32")


def test_longest_sequence(tiny_bert, tmp_path):
    source = load_source(tiny_bert)
    assert source.longest() == 40
    config = transformers.RobertaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=42, pad_token_id=1,
    )  # fmt: skip
    transformers.RobertaModel(config).save_pretrained(tmp_path / "roberta")
    roberta = load_source(tmp_path / "roberta")
    assert roberta.longest() == 40
    roberta.model(input_ids=torch.full((1, 40), 5))
