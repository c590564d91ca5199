"""bitquant turns a trained PyTorch encoder into a 1-bit one that is really smaller and really faster.

The one path: ``quantize_`` -> ``distill`` -> ``convert_`` -> ``save`` / ``load``, with ``report`` at any stage.
Names are resolved on first use, so that ``import bitquant`` loads neither torch nor any optional package.
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "QuantConfig": "config",
    "quantize_": "quantize",
    "calibrate_": "quantize",
    "convert_": "convert",
    "distill": "distillation",
    "save": "checkpoint",
    "load": "checkpoint",
    "export_onnx": "onnx",
    "report": "coverage",
    "optimize_": "runtime",
    "sensitivity": "damage",
    "profile": "profiling",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'bitquant' has no attribute {name!r}")
    return getattr(import_module(f"bitquant.{_EXPORTS[name]}"), name)


def __dir__():
    return sorted(__all__)
