"""k-means over frames: scikit-learn's, fitted on a sample that lies on disk, kept as npz (hubert.md 1.5)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bitquant.atomic import replacing_file
from bitquant.data.arrays import read_npz

FILE = "kmeans.npz"


class Clusters:
    """Cluster centres and what they are centres of.

    Args:
        centres: float32 (clusters, dims).
        features: JSON-able facts about the features, such as their name.
    """

    def __init__(self, centres: np.ndarray, features: dict):
        self.centres, self.features = np.ascontiguousarray(centres, np.float32), features
        self._half_norms = 0.5 * (self.centres.astype(np.float64) ** 2).sum(1).astype(np.float32)

    def __len__(self) -> int:
        return len(self.centres)

    def assign(self, frames: np.ndarray) -> np.ndarray:
        """The nearest centre of each frame: (frames, dims) -> int64 (frames,)."""
        return (frames @ self.centres.T - self._half_norms).argmax(1)

    @classmethod
    def fit(cls, frames: np.ndarray, count: int, features: dict, *, seed: int = 0) -> Clusters:
        """Mini-batch k-means with the settings of HuBERT.

        Args:
            frames: float32 (frames, dims); a memory map is read batch by batch.

        Raises:
            ValueError: more clusters than frames.
        """
        if count > len(frames):
            raise ValueError(f"{count} clusters need at least as many frames; there are {len(frames)}: give more audio")
        try:
            from sklearn.cluster import MiniBatchKMeans
        except ModuleNotFoundError:
            raise ModuleNotFoundError("k-means needs an extra: pip install 'bitquant-torch[recipes]'") from None
        batch = 10_000
        means = MiniBatchKMeans(
            count, init="k-means++", max_iter=100, batch_size=batch, init_size=max(3 * batch, count), tol=0.0,
            max_no_improvement=100, n_init=20, reassignment_ratio=0.0, random_state=seed, compute_labels=False,
        )  # fmt: skip
        return cls(means.fit(frames).cluster_centers_, features)

    def save(self, directory: Path) -> None:
        """``directory/kmeans.npz``, whole or not at all."""
        with replacing_file(directory / FILE) as fresh:
            np.savez(fresh, centres=self.centres, features=np.array(json.dumps(self.features)))

    @classmethod
    def load(cls, directory: str | Path) -> Clusters:
        """ValueError when there is none, or it is damaged."""
        file = Path(directory) / FILE
        if not file.is_file():
            raise ValueError(f"{directory} holds no {FILE}")
        try:
            stored = read_npz(file)
            return cls(stored["centres"], json.loads(str(stored["features"])))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{file} is damaged: {error}") from None
