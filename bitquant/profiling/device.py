"""Peak rates of named devices, by operand width."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Peak operations per second (two a multiply-accumulate) by operand width in bits, dense, as the maker prints them.

    A product of narrower operands than any listed runs at the rate of the next wider ones.
    """

    name: str
    peak: dict[int, float]

    def rate(self, bits: int) -> float:
        """Operations per second of a product whose wider operand has this many bits."""
        return self.peak[min((width for width in self.peak if width >= bits), default=max(self.peak))]


# NVIDIA data sheets, in units of 1e12: fp32 outside the tensor cores, fp16 and int8 on them, without sparsity.
# No 1-bit rate is printed for the H100: binary products are estimated at its int8 rate.
DEVICES = {
    "a100": Device("A100", {1: 4992e12, 4: 1248e12, 8: 624e12, 16: 312e12, 32: 19.5e12}),
    "h100": Device("H100 SXM", {8: 1979e12, 16: 989e12, 32: 67e12}),
}
