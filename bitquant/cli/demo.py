"""``bitquant demo``: the whole path on a real sentence encoder and real English, no other input needed."""

import click

from bitquant.cli.options import as_json, training
from bitquant.cli.quantize import run


@click.command()
@click.option("--out", default="minilm-1bit", show_default=True, type=click.Path(), help="Directory to write.")
@training(steps=400)
@as_json
def demo(out, max_length, **options):
    """Binarize the MiniLM sentence encoder on English text that is already on this machine."""
    from bitquant.data import Sentences
    from bitquant.demo import demo_model, demo_sentences

    run(
        lambda: (str(demo_model()),),
        lambda source: Sentences(demo_sentences(), source, max_length=max_length),
        out,
        **options,
    )
