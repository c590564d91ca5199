"""The table that ends every run."""

from tabulate import tabulate

STYLE = {"tablefmt": "simple", "disable_numparse": True}


def summary(result):
    """Text of ``bitquant.pipeline.binarize``'s result: size, time, share, fidelity, what stayed float."""
    held_out = f"{result['data']['held_out']} held-out {result['data']['unit']}"
    same = "bit for bit equal to" if result["identical_after_reload"] else "NOT equal to"
    tables = [
        tabulate(_before_after(result), headers=("", "before", "after", ""), colalign=_align(4), **STYLE),
        tabulate(_fidelity(result), headers=(held_out, *_COLUMNS), colalign=_align(4), **STYLE),
        *filter(None, (left_in_float(result["coverage"]), result["coverage"]["warning"])),
        f"Saved in {result['out']}; loaded again in a fresh process it is {same} the trained student.",
    ]
    return "\n" + "\n\n".join(tables)


_ROW = ("left", "left", "right", "left")
_COLUMNS = ("undistilled", "distilled", "chance")


def _align(columns):
    return ("left", *["right"] * (columns - 1))


def _before_after(result):
    labels = {"weights": "model.safetensors, MB", "directory": "with all that loading needs, MB"}
    rows = []
    for key, label in labels.items():
        size = result["megabytes"][key]
        rows.append((label, f"{size['before']:.2f}", f"{size['after']:.2f}", f"{size['before'] / size['after']:.1f}x"))
    for time in result["milliseconds"]:
        lengths = [f", {time[key]:g} {unit}" for key, unit in (("tokens", "tokens"), ("seconds", "s")) if key in time]
        label = f"batch {time['batch']}{''.join(lengths)}, ms"
        rows.append((label, f"{time['before']:.1f}", f"{time['after']:.1f}", f"{time['before'] / time['after']:.1f}x"))
    rows.append(("MACs binarized", "0.0 %", f"{100 * result['coverage']['share_binarized']:.1f} %", ""))
    return rows


def _fidelity(result):
    before, after = result["fidelity"]["undistilled"], result["fidelity"]["distilled"]
    others = max(result["data"]["held_out"] - 1, 1)
    rows = [
        ("cosine to the teacher", f"{before['cosine']:.3f}", f"{after['cosine']:.3f}", ""),
        ("same nearest neighbour", _percent(before["top1"]), _percent(after["top1"]), _percent(1 / others)),
        ("same 10 nearest", _percent(before["top10"]), _percent(after["top10"]), _percent(min(10 / others, 1))),
    ]
    if "argmax" in before:
        rows.append(("same class chosen", _percent(before["argmax"]), _percent(after["argmax"]), ""))
    return rows


def _percent(share):
    return f"{100 * share:.1f} %"


def left_in_float(coverage):
    """Table of the layers and products that stayed float, and why; ``coverage`` is ``Report.to_dict()``."""
    from bitquant.plan import BESIDE

    total = max(coverage["total_macs"], 1)
    left = [row for row in coverage["rows"] if row["reason"] not in (None, BESIDE)]
    beside = [row for row in coverage["rows"] if row["reason"] == BESIDE]
    rows = [(row["path"], row["kind"], _percent(row["macs"] / total), _why(row)) for row in left]
    if beside:
        macs = _percent(sum(row["macs"] for row in beside) / total)
        rows.append((f"{len(beside)} paths of low rank", "linear", macs, _why(beside[0])))
    if not rows:
        return "Nothing stayed in float."
    return tabulate(rows, headers=("stayed in float", "kind", "MACs", "why"), colalign=_ROW, **STYLE)


def _why(row):
    return f"{row['reason']} ({row['note']})" if row["note"] else row["reason"]
