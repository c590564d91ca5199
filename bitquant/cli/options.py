"""Options that several commands share."""

import functools

import click

QUANTIZATION = ("preset", "config_file", "skip", "low_rank", "embedding_bits")  # what describes one, but for widths


def as_json(command):
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(command)


def weights(command):
    help = "Safetensors file, when MODEL is package.module:factory."
    return click.option("--weights", type=click.Path(), metavar="FILE", help=help)(command)


def example_data(command):
    help = "Data to run it on, for a model that takes neither text nor sound, or without its tokenizer."
    return click.option("--data", type=click.Path(), help=help)(command)


def allow_factory(command):
    help = "Import and call the factory that a checkpoint names."
    return click.option("--allow-factory", is_flag=True, help=help)(command)


def quantization(command):
    """Adds the options that describe a quantization, in whose place the command is given ``config``, a QuantConfig.

    Where it has options of its own for ``widths`` and a ``chain``, they count too; it is given the chain.
    """

    @functools.wraps(command)
    def configured(*, widths=None, **others):
        described = {name: others.pop(name) for name in QUANTIZATION}
        config = configuration(**described, widths=widths, chain=others.get("chain"))
        return command(config=config, **others)

    options = [
        click.option("--preset", help="bit-plus (ours) or bit-ref (the paper's).  [default: bit-plus]"),
        click.option("--config", "config_file", type=click.Path(), metavar="FILE", help="A QuantConfig as JSON."),
        click.option("--skip", multiple=True, metavar="RULE", help="Leave a module in float: its name or re:PATTERN."),
        click.option(
            "--low-rank",
            type=click.IntRange(min=0),
            metavar="RANK",
            help="A float path of this rank beside each quantized linear layer.  [default: none]",
        ),
        click.option(
            "--embedding-bits",
            type=click.Choice(["1", "2", "4", "8", "32"]),
            help="Bits of token embedding tables.  [default: 1]",
        ),
    ]
    return _with(options, configured)


def refuse_quantization():
    """UsageError when the command was given an option that describes a quantization, but its model is quantized."""
    context = click.get_current_context()
    for option in (option for option in context.command.params if option.name in (*QUANTIZATION, "bits")):
        if context.get_parameter_source(option.name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"{option.opts[0]} is for a float model: this checkpoint is quantized already")


def training(steps):
    """Decorator that adds the options of a training run, those of the quantization among them."""
    rate = click.FloatRange(min=0, min_open=True)
    options = [
        click.option("--widths", metavar="W1A8", help="Bits of weights and activations.  [default: w1a1]"),
        click.option("--chain", metavar="LIST", help="Train in stages, as in w1a8,w1a4,w1a1; bit for BiT's w1a2,w1a1."),
        click.option(
            "--stage-teacher",
            type=click.Choice(["float", "previous"]),
            default="float",
            show_default=True,
            help="Who teaches the stages after the first.",
        ),
        click.option(
            "--steps", type=click.IntRange(min=0), default=steps, show_default=True, help="Training steps of a stage."
        ),
        click.option("--lr", type=rate, help="Peak learning rate of the weights, in place of the trainer's."),
        click.option("--scale-lr", type=rate, help="Likewise of the quantizers' scales."),
        click.option(
            "--pooled-weight",
            type=click.FloatRange(min=0),
            help="Weight of the loss of outputs averaged over tokens, for sentence embeddings.  [default: 0]",
        ),
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all randomness."
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            help="In samples.  [default: 32; 16 pictures, 8 recordings]",
        ),
        click.option("--max-length", type=click.IntRange(min=4), default=128, show_default=True, help="In tokens."),
        click.option(
            "--checkpoint-every",
            type=click.IntRange(min=1),
            default=100,
            show_default=True,
            help="Steps between two training checkpoints, kept in OUT.training.",
        ),
        click.option("--resume", is_flag=True, help="Go on with the training in OUT.training."),
        click.option(
            "--overwrite", is_flag=True, help="Replace an earlier checkpoint, and a training not resumed, there."
        ),
    ]

    return lambda command: _with(options, quantization(command))


def _with(options, command):
    for option in reversed(options):
        command = option(command)
    return command


def configuration(*, preset, config_file, skip, low_rank, embedding_bits, widths, chain):
    """The QuantConfig that the options describe; a chain's is that of its last stage."""
    import dataclasses

    from bitquant.config import QuantConfig
    from bitquant.json_object import read_object
    from bitquant.widths import parse_chain, parse_widths

    if preset and config_file:
        raise click.UsageError("--preset and --config exclude each other: a configuration file says everything")
    if widths and chain:
        raise click.UsageError("--widths and --chain exclude each other: a chain ends at its last widths")
    if config_file:
        config = QuantConfig.from_dict(read_object(config_file))
    else:
        config = QuantConfig.preset(preset or "bit-plus")
    bits = parse_widths(widths) if widths else parse_chain(chain)[-1] if chain else None
    changes = dataclasses.asdict(bits) if bits else {}
    given = {"low_rank": low_rank, "embedding_bits": embedding_bits}
    changes |= {name: int(value) for name, value in given.items() if value is not None}
    return dataclasses.replace(config, modules_to_not_convert=(*config.modules_to_not_convert, *skip), **changes)
