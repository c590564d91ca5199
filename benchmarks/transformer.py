"""The Transformer encoders that benchmarks time, float and packed."""

import copy

import click
import torch
from torch import nn

import bitquant
from bitquant import ops
from recipes.hubert.encoders import build_encoder

FRAMES = 500
SHAPES = {  # layers, width, heads, feed-forward width
    "12x768": (12, 768, 12, 3072),
    "16x256": (16, 256, 4, 1024),
    "8x512": (8, 512, 4, 2048),
    "2x128": (2, 128, 4, 512),
}


class LastState(nn.Module):
    """An encoder that gives its last state alone: (B, T, D) -> (B, T, D)."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.dim = encoder, encoder.dim

    def forward(self, x):
        return self.encoder(x)[-1]


def encoder(shape):
    """The float encoder of a name in ``SHAPES``, in eval mode."""
    layers, dim, heads, ffn = SHAPES[shape]
    return LastState(build_encoder(kind="transformer", layers=layers, dim=dim, heads=heads, ffn=ffn)).eval()


def packed(model, x, low_rank=0):
    """A packed copy, with float paths of a rank; raises if its kernels differ from the definition."""
    model = copy.deepcopy(model)
    bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", low_rank=low_rank), x)
    bitquant.convert_(model)
    with torch.inference_mode():
        out = model(x)
        with ops.use_backend("naive"):
            if not torch.equal(out, model(x)):
                raise click.ClickException("the packed encoder differs from its definition: no time is given")
    return model
