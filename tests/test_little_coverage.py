"""A model of which little can be quantized is warned of, and a large stem says how it is overridden."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import bitquant
from bitquant import plan
from bitquant.cli import main
from bitquant.cli.summary import summary


class Recurrent(nn.Module):
    """An encoder whose work is in an LSTM: (B, T, 32) -> (B, T, 8)."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(32, 64, 3, batch_first=True)
        self.inner, self.hidden, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, features):
        x, _ = self.encoder(features)
        return self.head(self.hidden(self.inner(x)))


X = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))


def test_little_is_quantized():
    torch.manual_seed(0)
    model = Recurrent().eval()
    before = bitquant.report(model, X)
    assert before.share_quantized < 0.01 and before.warning.startswith("only 0.")
    assert "of the multiply-accumulates are quantized" in before.warning and "encoder" in before.warning
    assert "no 1-bit counterpart of lstm" in before.warning and "\n" not in before.warning
    assert str(before).endswith(before.warning)
    assert json.loads(json.dumps(before.to_dict()))["warning"] == before.warning
    with pytest.warns(UserWarning, match="only 0.*quantized.*lstm") as caught:
        bitquant.quantize_(model, None, X)
    assert caught[0].filename == __file__
    assert bitquant.report(model).warning == before.warning


@pytest.mark.parametrize("widths", [{}, {"activation_bits": 8}, {"weight_bits": 32, "activation_bits": 32}])
def test_no_warning_where_most_is_quantized(widths):
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bitquant.quantize_(model.eval(), bitquant.QuantConfig.preset("bit-plus", **widths), torch.randn(2, 16))
    assert bitquant.report(model).warning is None


class Picture(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 8)
        blocks = (nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(2))
        self.layers = nn.ModuleList(blocks)

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_a_large_stem_says_how_it_is_overridden():
    pixels = torch.randn(2, 3, 32, 32)
    small, large = (
        {row.path: row for row in bitquant.report(Picture(width).eval(), pixels).rows}["stem"] for width in (512, 16)
    )
    assert small.reason == large.reason == plan.STEM
    assert small.note is None and large.note == plan.OVERRIDE
    assert plan.OVERRIDE in str(bitquant.report(Picture(16).eval(), pixels))
    model = Picture(16).eval()
    bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", rules={"stem": {}}), pixels)
    assert {row.path: row for row in bitquant.report(model).rows}["stem"].binarized


def test_the_command_line_says_so(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    save_file(Recurrent().state_dict(), tmp_path / "weights.safetensors")
    np.savez(tmp_path / "data.npz", features=torch.randn(40, 7, 32).numpy())
    given = ["inspect", "test_little_coverage:Recurrent", "--weights", str(tmp_path / "weights.safetensors")]
    result = CliRunner().invoke(main, [*given, "--data", str(tmp_path / "data.npz")])
    assert result.exit_code == 0, result.output
    assert "of the multiply-accumulates are quantized" in result.stdout


def test_the_summary_says_so():
    coverage = bitquant.report(Recurrent().eval(), X).to_dict()
    size, closeness = {"before": 1.0, "after": 1.0}, {"cosine": 1.0, "top1": 1.0, "top10": 1.0}
    result = {
        "data": {"held_out": 2, "unit": "samples"},
        "identical_after_reload": True,
        "megabytes": {"weights": size, "directory": size},
        "milliseconds": [],
        "coverage": coverage,
        "fidelity": {"undistilled": closeness, "distilled": closeness},
        "out": "out",
    }
    assert coverage["warning"] in summary(result)
