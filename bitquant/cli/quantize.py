"""``bitquant quantize``: a model and data in, a 1-bit checkpoint and a table out."""

import click

from bitquant.cli.options import as_json, training


@click.command()
@click.argument("model", type=click.Path())
@click.option("--data", required=True, type=click.Path(), help="A text file, or a folder of them.")
@click.option("--out", required=True, type=click.Path(), help="Directory to write.")
@training(steps=1000)
@as_json
def quantize(model, data, out, overwrite, as_json, **options):
    """Binarize MODEL, a Hugging Face directory, and distil its accuracy back on DATA."""
    from bitquant.data import read_text

    run(lambda: model, lambda: read_text(data), out, overwrite, as_json, **options)


def run(find_model, read_sentences, out, overwrite, as_json, *, preset, skip, **options):
    """Runs ``bitquant.pipeline.binarize`` with a progress bar and prints what it measured; cheap checks go first."""
    from bitquant.checkpoint import check_target
    from bitquant.cli.progress import TrainingBar
    from bitquant.cli.summary import summary
    from bitquant.config import QuantConfig
    from bitquant.pipeline import binarize
    from bitquant.sources import load_source, model_directory

    config = QuantConfig.preset(preset, modules_to_not_convert=skip)
    check_target(out, overwrite=overwrite)
    directory = model_directory(find_model())
    with TrainingBar() as bar:
        bar.say("reading the text and the model")
        sentences = read_sentences()
        source = load_source(directory)
        result = binarize(source, sentences, out, config, overwrite=overwrite, progress=bar, say=bar.say, **options)
    if as_json:
        import json

        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(summary(result))
