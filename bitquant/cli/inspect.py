"""``bitquant inspect``: what a model is made of and what would be, or is, binarized."""

import click

from bitquant.cli.options import as_json, weights


@click.command()
@click.argument("model", type=click.Path())
@weights
@click.option("--data", type=click.Path(), help="Data to run it on, for a model that takes neither text nor sound.")
@as_json
def inspect(model, weights, data, as_json):
    """Show the layers of MODEL: a Hugging Face directory, package.module:factory, or a bitquant checkpoint."""
    import json
    from pathlib import Path

    from bitquant.checkpoint import is_checkpoint, load
    from bitquant.coverage import report
    from bitquant.data import read_data
    from bitquant.sources import check_name, open_source

    check_name(model, weights)
    if Path(model).is_dir() and is_checkpoint(model):
        coverage = report(load(model))
    else:
        source = open_source(model, weights)
        if data is None:
            example = source.example_inputs()
        else:
            found = read_data(data, source)
            example = found.example_inputs(found.samples)
        coverage = report(source.model, example)
    click.echo(json.dumps(coverage.to_dict(), indent=2) if as_json else str(coverage))
