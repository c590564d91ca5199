"""``bitquant inspect``: what a model is made of and what would be, or is, binarized."""

import click

from bitquant.cli.options import as_json, weights


@click.command()
@click.argument("model", type=click.Path())
@weights
@click.option("--data", type=click.Path(), help="Data to run it on, for a model that takes neither text nor sound.")
@click.option("--code", "module", metavar="MODULE", help="Show the source that MODULE would be rewritten to.")
@click.option("--allow-factory", is_flag=True, help="Import and call the factory that a checkpoint names.")
@as_json
def inspect(model, weights, data, module, allow_factory, as_json):
    """Show the layers of MODEL: a Hugging Face directory, package.module:factory, or a bitquant checkpoint."""
    import json
    from pathlib import Path

    from bitquant.checkpoint import is_checkpoint, load
    from bitquant.coverage import report
    from bitquant.data import read_data
    from bitquant.sources import check_name, open_source

    check_name(model, weights)
    if Path(model).is_dir() and is_checkpoint(model):
        if module is not None:
            raise click.UsageError("--code takes a float model: a checkpoint is rewritten when it first runs")
        coverage = report(load(model, allow_factory=allow_factory))
    else:
        source = open_source(model, weights)
        if data is None:
            example = source.example_inputs()
        else:
            found = read_data(data, source)
            example = found.example_inputs(found.usable(found.samples[:32])[0])
        if module is not None:
            click.echo(_rewritten(source.model, example, module))
            return
        coverage = report(source.model, example)
    click.echo(json.dumps(coverage.to_dict(), indent=2) if as_json else str(coverage))


def _rewritten(model, example, module):
    """Readable source of one module after ``quantize_`` with the default preset."""
    from bitquant.capture import code
    from bitquant.quantize import quantize_

    quantize_(model, None, example)
    return code(model, module)
