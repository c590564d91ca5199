"""Which parameter a tensor is: itself, transposed, or a part of it."""

from __future__ import annotations

import torch

from .functions import words

WHOLE, TRANSPOSED, PART = "whole", "transposed", "part"

# questions about a tensor that do not read its values
METADATA = words(
    "shape size dim ndim ndimension numel nelement dtype device layout stride storage_offset is_contiguous "
    "element_size itemsize nbytes len requires_grad is_leaf grad_fn grad is_cuda is_cpu is_meta is_mps is_xpu "
    "is_sparse is_nested is_quantized is_mkldnn is_floating_point is_complex is_signed is_inference get_device names "
    "untyped_storage has_names _version type"
)
# functions whose result is a tensor's own values, in the same or another shape, layout or dtype
VIEWS = words(
    "view transpose permute T mT t swapaxes movedim squeeze unsqueeze flatten unflatten narrow select getitem unbind "
    "chunk split tensor_split expand view_as expand_as detach as_strided to"
)


def form_of(name: str, form: str, operand: torch.Tensor, result: torch.Tensor) -> str:
    """What `result`, made by the function `name` from a tensor that is a parameter in `form`, is of the parameter."""
    if name == "to" and result.shape == operand.shape:
        return form
    if name not in VIEWS or form == PART or not _is_view(operand, result):
        return PART
    if (result.shape, result.stride()) == (operand.shape, operand.stride()):
        return form
    if operand.ndim == 2 and (result.shape, result.stride()) == (operand.shape[::-1], operand.stride()[::-1]):
        return WHOLE if form == TRANSPOSED else TRANSPOSED
    return PART


def _is_view(operand, result) -> bool:
    # the shapes and strides decide the rest; an indexed copy has a storage of its own
    same = operand.untyped_storage()._cdata == result.untyped_storage()._cdata
    return same and operand.storage_offset() == result.storage_offset()
