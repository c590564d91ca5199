"""The held-out split: which side a sample falls on depends on the sample alone."""

from hashlib import blake2b

HELD_OUT_SHARE = 0.1


def normal(sentence):
    """A sentence without what does not make it another one: case and white space."""
    return " ".join(sentence.casefold().split())


def hold_out(samples, share=HELD_OUT_SHARE, *, key=normal, unit="sentences"):
    """Removes repetitions and splits by a hash of each sample's key.

    Samples with equal keys count once, so a repetition cannot stand on both sides, and adding data never moves a
    sample from one side to the other.

    Args:
        samples (Iterable): any order, repetitions allowed.
        share (float): share held out, by default one tenth.
        key (callable): sample -> str; by default the sentence without case and spacing.
        unit (str): what to call the samples in an error.

    Returns:
        tuple[list, list]: training samples and held-out samples, each in hash order, so that any prefix is a fair
        sample.

    Raises:
        ValueError: fewer than two samples fall on one of the sides.
    """
    by_hash = {}
    for sample in samples:
        by_hash.setdefault(_hash(key(sample)), sample)
    limit = int(share * 2**64)
    ordered = sorted(by_hash.items())
    train = [sample for number, sample in ordered if number >= limit]
    held_out = [sample for number, sample in ordered if number < limit]
    if min(len(train), len(held_out)) < 2:
        raise ValueError(
            f"only {len(ordered)} different {unit}: too few to hold {share:.0%} out and train on the rest; "
            "give at least 100"
        )
    return train, held_out


def _hash(key):
    return int.from_bytes(blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
