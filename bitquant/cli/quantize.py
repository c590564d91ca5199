"""``bitquant quantize``: a model and data in, a 1-bit checkpoint and a table out."""

import click

from bitquant.cli.options import as_json, training, weights


@click.command()
@click.argument("model", type=click.Path())
@weights
@click.option(
    "--data", required=True, type=click.Path(), help="Text, a folder of recordings or pictures, or an .npz file."
)
@click.option("--out", required=True, type=click.Path(), help="Directory to write.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    help="Longer recordings are cut.",
)
@training(steps=1000)
@as_json
def quantize(model, weights, data, out, max_length, max_seconds, **options):
    """Binarize MODEL, a Hugging Face directory or package.module:factory, and distil its accuracy back on DATA."""

    def find():
        from bitquant.data import recognise
        from bitquant.sources import check_name

        recognise(data)
        check_name(model, weights)
        return model, weights

    def read(source):
        from bitquant.data import read_data

        return read_data(data, source, max_length=max_length, max_seconds=max_seconds)

    run(find, read, out, **options)


def run(
    find_model,
    read,
    out,
    *,
    overwrite,
    resume,
    as_json,
    config,
    chain,
    **options,
):
    """Runs ``bitquant.pipeline.binarize`` with a progress bar and prints what it measured; cheap checks go first.

    Args:
        find_model (callable): gives the arguments of ``open_source``.
        read (callable): Source -> Data.
    """
    from bitquant.cli.progress import TrainingBar
    from bitquant.cli.summary import summary
    from bitquant.pipeline import binarize, claimed
    from bitquant.sources import open_source

    given = {name: value for name, value in options.items() if value is not None}  # the rest is the trainer's
    with claimed(out, overwrite=overwrite, resume=resume), TrainingBar() as bar:
        found = find_model()
        bar.say("reading the model and the data")
        source = open_source(*found)
        data = read(source)
        result = binarize(
            source,
            data,
            out,
            config,
            chain=chain,
            overwrite=overwrite,
            resume=resume,
            progress=bar,
            say=bar.say,
            **given,
        )
    if as_json:
        import json

        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(summary(result))
