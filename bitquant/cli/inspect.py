"""``bitquant inspect``: what a model is made of and what would be, or is, binarized."""

import sys

import click

from bitquant.cli.options import allow_factory, as_json, example_data, quantization, refuse_quantization, weights

SAMPLES = 64


@click.command()
@click.argument("model", type=click.Path())
@weights
@example_data
@click.option("--code", "module", metavar="MODULE", help="Show the source that MODULE would be rewritten to.")
@click.option(
    "--sensitivity", "sensitive", metavar="DATA", type=click.Path(), help="Rank layers by what binarizing each does."
)
@click.option(
    "--budget", type=click.FloatRange(0, 1), help="Share of the MACs that --sensitivity may propose to keep wider."
)
@click.option(
    "--save",
    "save_to",
    type=click.File("w", atomic=True),
    metavar="FILE",
    help="Write that proposal, for quantize --config.",
)
@quantization
@allow_factory
@as_json
def inspect(model, weights, data, module, sensitive, budget, save_to, config, allow_factory, as_json):
    """Show the layers of MODEL: a Hugging Face directory, package.module:factory, or a bitquant checkpoint."""
    import json
    from pathlib import Path

    from bitquant.checkpoint import is_checkpoint, load
    from bitquant.coverage import report
    from bitquant.sources import check_name, open_source

    if sensitive is None and (budget is not None or save_to):
        raise click.UsageError("--budget and --save go with --sensitivity")
    if save_to and budget is None:
        raise click.UsageError("--save writes a proposal: give the --budget it is to keep to")
    check_name(model, weights)
    if Path(model).is_dir() and is_checkpoint(model):
        if module is not None:
            raise click.UsageError("--code takes a float model: a checkpoint is rewritten when it first runs")
        if sensitive is not None:
            raise click.UsageError("--sensitivity takes a float model: this checkpoint is binarized already")
        refuse_quantization()
        coverage = report(load(model, allow_factory=allow_factory))
    else:
        source = open_source(model, weights)
        if sensitive is not None:
            _rank(source, config, sensitive, budget, save_to, as_json)
            return
        example = source.example_inputs(data)
        if module is not None:
            click.echo(_rewritten(source.model, config, example, module))
            return
        coverage = report(source.model, example, config)
    click.echo(json.dumps(coverage.to_dict(), indent=2) if as_json else str(coverage))


def _rewritten(model, config, example, module):
    """Readable source of one module after ``quantize_``."""
    from bitquant.capture import code
    from bitquant.quantize import quantize_

    quantize_(model, config, example)
    return code(model, module)


def _rank(source, config, path, budget, save_to, as_json):
    """Every layer binarized alone, over up to 64 samples that training may see: what is held out judges the choice."""
    import dataclasses
    import json

    from bitquant.damage import sensitivity
    from bitquant.data import read_data

    data = read_data(path, source)
    samples, _ = data.usable(data.split()[0][:SAMPLES])
    batches = list(data.batches(data.in_order(samples), batch_size=data.batch_size))
    with click.progressbar(length=1, label="layers", file=sys.stderr) as bar:

        def tell(done, total):
            bar.length = total
            bar.update(1)

        ranking = sensitivity(source.model, config, batches, progress=tell)
    if budget is not None:
        ranking.propose(budget)
    click.echo(json.dumps(ranking.to_dict(), indent=2) if as_json else str(ranking))
    if save_to:
        rules = {**config.rules, **ranking.rules}
        save_to.write(json.dumps(dataclasses.replace(config, rules=rules).to_dict(), indent=2))
