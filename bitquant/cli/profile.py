"""``bitquant profile``: what a model costs to store and to run, before and after quantization."""

import click

from bitquant.cli.options import allow_factory, as_json, example_data, quantization, refuse_quantization


@click.command()
@click.argument("model")
@click.option("--seconds", type=click.FloatRange(min=0.025), default=10.0, show_default=True, help="Of 16 kHz audio.")
@click.option("--tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Of text.")
@click.option("--widths", "bits", default="W1A1", show_default=True, help="Weight and activation bits, quantized.")
@quantization
@click.option("--convention", default="consistent", show_default=True, help="consistent, or paper (its Table 1).")
@click.option(
    "--attention",
    type=click.Choice(["dense", "ideal"]),
    default="dense",
    show_default=True,
    help="Count all pairs of frames, or those that a boolean mask keeps.",
)
@click.option("--device", default="a100", show_default=True, help="Peak rates for the estimated time: a100, h100.")
@click.option("--depth", type=click.IntRange(min=1), default=2, show_default=True, help="Group by that many names.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Also write a picture, such as out.png.")
@example_data
@allow_factory
@as_json
def profile(
    model, seconds, tokens, bits, config, convention, attention, device, depth, plot, data, allow_factory, as_json
):
    """Count parameters, bytes and operations of MODEL for one input.

    MODEL is a Hugging Face directory, a bitquant checkpoint, or package.module:factory.
    """
    import json
    from dataclasses import asdict

    from bitquant.bench import shapes
    from bitquant.profiling import profile as measure
    from bitquant.profiling.table import comparison, table
    from bitquant.record import is_quantized
    from bitquant.widths import parse_widths

    widths = parse_widths(bits)
    source = find_model(model, allow_factory)
    loaded = source.model
    quantized = is_quantized(loaded)
    if quantized:
        refuse_quantization()
    ((_, inputs),) = shapes(source, (1,), (seconds,), (tokens,), data)
    settings = {"convention": find_convention(convention, attention), "device": device}
    after = before = measure(loaded, inputs, **settings)
    if not quantized:
        after = measure(loaded, inputs, **asdict(widths), config=config, **settings)
    if plot:
        from bitquant.profiling.plot import plot as draw

        draw(before, after, plot, title=f"{model}, {str(widths).upper()}")
    if as_json:
        profiles = {"profile": before} if quantized else {"before": before, "after": after}
        click.echo(json.dumps({name: found.to_dict() for name, found in profiles.items()}, indent=2))
    elif quantized:
        click.echo(table(before, before.by_depth(depth)))
    else:
        click.echo(comparison(before, after, depth))


def find_convention(name, attention):
    """The named convention, with attention counted as told."""
    from dataclasses import replace

    from bitquant.profiling import CONVENTIONS

    if name not in CONVENTIONS:
        raise ValueError(f"unknown convention {name!r}; known: {', '.join(CONVENTIONS)}")
    return replace(CONVENTIONS[name], attention=attention)


def find_model(name, allow_factory):
    """The Source of a directory or of ``package.module:factory``: a float or quantized model in eval mode."""
    from pathlib import Path

    from bitquant.checkpoint import is_checkpoint, load, read_metadata
    from bitquant.sources import Source, factory, load_source, model_directory

    if factory.recognises(name):  # costs do not depend on the weights
        return Source(name, factory.make(name).eval(), Path.cwd(), [], factory=name)
    directory = model_directory(name)
    if not is_checkpoint(directory):
        return load_source(directory)
    model = load(directory, allow_factory=allow_factory)
    return Source(name, model, directory, [], factory=read_metadata(directory)[1].get("factory"))
