"""``bitquant export``: a packed checkpoint as an ONNX file, checked in ONNX Runtime."""

import click

from bitquant.cli.options import allow_factory, as_json, example_data


@click.command()
@click.argument("directory", type=click.Path())
@click.argument("out", type=click.Path(dir_okay=False))
@click.option(
    "--fixed", is_flag=True, help="Fix batch size and length to the example's, in place of letting them vary."
)
@click.option("--fold", is_flag=True, help="Store int8 weights: eight times the size, but loaded without unpacking.")
@click.option(
    "--flavour",
    type=click.Choice(["standard", "qonnx"]),
    default="standard",
    show_default=True,
    help="qonnx: BipolarQuant nodes, for FPGA tools.",
)
@click.option("--no-check", is_flag=True, help="Neither replay every layer in ONNX Runtime nor time the file.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of ONNX Runtime, when timed."
)
@example_data
@allow_factory
@as_json
def export(directory, out, fixed, fold, flavour, no_check, threads, data, allow_factory, as_json):
    """Write the packed checkpoint in DIRECTORY as the ONNX file OUT."""
    import json

    from bitquant.checkpoint import load, read_metadata
    from bitquant.onnx import export_onnx
    from bitquant.sources import Source, model_directory, weight_files

    directory = model_directory(directory)
    _, meta = read_metadata(directory)
    model = load(directory, allow_factory=allow_factory)
    source = Source(str(directory), model, directory, weight_files(directory), factory=meta.get("factory"))
    options = {"dynamic": not fixed, "fold": fold, "flavour": flavour, "check": not no_check, "threads": threads}
    exported = export_onnx(model, source.example_inputs(data), out, **options)
    click.echo(json.dumps(exported.to_dict(), indent=2) if as_json else str(exported))
