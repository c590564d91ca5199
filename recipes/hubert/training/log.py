"""What a run tells: one line of JSON an entry, and a picture of the curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from bitquant.atomic import replacing_file

LOG, CURVES = "log.jsonl", "curves.png"


class Log:
    """``directory/log.jsonl``. Entries after the point from which a run goes on are dropped: they come again."""

    def __init__(self, directory: Path):
        self.file = directory / LOG

    def rewind(self, iteration: int, updates: int) -> None:
        """Keep what was written up to ``updates`` of ``iteration``."""
        kept = [row for row in self.rows() if (row["iteration"], row["update"]) <= (iteration, updates)]
        with replacing_file(self.file) as fresh:
            fresh.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def add(self, **row: Any) -> None:
        with open(self.file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All entries; a last line that a crash left half is dropped."""
        if not self.file.exists():
            return []
        rows = []
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows


class Panel(NamedTuple):
    """Part of a picture: the losses of one iteration.

    Args:
        title: above it. rows: of a log. iteration: which. control: rows of a run on shuffled labels, or nothing.
    """

    title: str
    rows: list[dict[str, Any]]
    iteration: int
    control: list[dict[str, Any]] = []

    def points(self, split: str) -> list[tuple[int, float]]:
        return [(r["update"], r["loss"]) for r in self.rows if (r["iteration"], r["split"]) == (self.iteration, split)]


def draw(panels: list[Panel], file: Path) -> None:
    """The losses as a picture: training, held out, the control, and the entropy of the labels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.8), squeeze=False, sharey=True)
    for panel, axis in zip(panels, axes[0], strict=True):
        curves = [
            ("training", panel.points("train"), {"linewidth": 0.7, "color": "tab:blue"}),
            ("held out", panel.points("valid"), {"marker": "o", "markersize": 3, "color": "tab:orange"}),
            (
                "held out, shuffled labels",
                panel._replace(rows=panel.control).points("valid"),
                {"marker": "x", "color": "tab:red"},
            ),
        ]
        for label, points, style in curves:
            if points:
                axis.plot(*zip(*points, strict=True), label=label, **style)
        baseline = [r["unigram"] for r in panel.rows if (r["iteration"], r["split"]) == (panel.iteration, "valid")]
        if baseline:
            axis.axhline(baseline[-1], color="grey", linestyle="--", linewidth=1, label="entropy of the labels")
        axis.set(title=panel.title, xlabel="update")
        axis.title.set_fontsize("medium")
    axes[0][0].set_ylabel("bits a masked frame")
    axes[0][0].legend(fontsize="x-small")
    figure.tight_layout()
    with replacing_file(file) as fresh:
        figure.savefig(fresh, dpi=70)
    pyplot.close(figure)
