"""What goes wrong on the user's side ends as one sentence on stderr, not as a traceback."""

import os

import click


class Commands(click.Group):
    """A group whose commands may raise ValueError, OSError, ModuleNotFoundError or FloatingPointError: one sentence.

    The exit code is then 1; 130 after Ctrl-C. With ``BITQUANT_DEBUG=1`` in the environment the traceback is shown.
    """

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
            if os.environ.get("BITQUANT_DEBUG"):
                raise
            raise click.ClickException(sentence(error)) from None
        except KeyboardInterrupt:
            click.echo("\nInterrupted; nothing is left half written.", err=True)
            ctx.exit(130)


def sentence(error):
    """The message of an exception as one line, without errno numbers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return " ".join(str(error).split()) or type(error).__name__
