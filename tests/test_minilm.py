"""The main job on the real MiniLM sentence encoder: equality, size and reload, with real sentences and padding."""

import copy
import json
import subprocess
import sys

import pytest
import torch

import bitquant
from bitquant import ops

pytest.importorskip("transformers")
from bitquant.demo import demo_model  # noqa: E402
from bitquant.sources import load_source  # noqa: E402

SENTENCES = [
    "The assert statement is a convenient way to insert debugging assertions into a program.",
    "A list display yields a new list object.",
    "Names refer to objects, and names are introduced by name binding operations, as the reference says at length.",
    "Yes.",
]


@pytest.fixture(scope="module")
def source():
    try:
        demo_model()
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))
    return load_source(demo_model())


@pytest.fixture(scope="module", params=["bit-ref", "bit-plus"])
def student(request, source):
    model = copy.deepcopy(source.model)
    bitquant.quantize_(model, request.param, source.tokenizer(SENTENCES))
    return model.eval()


@pytest.fixture(scope="module")
def packed(student):
    model = copy.deepcopy(student)
    bitquant.convert_(model)
    return model


@pytest.fixture(scope="module")
def directory(packed, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "minilm"
    bitquant.save(packed, folder, tokenizer_file=source.tokenizer.file)
    return folder


def outputs(model, batch):
    with torch.no_grad():
        return model(**batch)


def test_everything_in_the_encoder_is_binarized(student):
    report = bitquant.report(student)
    assert report.share_seen == 1.0 and report.share_binarized == 1.0
    assert {row.path for row in report.left_in_float} == {
        "embeddings.position_embeddings",
        "embeddings.token_type_embeddings",
    }
    assert sum(row.kind == "attention" for row in report.rows) == 6


def test_student_packed_and_reloaded_are_equal(student, packed, directory, source):
    batch = source.tokenizer(SENTENCES)
    expected = outputs(student, batch)
    with ops.use_backend("naive"):
        naive = outputs(packed, batch)
    for other in (naive, outputs(packed, batch), outputs(bitquant.load(directory), batch)):
        assert torch.equal(other.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(other.pooler_output, expected.pooler_output)


def test_a_sentence_alone_and_in_a_padded_batch(packed, source):
    together = outputs(packed, source.tokenizer(SENTENCES)).last_hidden_state
    for i, sentence in enumerate(SENTENCES):
        alone = outputs(packed, source.tokenizer([sentence])).last_hidden_state[0]
        assert torch.equal(alone, together[i, : len(alone)])


def test_size(directory, packed):
    weights = (directory / "bitquant.safetensors").stat().st_size
    assert weights <= 4.2e6
    assert sum(f.stat().st_size for f in directory.iterdir()) <= 4.8e6
    resident = sum(t.numel() * t.element_size() for t in [*packed.parameters(), *packed.buffers()])
    assert resident <= 1.1 * weights
    assert json.loads((directory / "config.json").read_text())["quantization_config"]["quant_method"] == "bitquant"


def test_fresh_process_needs_only_the_directory(directory, packed, source):
    batch = source.tokenizer(SENTENCES[1:2])
    code = (
        "import sys, torch, bitquant; m = bitquant.load(sys.argv[1]); "
        f"print(m(input_ids=torch.tensor({batch['input_ids'].tolist()})).last_hidden_state.double().sum().item().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=True)
    expected = outputs(packed, {"input_ids": batch["input_ids"]}).last_hidden_state.double().sum().item().hex()
    assert done.stdout.split()[-1] == expected
