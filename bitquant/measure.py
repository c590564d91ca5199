"""Size on disk and time of a forward pass, before and after."""

import time
from pathlib import Path

import torch


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


def times(models, shapes):
    """``milliseconds`` of models for inputs of several shapes.

    Args:
        models (dict[str, nn.Module]): in eval mode.
        shapes (list[tuple[dict, dict]]): facts about the inputs, such as the batch size, and the inputs.

    Returns:
        list[dict]: for each shape its facts and one entry in milliseconds for each model.
    """
    return [{**facts, **milliseconds(models, inputs)} for facts, inputs in shapes]
