"""The held-out split: which side a sentence falls on depends on the sentence alone."""

from hashlib import blake2b

HELD_OUT_SHARE = 0.1


def hold_out(sentences, share=HELD_OUT_SHARE):
    """Removes repetitions and splits by a hash of the normalised sentence.

    Sentences that differ only in case or white space share one hash, so a repetition cannot stand on both sides, and
    adding data never moves a sentence from one side to the other.

    Args:
        sentences (Iterable[str]): any order, repetitions allowed.
        share (float): share held out, by default one tenth.

    Returns:
        tuple[list[str], list[str]]: training sentences and held-out sentences, each in hash order, so that any prefix
        is a fair sample.

    Raises:
        ValueError: fewer than two sentences fall on one of the sides.
    """
    by_key = {}
    for sentence in sentences:
        by_key.setdefault(_key(sentence), sentence)
    limit = int(share * 2**64)
    ordered = sorted(by_key.items())
    train = [sentence for key, sentence in ordered if key >= limit]
    held_out = [sentence for key, sentence in ordered if key < limit]
    if min(len(train), len(held_out)) < 2:
        raise ValueError(
            f"only {len(ordered)} different sentences: too few to hold {share:.0%} out and train on the rest; "
            "give at least 100"
        )
    return train, held_out


def _key(sentence):
    normal = " ".join(sentence.casefold().split())
    return int.from_bytes(blake2b(normal.encode(), digest_size=8).digest(), "big")
