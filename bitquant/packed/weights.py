"""What packed layers share: a weight that exists only as bits, and the quantizer of their input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitquant import packing
from bitquant.capture import StandIn
from bitquant.nn.low_rank import LowRank
from bitquant.packed.cast import PackedTensor


def positive(scale: Tensor) -> None:
    """ValueError unless every scale is positive and finite (contract 3)."""
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise ValueError("a scale is not positive and finite: training diverged, so this layer cannot be packed")


def finite(name: str, values: Tensor | None) -> None:
    """ValueError unless all values are numbers: a NaN has no sign to pack, and an infinite one is no weight."""
    if values is not None and not bool(torch.isfinite(values).all()):
        raise ValueError(f"its {name} is NaN or infinite: training diverged, so this layer cannot be packed")


def stand_in(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, layer: nn.Module | None = None
) -> Tensor:
    """A packed weight's shape, device and dtype, for code that asks a weight for them; it has no values. ``layer``: the
    one that holds the bits, where it makes a new stand-in each time."""
    return StandIn(shape, dtype, device, key=layer)


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")


def float_dtype(name: str) -> torch.dtype:
    """``"bfloat16"`` -> ``torch.bfloat16``. ValueError when it names no float dtype."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"{name!r} is no float dtype")
    return dtype


class PackedWeight(PackedTensor):
    """Bits of a weight (rows, columns). In memory once, as ``lanes`` (the form the kernels read); in a state_dict as
    ``weight_packed``, uint8 (rows, ceil(columns / 8))."""

    def __init__(self, rows: int, columns: int, *, dtype: str = "float32", device: torch.device | None = None):
        super().__init__(float_dtype(dtype))
        self.rows, self.columns = rows, columns
        shape = (-(-rows // packing.LANES), packing.words_for(columns), packing.LANES)
        self.register_buffer("lanes", torch.zeros(shape, dtype=torch.int32, device=device), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The stand-in of the float weight, which is gone."""
        return stand_in((self.rows, self.columns), self.lanes.device, self.dtype, self)

    def pack(self, bits: Tensor) -> None:
        """bits bool (rows, columns)."""
        self.lanes = packing.to_lanes(packing.to_words(packing.pack_bits(bits), self.columns))

    def packed(self) -> Tensor:
        """uint8 (rows, ceil(columns / 8))."""
        return packing.to_bytes(packing.from_lanes(self.lanes, self.rows), self.columns)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.lanes.is_meta:
            shape = (self.rows, packing.bytes_for(self.columns))
            destination[prefix + "weight_packed"] = torch.empty(shape, dtype=torch.uint8, device="meta")
        else:
            destination[prefix + "weight_packed"] = self.packed()

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        key = prefix + "weight_packed"
        packed = state_dict.get(key)
        others = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(others, prefix, metadata, strict, missing, unexpected, errors)
        if packed is None:
            missing.append(key)
            return
        shape = (self.rows, packing.bytes_for(self.columns))
        if packed.dtype != torch.uint8 or tuple(packed.shape) != shape:
            errors.append(f"{key} must be uint8 {shape}, got {packed.dtype} {tuple(packed.shape)}")
            return
        try:
            self.lanes = packing.to_lanes(packing.to_words(packed, self.columns))
        except ValueError as error:
            errors.append(f"{key}: {error}")


class PackedLayer(PackedWeight):
    """A packed weight and its quantized input: ``fl(fl(acc * scale) + bias)``.

    Buffers beside the weight: ``offset`` fp32 [width], the threshold of a 1-bit input or the shift of a wider one;
    ``step`` fp32 [1], its scale (2 to 8 bits only); ``scale`` fp32 [rows] or [1], activation times weight scale;
    ``bias`` fp32 [rows] or absent. ``float_path``: a ``LowRank`` beside it, or absent.

    Args:
        rows, columns: of the weight. width: features or channels of the input.
        bits: of the input: 1, 2, 4, 8, or 32 for a float one.
        signed: {-1, +1} or two's complement levels, rather than levels from 0.
        scales: number of scales, rows or 1. dtype: of the float weight, for code that asks.
        low_rank: rank of the float path, 0 for none.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        width: int,
        bits: int,
        signed: bool,
        bias: bool,
        scales: int,
        dtype: str = "float32",
        low_rank: int = 0,
        device: torch.device | None = None,
    ):
        super().__init__(rows, columns, dtype=dtype, device=device)
        self.bits, self.signed = bits, signed
        fixed = {"dtype": torch.float32, "device": device}
        self.register_buffer("offset", torch.zeros(width, **fixed))
        self.register_buffer("step", torch.ones(1, **fixed) if 1 < bits <= 8 else None)
        self.register_buffer("scale", torch.ones(scales, **fixed))
        self.register_buffer("bias", torch.zeros(rows, **fixed) if bias else None)
        path = LowRank(columns, rows, low_rank, packed=True, device=device) if low_rank else None
        self.register_module("float_path", path)

    @torch.no_grad()
    def take(self, layer: nn.Module, weight: Tensor, bits: Tensor) -> None:
        """Fix what a trained layer has learnt on its float weight; ``bits`` bool (rows, columns) in kernel order.

        ValueError when a weight, shift or bias is not finite, a scale not positive and finite, or a float path's factor
        too large for fp16.
        """
        quantizer = layer.input_quantizer
        scale = quantizer.scale() * layer.weight_quantizer.scale(weight)
        finite("weight", weight)
        finite("input shift", quantizer.shift)
        finite("input scale", quantizer.alpha)
        positive(scale)
        self.pack(bits)
        self.offset.copy_(quantizer.threshold() if self.bits == 1 else quantizer.shift)
        if self.step is not None:
            self.step.copy_(quantizer.scale())
        self.scale.copy_(scale)
        if self.bias is not None:
            finite("bias", layer.bias)
            self.bias.copy_(layer.bias)
        if self.float_path is not None:
            self.float_path.take(layer.float_path)

    @staticmethod
    def options(layer: nn.Module, weight: Tensor, *, bias: bool) -> dict:
        """The arguments that a trained layer decides, but for its shape."""
        weight_scale = layer.weight_quantizer.scale(weight)
        quantizer = layer.input_quantizer
        return {
            "bits": quantizer.bits,
            "signed": quantizer.levels == "signed",
            "bias": bias,
            "scales": weight_scale.numel(),
            "dtype": dtype_name(weight.dtype),
            "low_rank": 0 if layer.float_path is None else layer.float_path.rank,
        }

    def spec(self) -> dict:
        """JSON-able arguments that build this layer's skeleton, but for its shape."""
        return {
            "bits": self.bits,
            "signed": self.signed,
            "bias": self.bias is not None,
            "scales": self.scale.numel(),
            "dtype": dtype_name(self.dtype),
            "low_rank": 0 if self.float_path is None else self.float_path.rank,
        }

    def levels_repr(self) -> str:
        kind = ("{-1, +1}" if self.signed else "{0, 1}") if self.bits == 1 else f"{self.bits}-bit"
        return f"{kind} input"
