"""``bitquant bench``: how fast a packed checkpoint is here, and where its time goes."""

import click

from bitquant.cli.options import allow_factory, as_json, example_data, weights

NONE = "none"


@click.command()
@click.argument("directory", type=click.Path())
@click.option("--float", "float_name", metavar="MODEL", help="The float model, where the checkpoint does not name it.")
@weights
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, help="Samples at once; repeatable.  [1]")
@click.option("--seconds", type=click.FloatRange(min=0.025), multiple=True, help="Of 16 kHz audio; repeatable.  [10]")
@click.option("--tokens", type=click.IntRange(min=1), multiple=True, help="Of text; repeatable.  [128]")
@click.option("--threads", type=click.IntRange(min=1), help="Of all models.  [default: torch's own]")
@click.option(
    "--mode",
    type=click.Choice(["exact", "fast", NONE]),
    default="exact",
    show_default=True,
    help="How the float extractor and positional convolution of the packed model run: see bitquant.optimize_.",
)
@click.option("--time", default=2.0, show_default=True, type=click.FloatRange(min=0), help="Seconds for each row.")
@example_data
@allow_factory
@as_json
def bench(directory, float_name, weights, batches, seconds, tokens, threads, mode, time, data, allow_factory, as_json):
    """Time the packed checkpoint in DIRECTORY beside its float model.

    The packed model is first compared with the plain-torch definition, bit for bit. Noise in, unless data is given;
    random weights for the float model: neither changes a time.
    """
    import json

    import torch

    from bitquant import bench as measuring
    from bitquant import ops
    from bitquant.checkpoint import load, read_metadata
    from bitquant.coverage import is_packed
    from bitquant.runtime import optimize_
    from bitquant.runtime.shares import shares
    from bitquant.sources import Source, model_directory, open_source, weight_files

    if data is not None and (seconds or tokens):
        raise click.UsageError("--data has lengths of its own: it excludes --seconds and --tokens")
    if threads:
        torch.set_num_threads(threads)
    directory = model_directory(directory)
    config, meta = read_metadata(directory)
    before = open_source(float_name, weights).model if float_name else None
    model = load(directory, model=None if "model_type" in config else before, allow_factory=allow_factory)
    if not is_packed(model):
        raise ValueError(f"{directory} holds a student that was not packed: run convert_, then save it")
    before = before or measuring.float_twin(config, meta, allow_factory=allow_factory)
    source = Source(str(directory), model, directory, weight_files(directory), factory=meta.get("factory"))
    cases = measuring.shapes(source, batches or (1,), seconds or (10.0,), tokens or (128,), data)
    if not measuring.equals_definition(model, cases[0][1]):
        raise ValueError("the kernels differ from their definition on this machine: no time is given")
    rows = [] if mode == NONE else optimize_(model, mode, cases[0][1])
    models = {**({"float": before} if before is not None else {}), "packed": model}
    result = {
        "backend": ops.backends()[0].reason,
        "threads": torch.get_num_threads(),
        "mode": mode,
        "optimized": [row._asdict() for row in rows],
        "times": measuring.times(models, cases, seconds=time),
        "shares": {name: shares(found, cases[-1][1]) for name, found in models.items()},
    }
    click.echo(json.dumps(result, indent=2) if as_json else _tables(result))


def _tables(result):
    from tabulate import tabulate

    style = {"tablefmt": "simple", "disable_numparse": True}
    head = f"{result['backend']}; {result['threads']} threads; equal to the definition, bit for bit"
    facts = [key for key in result["times"][0] if key != "milliseconds"]
    names = list(result["shares"])
    rows = [
        [*(f"{row[key]:g}" for key in facts), *(f"{row['milliseconds'][name]:.2f}" for name in names), _ratio(row)]
        for row in result["times"]
    ]
    times = tabulate(rows, headers=[*facts, *(f"{name} ms" for name in names), "times faster"],
                     colalign=["right"] * len(rows[0]), **style)  # fmt: skip
    tables = [head, times, *(_shares(name, found, style) for name, found in result["shares"].items())]
    if "float" not in names:
        tables.append("The checkpoint names no float model: give it with --float (and --weights), or --allow-factory.")
    left = [row for row in result["optimized"] if row["reason"]]
    return "\n\n".join(tables + [f"{row['what']} {row['path']} runs as it is: {row['reason']}" for row in left])


def _ratio(row):
    times = row["milliseconds"]
    return f"{times['float'] / times['packed']:.1f}" if "float" in times else "-"


def _shares(name, found, style):
    from tabulate import tabulate

    total = sum(found.values())
    rows = [(kind, f"{ms:.2f}", f"{100 * ms / total:.1f} %") for kind, ms in found.items() if ms > 0.005 * total]
    headers = (f"{name} model, last row", "ms", "share")
    return tabulate(rows, headers=headers, colalign=("left", "right", "right"), **style)
