"""Options that several commands share."""

import click


def as_json(command):
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(command)


def training(steps):
    """Decorator that adds the options of a training run."""
    options = [
        click.option(
            "--preset", default="bit-plus", show_default=True, help="bit-plus (ours) or bit-ref (the paper's)."
        ),
        click.option("--steps", type=click.IntRange(min=0), default=steps, show_default=True, help="Training steps."),
        click.option("--skip", multiple=True, metavar="RULE", help="Leave a module in float: its name or re:PATTERN."),
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all randomness."
        ),
        click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="In sentences."),
        click.option("--max-length", type=click.IntRange(min=4), default=128, show_default=True, help="In tokens."),
        click.option("--overwrite", is_flag=True, help="Replace an earlier checkpoint at the same place."),
    ]

    def add(command):
        for option in reversed(options):
            command = option(command)
        return command

    return add
