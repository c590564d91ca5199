"""The training bar: one line redrawn on a terminal, a plain line now and then elsewhere; always on stderr."""

import shutil
import sys
import time

import click

WIDTH = 24
REDRAW_SECONDS = 0.1
PLAIN_SECONDS = 15


class TrainingBar:
    """Called with a dict at every step: ``step``, ``steps``, and of these what is known: ``stage``, ``loss``,
    ``flip_ratio``, ``tokens_per_s``, ``eta_s``. Close it, or use it as a context manager, before printing anything
    else.
    """

    def __init__(self, stream=None):
        self.stream = stream or sys.stderr
        self.redraws = self.stream.isatty()
        self._last = -float("inf")
        self._open = False

    def __call__(self, state):
        now, done = time.monotonic(), state["step"] >= state["steps"]
        if not done and now - self._last < (REDRAW_SECONDS if self.redraws else PLAIN_SECONDS):
            return
        self._last = now
        line = describe(state)
        if not self.redraws:
            click.echo(line, file=self.stream)
            return
        columns = shutil.get_terminal_size().columns - 1
        self.stream.write("\r\x1b[K" + line[:columns])
        self.stream.flush()
        self._open = True
        if done:
            self.close()

    def say(self, line):
        """Prints one line about a stage of the run."""
        self.close()
        click.echo(line, file=self.stream)

    def close(self):
        if self._open:
            self.stream.write("\n")
            self.stream.flush()
        self._open = False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def describe(state):
    """One line of the bar's text for a step's dict of numbers."""
    filled = WIDTH * state["step"] // max(state["steps"], 1)
    stage = f"{state['stage']} " if state.get("stage") else ""
    parts = [f"{stage}[{'#' * filled}{'.' * (WIDTH - filled)}] {state['step']}/{state['steps']}"]
    if state.get("loss") is not None:
        parts.append(f"loss {state['loss']:.4f}")
    if state.get("flip_ratio") is not None:
        parts.append(f"flips {state['flip_ratio']:.3%}")
    if state.get("tokens_per_s") is not None:
        parts.append(f"{state['tokens_per_s']:,.0f} tokens/s")
    if state.get("eta_s") is not None:
        minutes, seconds = divmod(round(state["eta_s"]), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return "  ".join(parts)
