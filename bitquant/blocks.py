"""Where the encoder of a model is: its repeated layers, and what lies before, between and after them."""

from __future__ import annotations

from collections import Counter

from torch import nn

_LISTS = (nn.ModuleList, nn.Sequential)


def encoder_blocks(model: nn.Module, paths: list[str]) -> list[str]:
    """Paths of the encoder's layers: the outermost list elements that hold at least two of the contractions at
    ``paths`` and that come in numbers (another element is of their kind), or are all that a ``ModuleList`` holds."""
    elements: list[tuple[str, tuple, bool]] = []
    for name, container in model.named_modules():
        if isinstance(container, _LISTS):
            children = list(container.named_children())
            for index, element in children:
                path = f"{name}.{index}" if name else index
                if sum(within(contraction, path) for contraction in paths) >= 2:
                    alone = isinstance(container, nn.ModuleList) and len(children) == 1
                    elements.append((path, _kind(element, sized=isinstance(container, nn.Sequential)), alone))
    count = Counter(kind for _, kind, _ in elements)
    repeated = [path for path, kind, _ in elements if count[kind] > 1]
    blocks: list[str] = []
    for path, kind, alone in elements:
        a_single_layer = alone and not any(within(other, path) for other in repeated)
        if (count[kind] > 1 or a_single_layer) and not any(within(path, block) for block in blocks):
            blocks.append(path)
    return blocks


def _kind(module: nn.Module, sized: bool) -> tuple:
    """What makes two list elements alike: their class; of bare containers what they hold, and in an ``nn.Sequential``,
    where stem and head are neighbours of the layers, the sizes too."""
    if type(module) not in _LISTS:
        return (type(module),)
    sizes = tuple(tuple(p.shape) for p in module.parameters()) if sized else ()
    return (type(module), tuple(_kind(child, sized) for child in module.children()), sizes)


def within(path: str, module: str) -> bool:
    """Whether ``path`` is a module or below it."""
    return path == module or path.startswith(module + ".")
