"""Padded batches: shapes, masks, order."""

import itertools

import pytest
import torch

from bitquant.data import TextBatches, Tokenizer

pytest.importorskip("tokenizers")
SENTENCES = [" ".join(["cat"] * n) for n in range(1, 21)]


@pytest.fixture
def tokenizer(tiny_bert):
    return Tokenizer(tiny_bert / "tokenizer.json")


def test_pads_to_the_longest_and_masks_the_padding(tokenizer):
    batch = tokenizer(["cat", "cat dog bird"])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 5)
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0, 3:].tolist() == [0, 0]


def test_cuts_to_max_length_and_keeps_the_special_tokens(tokenizer):
    ids = tokenizer(["cat " * 30], max_length=8)["input_ids"][0].tolist()
    assert len(ids) == 8
    assert (ids[0], ids[-1]) == (2, 3)


def test_pad_id_of_the_model_goes_first(tiny_bert):
    batch = Tokenizer(tiny_bert / "tokenizer.json", pad_id=7)(["cat", "cat dog"])
    assert batch["input_ids"][0, -1] == 7


def test_without_seed_one_pass_in_the_given_order(tokenizer):
    batches = list(TextBatches(tokenizer, SENTENCES, batch_size=6))
    assert [len(b["input_ids"]) for b in batches] == [6, 6, 6, 2]
    lengths = torch.cat([b["attention_mask"].sum(1) for b in batches])
    assert lengths.tolist() == [n + 2 for n in range(1, 21)]


def _lengths(batch):
    return batch["attention_mask"].sum(1).tolist()


def test_with_seed_endless_reproducible_epochs_of_every_sentence(tokenizer):
    batches = TextBatches(tokenizer, SENTENCES, batch_size=6, seed=3)
    assert len(batches) == 4
    first = [_lengths(b) for b in itertools.islice(batches, 12)]
    again = [_lengths(b) for b in itertools.islice(batches, 12)]
    assert first == again
    epochs = [first[i : i + 4] for i in (0, 4, 8)]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == [n + 2 for n in range(1, 21)]
    assert epochs[0] != epochs[1] != epochs[2]


def test_other_seed_other_order(tokenizer):
    first, second = (
        [_lengths(b) for b in itertools.islice(TextBatches(tokenizer, SENTENCES, batch_size=6, seed=s), 4)]
        for s in (0, 1)
    )
    assert first != second


def test_bad_tokenizer_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        Tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer file"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_bad_sizes_are_refused(tokenizer):
    with pytest.raises(ValueError, match="batch size"):
        TextBatches(tokenizer, SENTENCES, batch_size=0)
