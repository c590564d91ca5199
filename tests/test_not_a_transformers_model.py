"""What does not know bitquant must fail on a checkpoint of ours, rather than load it with random weights."""

import subprocess
import sys

import pytest

import bitquant
from bitquant.sources import load_source

pytest.importorskip("transformers")

LOADERS = """
import os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
import transformers as t
directory, which = sys.argv[1:]
loaders = {
    "auto": lambda: t.AutoModel.from_pretrained(directory),
    "mismatched": lambda: t.AutoModel.from_pretrained(directory, ignore_mismatched_sizes=True),
    "no-safetensors": lambda: t.AutoModel.from_pretrained(directory, use_safetensors=False),
    "class": lambda: t.BertModel.from_pretrained(directory),
    "classification": lambda: t.AutoModelForSequenceClassification.from_pretrained(directory),
    "masked": lambda: t.AutoModelForMaskedLM.from_pretrained(directory),
    "pipeline": lambda: t.pipeline("feature-extraction", model=directory),
}
if which == "sentence_transformers":
    import sentence_transformers as s
    loaders = {"sentences": lambda: s.SentenceTransformer(directory), "pairs": lambda: s.CrossEncoder(directory)}
failed = 0
for name, load in loaders.items():
    try:
        load()
        print(name, "loaded")
    except Exception as error:
        failed += 1
assert "bitquant" not in sys.modules
sys.exit(0 if failed < len(loaders) else 3)
"""


@pytest.fixture(params=["student", "packed"])
def checkpoint(request, tiny_bert, tmp_path):
    source = load_source(tiny_bert)
    bitquant.quantize_(source.model, "bit-plus", source.example_inputs())
    if request.param == "packed":
        bitquant.convert_(source.model)
    bitquant.save(source.model, tmp_path / "out", tokenizer_file=source.tokenizer.file)
    return tmp_path / "out"


def loaded(directory, which):
    command = [sys.executable, "-c", LOADERS, directory, which]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[:-1], done.returncode


def test_transformers_fails(checkpoint):
    assert loaded(checkpoint, "transformers") == ([], 3)


def test_sentence_transformers_fails(checkpoint):
    pytest.importorskip("sentence_transformers")
    assert loaded(checkpoint, "sentence_transformers") == ([], 3)


def test_the_float_model_itself_loads(tiny_bert):
    """So that what fails above fails for the weights."""
    assert "auto loaded" in loaded(tiny_bert, "transformers")[0]
