"""What goes wrong on the user's side ends as one sentence on stderr, not as a traceback."""

import os
import sys

import click


class Commands(click.Group):
    """A group whose commands raise the errors of ``_ours`` with a sentence for the user.

    The exit code is then 1; 130 after Ctrl-C. With ``BITQUANT_DEBUG=1`` in the environment the traceback is shown.
    """

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except Exception as error:
            if os.environ.get("BITQUANT_DEBUG") or not _ours(error):
                raise
            raise click.ClickException(sentence(error)) from None
        except KeyboardInterrupt:
            click.echo("\nInterrupted; nothing is left half written.", err=True)
            ctx.exit(130)


def _ours(error):
    """Whether an exception is about the user's input or machine; anything else is a fault of ours."""
    if isinstance(error, BrokenPipeError):  # click ends quietly
        return False
    ops = sys.modules.get("bitquant.ops")  # loaded if it raised
    kinds = (ops.BackendUnavailable,) if ops else ()
    return isinstance(error, (ValueError, OSError, ModuleNotFoundError, FloatingPointError, *kinds))


def sentence(error):
    """The message of an exception as one line, without errno numbers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return " ".join(str(error).split()) or type(error).__name__
