"""The held-out split is stable, disjoint and near a tenth."""

import pytest

from bitquant.data import hold_out

SENTENCES = [f"Sentence number {i} is here." for i in range(2000)]


def test_about_a_tenth_is_held_out_and_nothing_is_lost():
    train, held_out = hold_out(SENTENCES)
    assert sorted(train + held_out) == sorted(SENTENCES)
    assert 140 < len(held_out) < 260


def test_a_sentence_never_changes_sides():
    train, held_out = hold_out(SENTENCES)
    fewer_train, fewer_held_out = hold_out(SENTENCES[::-2])
    assert set(fewer_train) <= set(train)
    assert set(fewer_held_out) <= set(held_out)


def test_repetitions_in_other_case_or_spacing_count_once():
    repeated = SENTENCES + [s.upper() for s in SENTENCES] + [s.replace(" ", "  \t") for s in SENTENCES]
    assert hold_out(repeated) == hold_out(SENTENCES)


def test_order_of_the_data_does_not_matter():
    assert hold_out(SENTENCES) == hold_out(SENTENCES[::-1])


def test_too_little_data_is_refused():
    with pytest.raises(ValueError, match="only 3 different sentences"):
        hold_out(SENTENCES[:3] * 5)
