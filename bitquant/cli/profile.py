"""``bitquant profile``: what a model costs to store and to run, before and after quantization."""

import re

import click

from bitquant.cli.options import as_json


@click.command()
@click.argument("model")
@click.option("--seconds", type=click.FloatRange(min=0.025), default=10.0, show_default=True, help="Of 16 kHz audio.")
@click.option("--tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Of text.")
@click.option("--width", default="W1A1", show_default=True, help="Weight and activation bits after quantization.")
@click.option("--preset", default="bit-plus", show_default=True, help="Decides what would be quantized.")
@click.option("--convention", default="consistent", show_default=True, help="consistent, or paper (its Table 1).")
@click.option("--device", default="a100", show_default=True, help="Peak rates for the estimated time: a100, h100.")
@click.option("--depth", type=click.IntRange(min=1), default=2, show_default=True, help="Group by that many names.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Also write a picture, such as out.png.")
@as_json
def profile(model, seconds, tokens, width, preset, convention, device, depth, plot, as_json):
    """Count parameters, bytes and operations of MODEL for one input.

    MODEL is a Hugging Face directory, a bitquant checkpoint, or MODULE:FUNCTION, a function that builds the model.
    """
    import json

    from bitquant.coverage import Record
    from bitquant.profiling import profile as measure
    from bitquant.profiling.inputs import inputs_for
    from bitquant.profiling.table import comparison, table

    widths = parse_width(width)
    loaded = find_model(model)
    inputs = inputs_for(loaded, seconds=seconds, tokens=tokens)
    settings = {"convention": convention, "device": device}
    before = measure(loaded, inputs, **settings)
    quantized = isinstance(getattr(loaded, "_bitquant", None), Record)
    after = before
    if not quantized:
        after = measure(loaded, inputs, **widths, config=preset, **settings)
    if plot:
        from bitquant.profiling.plot import plot as draw

        draw(before, after, plot, title=f"{model}, {width.upper()}")
    if as_json:
        profiles = {"profile": before} if quantized else {"before": before, "after": after}
        click.echo(json.dumps({name: found.to_dict() for name, found in profiles.items()}, indent=2))
    elif quantized:
        click.echo(table(before, before.by_depth(depth)))
    else:
        click.echo(comparison(before, after, depth))


def parse_width(text):
    """``"W1A1"`` -> keyword arguments of ``bitquant.profile``."""
    match = re.fullmatch(r"[wW](\d+)[aA](\d+)", text)
    if match is None:
        raise ValueError(f"a width reads like W1A1 or W1A2; got {text!r}")
    return {"weight_bits": int(match[1]), "activation_bits": int(match[2])}


def find_model(spec):
    """The model of a directory or of a ``MODULE:FUNCTION``, in eval mode; modules are also looked up from here."""
    module, colon, function = spec.partition(":")
    if colon and re.fullmatch(r"[\w.]+", module) and function.isidentifier():
        import sys
        from importlib import import_module

        sys.path.insert(0, "")
        try:
            found = getattr(import_module(module), function)
        except AttributeError:
            raise ValueError(f"module {module} has no {function!r}") from None
        finally:
            sys.path.remove("")
        return found().eval()
    from bitquant.checkpoint import is_checkpoint, load
    from bitquant.sources import load_source, model_directory

    directory = model_directory(spec)
    return load(directory) if is_checkpoint(directory) else load_source(directory).model
