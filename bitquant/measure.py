"""Size on disk and time of a forward pass, before and after."""

import time
from pathlib import Path

import torch

SHAPES = ((1, 16), (1, 128), (32, 16), (32, 128))


def megabytes(files):
    """Size of files together, in MB of 10^6 bytes."""
    return sum(Path(file).stat().st_size for file in files) / 1e6


@torch.no_grad()
def milliseconds(models, inputs, *, seconds=0.5, most=50):
    """Shortest time of one forward pass of each model on the same inputs.

    The models take turns, so that a busy moment of the machine hits them alike, and the shortest time is the one it
    hit least; the first round is not counted.

    Args:
        models (dict[str, nn.Module]): in eval mode.
        inputs (dict): keyword arguments of the models.
        seconds (float): stop after this time, but not before 5 rounds. Default: 0.5.
        most (int): most rounds. Default: 50.

    Returns:
        dict[str, float]: milliseconds by model name.
    """
    for model in models.values():
        model(**inputs)
    times = {name: [] for name in models}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < most and (rounds < 5 or time.perf_counter() < end):
        for name, model in models.items():
            start = time.perf_counter()
            model(**inputs)
            times[name].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return {name: min(t) for name, t in times.items()}


def text_inputs(batch, tokens, vocabulary):
    """Random token ids without padding: ``input_ids`` and ``attention_mask``, int64 (batch, tokens)."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (batch, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def text_times(models, vocabulary, *, longest=None, shapes=SHAPES):
    """``milliseconds`` of text encoders for each (batch, tokens), tokens cut to ``longest``.

    Returns:
        list[dict]: ``batch``, ``tokens`` and one entry in milliseconds for each model.
    """
    rows = []
    for batch, tokens in dict.fromkeys((batch, min(tokens, longest or tokens)) for batch, tokens in shapes):
        inputs = text_inputs(batch, tokens, vocabulary)
        rows.append({"batch": batch, "tokens": tokens, **milliseconds(models, inputs)})
    return rows
