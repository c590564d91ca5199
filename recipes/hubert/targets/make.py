"""Features of a sample -> clusters -> labels of everything, a recording at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from bitquant.atomic import replacing

from ..data.manifest import SPLITS, Utterance, digest
from .clusters import Clusters
from .labels import FACTS, LABELS, LENGTHS, check, entropy, write_facts
from .layer import LayerFeatures
from .mfcc import Mfcc
from .quality import Quality

Features = Mfcc | LayerFeatures


def make_targets(
    out: Path,
    utterances: list[Utterance],
    features: Features,
    clusters: int | Clusters,
    *,
    share: float = 0.1,
    seed: int = 0,
    workers: int = 0,
    watch: Callable[[Iterable, int, str], Iterable] = lambda items, count, what: items,
) -> dict:
    """Writes labels of all utterances, all splits from one k-means model, to a directory that appears when complete.

    At no time are the features of more than one recording in memory: those that k-means is fitted on lie in a temporary
    file, which is mapped.

    Args:
        out: replaced if it holds targets already.
        clusters: how many, or a model fitted before.
        share: of the training utterances, to fit on. workers: processes that read.
        watch: wraps what is gone through (with a count and a name), for a progress bar.

    Returns:
        What is in ``targets.json``: features, clusters, frames and label entropy (bits) of each split, and the quality
        of the clusters where phones are known.

    Raises:
        ValueError: more clusters than frames to fit them on, or features that do not come at their rate.
    """
    lengths = np.array([features.frames(u.samples) for u in utterances])
    check(utterances, lengths, features.label_rate)
    if not isinstance(clusters, Clusters):
        clusters = _fit(utterances, features, clusters, share, seed, workers, watch)
    quality = Quality(len(clusters), features.label_rate)
    counts = {split: np.zeros(len(clusters), np.int64) for split in SPLITS}
    with replacing(out, overwrite=True, replaceable=lambda directory: (directory / FACTS).is_file()) as fresh:
        kind = np.uint16 if len(clusters) <= 2**16 else np.int32
        labels = np.lib.format.open_memmap(fresh / LABELS, "w+", kind, (int(lengths.sum()),))
        start = 0
        for utterance, frames in watch(_stream(utterances, features, workers), len(utterances), "labelling"):
            found = clusters.assign(frames)
            labels[start : start + len(found)] = found
            start += len(found)
            counts[utterance.split] += np.bincount(found, minlength=len(clusters))
            quality.add(utterance, found)
        labels.flush()
        np.save(fresh / LENGTHS, lengths)
        clusters.save(fresh)
        facts = {
            "features": clusters.features,
            "label_rate": features.label_rate,
            "clusters": len(clusters),
            "manifest": digest(utterances),
            "splits": {s: {"frames": int(c.sum()), "entropy": entropy(c)} for s, c in counts.items() if c.any()},
            "quality": quality.result(),
        }
        write_facts(fresh, facts)
    return facts


def _fit(utterances, features, count, share, seed, workers, watch) -> Clusters:
    train = [u for u in utterances if u.split == "train"]
    rng = np.random.default_rng(seed)
    chosen = [train[i] for i in sorted(rng.permutation(len(train))[: max(1, round(share * len(train)))])]
    total = sum(features.frames(u.samples) for u in chosen)
    if count > total:
        raise ValueError(
            f"{count} clusters need at least as many frames, and {share:.0%} of the training utterances have {total}: "
            "give more audio, a larger share, or fewer clusters"
        )
    with tempfile.TemporaryDirectory() as folder:
        frames = np.lib.format.open_memmap(Path(folder) / "frames.npy", "w+", np.float32, (total, features.dims))
        start = 0
        for _, part in watch(_stream(chosen, features, workers), len(chosen), "sampling"):
            frames[start : start + len(part)] = part
            start += len(part)
        return Clusters.fit(frames, count, {"name": features.name, "share": share, "seed": seed}, seed=seed)


class _Recordings(Dataset):
    """Features of each recording, or its samples where features need a model."""

    def __init__(self, utterances: list[Utterance], features: Features):
        self.utterances, self.features = utterances, features

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> np.ndarray:
        wave = self.utterances[index].read()
        return self.features(wave) if self.features.on_workers else wave


def _stream(utterances, features, workers) -> Iterator[tuple[Utterance, np.ndarray]]:
    read = DataLoader(_Recordings(utterances, features), batch_size=None, num_workers=workers, collate_fn=_as_it_is)
    for utterance, made in zip(utterances, read, strict=True):
        frames = made if features.on_workers else features(made)
        wanted = features.frames(utterance.samples)
        if len(frames) != wanted:
            raise ValueError(f"{utterance.id} gives {len(frames)} frames of {features.name} where {wanted} should be")
        yield utterance, frames


def _as_it_is(item):
    return item
