"""How much clusters say of phones: purity and PNMI, where the phones are known."""

from __future__ import annotations

import numpy as np

from ..data.manifest import Utterance
from .labels import entropy

CENTRE = 0.0125  # seconds from the start of a frame of 25 ms to its middle


class Quality:
    """Counts which cluster meets which phone; utterances come one by one.

    Args:
        clusters: how many there are. label_rate: labels a second.
    """

    def __init__(self, clusters: int, label_rate: int):
        self.clusters, self.label_rate = clusters, label_rate
        self._counts: dict[str, np.ndarray] = {}

    def add(self, utterance: Utterance, labels: np.ndarray) -> None:
        """An utterance without phones adds nothing."""
        if not utterance.phones:
            return
        starts, symbols = zip(*utterance.phones, strict=True)
        times = np.arange(len(labels)) / self.label_rate + CENTRE
        spoken = np.searchsorted(starts, times, side="right") - 1
        for number in np.unique(spoken[spoken >= 0]):
            counts = np.bincount(labels[spoken == number], minlength=self.clusters)
            self._counts[symbols[number]] = self._counts.get(symbols[number], 0) + counts

    def result(self) -> dict[str, float] | None:
        """``phone_purity``: share of frames whose phone is the most frequent one of their cluster;
        ``cluster_purity``: share of frames whose cluster is the most frequent one of their phone; ``pnmi``: mutual
        information of the two over the entropy of the phones; ``phones``: how many. None without any."""
        if not self._counts:
            return None
        joint = np.stack(list(self._counts.values())).astype(np.float64)
        phones, clusters = joint.sum(1), joint.sum(0)
        mutual = entropy(phones) + entropy(clusters) - entropy(joint.flatten())
        return {
            "phone_purity": float(joint.max(0).sum() / joint.sum()),
            "cluster_purity": float(joint.max(1).sum() / joint.sum()),
            "pnmi": mutual / max(entropy(phones), 1e-12),
            "phones": len(joint),
        }
