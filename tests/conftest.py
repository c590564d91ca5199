"""Fixtures shared by the suite: a tiny random text encoder as a Hugging Face directory, and text for it."""

import os
import random
import shutil

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: workers share the cores, so each takes one
    os.environ.setdefault("OMP_NUM_THREADS", "1")

WORDS = "the a one two red blue old new cat dog bird tree house river sees finds likes near under over and then".split()  # noqa: SIM905


def sentences(count, seed=0):
    """Different sentences of 3 to 12 words."""
    rng, made = random.Random(seed), {}
    while len(made) < count:
        words = rng.choices(WORDS, k=rng.randint(3, 12))
        made[" ".join(words).capitalize() + "."] = None
    return list(made)


@pytest.fixture(scope="session")
def _tiny_bert(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("models") / "tiny-bert"
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=40,
    )
    transformers.BertModel(config).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def tiny_bert(_tiny_bert, tmp_path):
    """A directory with ``config.json``, ``model.safetensors`` and ``tokenizer.json``, this test's own copy."""
    return shutil.copytree(_tiny_bert, tmp_path / "tiny-bert")


@pytest.fixture
def text_file(tmp_path):
    """A text file of 300 different sentences, one a line."""
    file = tmp_path / "data.txt"
    file.write_text("\n".join(sentences(300)), encoding="utf-8")
    return file
