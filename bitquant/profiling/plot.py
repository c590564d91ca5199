"""A picture of storage and compute by component, before and after quantization."""

from __future__ import annotations

from pathlib import Path

from bitquant.profiling.table import Profile

COLORS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb", "#222255", "#997700", "#44aa99")


def plot(before: Profile, after: Profile, file: str | Path, *, title: str = "") -> None:
    """Write stacked bars: storage in MB, float operations in GFLOP, low-bit products in GMAC.

    Args:
        file: its suffix decides the format, such as ``.png``.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: a format that matplotlib does not write.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError("a plot needs an extra: pip install 'bitquant-torch[recipes]'") from None
    panels = (("storage, MB", "storage_bytes", 1e6), ("float work, GFLOP", "flops", 1e9),
              ("low-bit products, GMAC", "quantized_macs", 1e9))  # fmt: skip
    rows = [{row.path: row for row in profile.by_component()} for profile in (before, after)]
    names = list({**rows[0], **rows[1]})
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axis, (label, field, unit) in zip(figure.subplots(1, 3), panels, strict=True):
        bottom = [0.0, 0.0]
        for index, name in enumerate(names):
            heights = [getattr(found[name], field) / unit if name in found else 0.0 for found in rows]
            axis.bar(("before", "after"), heights, 0.6, bottom, color=COLORS[index % len(COLORS)], label=name)
            bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
        for x, total in enumerate(bottom):
            axis.annotate(f"{total:.4g}", (x, total), ha="center", va="bottom", xytext=(0, 2),
                          textcoords="offset points")  # fmt: skip
        axis.set_title(label, fontsize="medium")
        axis.set_ylim(0, 1.1 * max(bottom, default=0) or 1)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False)
    figure.suptitle(title or "Before and after quantization")
    figure.savefig(file, dpi=150)
