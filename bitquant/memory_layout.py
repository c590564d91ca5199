"""How the tensors of a model lie in memory. Torch's float kernels round by the strides and the alignment of their
operands and by a weight's ``requires_grad``, so that models which are to give equal results need all three equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # bytes: what torch allocates at on a CPU, and what its kernels ask about


def contiguous(x: Tensor) -> Tensor:
    """x with the strides of a new tensor; torch calls others contiguous too where a dimension is 1, and still takes
    them for another memory format."""
    expected = 1
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if stride != expected:
            return x.clone(memory_format=torch.contiguous_format)
        expected *= max(size, 1)
    return x


def align_(model: nn.Module) -> None:
    """Move every CPU parameter and buffer, in place, to where a copy of it would lie: aligned, each element once.

    A weight that was mapped from a file lies at any address, a part of another tensor likewise.
    """
    moved: dict[tuple, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if _is_memory(tensor):
            _move_(tensor, tensor.stride() if _is_dense(tensor.shape, tensor.stride()) else _contiguous(tensor), moved)


def layout(model: nn.Module) -> dict[str, Any]:
    """JSON-able description for ``lay_out_``: ``strides`` of the tensors that are not contiguous in the usual order,
    and the names of the ``frozen`` parameters."""
    strides = {}
    for name, tensor in _saved(model).items():
        if tensor.stride() != _contiguous(tensor) and _is_dense(tensor.shape, tensor.stride()):
            strides[name] = list(tensor.stride())
    frozen = [name for name, p in model.named_parameters() if p.is_floating_point() and not p.requires_grad]
    return {"strides": strides, "frozen": frozen}


def lay_out_(model: nn.Module, layout: dict[str, Any]) -> None:
    """Give the tensors of a model that was just loaded, in place, the layout of the model that was saved.

    Raises:
        ValueError: the description is of another form or another model.
    """
    if not isinstance(layout, dict) or set(layout) != {"strides", "frozen"}:
        raise ValueError("the memory layout must hold strides and frozen, and nothing else")
    strides, frozen, tensors = layout["strides"], layout["frozen"], _saved(model)
    if not isinstance(strides, dict) or not isinstance(frozen, list):
        raise ValueError("the memory layout must hold strides by name and a list of frozen parameters")
    for name, chosen in strides.items():
        if name not in tensors or not _is_strides(chosen) or not _is_dense(tensors[name].shape, chosen):
            raise ValueError(f"the memory layout of {str(name)[:80]!r} does not fit the model")
    parameters = dict(model.named_parameters())
    for name in frozen:
        if not isinstance(name, str) or name not in parameters:
            raise ValueError(f"the frozen parameter {str(name)[:80]!r} is none of the model's")
    moved: dict[tuple, Tensor] = {}
    for name, tensor in tensors.items():
        _move_(tensor, tuple(strides.get(name, _contiguous(tensor))), moved)
    align_(model)
    for name, parameter in parameters.items():
        if parameter.is_floating_point():
            parameter.requires_grad_(name not in frozen)


def _saved(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers, by name, each once."""
    found = dict(model.named_parameters())
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found[f"{path}.{name}" if path else name] = buffer
    return {name: tensor for name, tensor in found.items() if _is_memory(tensor)}


def _is_memory(tensor: Tensor) -> bool:
    """Whether a tensor is plain memory, which may be put elsewhere."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return plain and not tensor.is_meta and not tensor.is_inference() and tensor.numel() > 0


def _move_(tensor: Tensor, strides: tuple[int, ...], moved: dict[tuple, Tensor]) -> None:
    """Copy a tensor to aligned memory of its own with these strides, unless it lies there; what shared its memory under
    another name goes along."""
    storage = tensor.untyped_storage()
    aligned = tensor.device.type != "cpu" or not (tensor.data_ptr() % ALIGNMENT or storage.data_ptr() % ALIGNMENT)
    if aligned and tensor.stride() == strides:
        return
    place = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
    if place not in moved:
        copy = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
        moved[place] = copy.copy_(tensor.detach())
    tensor.data = moved[place]


def _contiguous(tensor: Tensor) -> tuple[int, ...]:
    """The strides of a new tensor of this shape."""
    return torch.empty(tensor.shape, device="meta").stride()


def _is_strides(value: Any) -> bool:
    return isinstance(value, list) and all(type(stride) is int and 0 < stride < 2**62 for stride in value)


def _is_dense(shape: torch.Size, strides: list[int] | tuple[int, ...]) -> bool:
    """Whether elements with these strides fill their memory, each place once."""
    if len(shape) != len(strides):
        return False
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True
