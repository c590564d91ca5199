"""``bitquant inspect``: what a model is made of and what would be, or is, binarized."""

import click

from bitquant.cli.options import as_json


@click.command()
@click.argument("model", type=click.Path())
@as_json
def inspect(model, as_json):
    """Show the layers of MODEL, a Hugging Face directory or a bitquant checkpoint."""
    import json

    from bitquant.checkpoint import is_checkpoint, load
    from bitquant.coverage import report
    from bitquant.sources import load_source, model_directory

    directory = model_directory(model)
    if is_checkpoint(directory):
        coverage = report(load(directory))
    else:
        source = load_source(directory)
        coverage = report(source.model, source.example_inputs())
    click.echo(json.dumps(coverage.to_dict(), indent=2) if as_json else str(coverage))
