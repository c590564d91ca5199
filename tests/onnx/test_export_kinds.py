"""Forms of models that torch exports in float: each exports packed too, every layer equal in ONNX Runtime."""

import os

import pytest
import torch
from torch import nn

import bitquant

for package in ("onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason=f'files are written and checked with {package}: pip install ".[onnx]"')


class Layers(nn.Module):
    """Linear layers with a ReLU behind each; what goes in and comes out is the subclass's."""

    def __init__(self, width=32):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def run(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class Plain(Layers):
    def forward(self, x):
        return self.run(x)


class SameName(Layers):
    def forward(self, x, mask):
        return {"y": self.run(x), "mask": mask[:, ::2]}


class Reused(Layers):
    """An input that is an output as it is."""

    def forward(self, x, mask):
        return {"x": self.run(x), "mask": mask}


class MaskOfLengths(Layers):
    def forward(self, x, lengths):
        n = int(lengths.max())
        mask = (torch.arange(n)[None] < lengths[:, None]).to(x.dtype).expand(lengths.shape[0], n)
        return self.run(x) * mask[..., None]


class Squeezed(Layers):
    def forward(self, x):
        return self.run(x).mean(-1, keepdim=True).squeeze(-1)


class Windows(nn.Module):
    """Attention in windows, by matrix products of five dimensions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))

    def forward(self, x):
        b, t, c = x.shape
        for layer in self.layers:
            q, k, v = layer(x).view(b, t // 4, 4, 3, 2, c // 2).permute(3, 0, 1, 4, 2, 5)
            x = x + ((q @ k.mT * (c // 2) ** -0.5).softmax(-1) @ v).transpose(2, 3).reshape(b, t, c)
        return x


class SeveralQueries(nn.Module):
    """One attention module, called with queries of several lengths."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x, x, x, need_weights=False)[0]
            x = torch.cat([layer(x[:, :2], x, x, need_weights=False)[0], x[:, 2:]], 1)
        return x


class WeightNorm(Layers):
    """A weight that is computed anew in each call."""

    def __init__(self):
        super().__init__()
        convolution = nn.Conv1d(32, 32, 9, padding=4, groups=4)
        self.positions = nn.utils.parametrizations.weight_norm(convolution, dim=2)

    def forward(self, x):
        return self.run(x + self.positions(x.transpose(1, 2)).transpose(1, 2))


CASES = {
    "same-name": (SameName, {"x": torch.randn(2, 8, 32), "mask": torch.ones(2, 8)}, {}),
    "input-as-output": (Reused, {"x": torch.randn(2, 8, 32), "mask": torch.ones(2, 8)}, {}),
    "mask-of-lengths": (
        MaskOfLengths,
        {"x": torch.randn(2, 8, 32), "lengths": torch.tensor([8, 5])},
        {"dynamic": False},
    ),
    "squeeze": (Squeezed, {"x": torch.randn(2, 8, 32)}, {}),
    "five-dimensions": (Windows, {"x": torch.randn(2, 8, 16)}, {"dynamic": False}),
    "several-queries": (SeveralQueries, {"x": torch.randn(2, 8, 16)}, {"dynamic": False}),
    "weight-norm": (WeightNorm, {"x": torch.randn(2, 20, 32)}, {}),
}


def packed(model, call):
    torch.manual_seed(0)
    bitquant.quantize_(model, None, call)
    bitquant.convert_(model)
    return model


@pytest.mark.parametrize("name", CASES)
def test_exports(name, tmp_path, capfd):
    make, call, options = CASES[name]
    torch.manual_seed(0)
    exported = bitquant.export_onnx(packed(make().eval(), call), call, tmp_path / "new" / "a.onnx", **options)
    assert exported.check.mismatches == 0 and exported.check.layers == exported.layers > 0
    assert exported.rows["1 bit"] is not None and os.listdir(tmp_path / "new") == ["a.onnx"]
    assert not any(capfd.readouterr())  # no graph, no notes of the exporter


def test_a_comparison_that_fails_never_costs_the_file(tmp_path, monkeypatch):
    from bitquant.onnx import report

    def fail(model):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(report, "dynamic_int8", fail)
    make, call, _ = CASES["squeeze"]
    exported = bitquant.export_onnx(packed(make().eval(), call), call, tmp_path / "a.onnx")
    assert exported.rows["dynamic int8"] is None and exported.rows["float32"] is not None
    assert "not available" in str(exported) and (tmp_path / "a.onnx").is_file()


def test_encoders_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    t5 = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    mobile = transformers.MobileNetV2Config(image_size=32, depth_multiplier=0.35)
    ids = {"input_ids": torch.randint(5, 50, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    pictures = {"pixel_values": torch.randn(2, 3, 32, 32)}
    for model, call, options in (
        (transformers.T5EncoderModel(t5), ids, {}),
        (transformers.MobileNetV2Model(mobile), pictures, {"dynamic": False}),
    ):
        exported = bitquant.export_onnx(packed(model.eval(), call), call, tmp_path / "a.onnx", **options)
        assert exported.check.mismatches == 0 and exported.check.layers > 0


def test_a_float_form_that_is_too_large_costs_the_comparison_alone(tmp_path, monkeypatch):
    from bitquant.onnx import export

    torch.manual_seed(0)
    model, call = Plain(256).eval(), {"x": torch.randn(2, 5, 256)}
    model.layers.extend(nn.Linear(256, 256) for _ in range(2))
    model = packed(model, call)
    bitquant.export_onnx(model, call, tmp_path / "a.onnx", check=False)
    whole = sum(p.numel() * 4 for p in Plain(256).parameters()) * 5 // 3
    monkeypatch.setattr(export, "LARGEST", (os.path.getsize(tmp_path / "a.onnx") + whole) // 2)
    exported = bitquant.export_onnx(model, call, tmp_path / "b.onnx")
    assert exported.rows["float32"] is exported.rows["dynamic int8"] is None
    assert exported.check.mismatches == 0 and (tmp_path / "b.onnx").is_file()


def test_a_model_that_cannot_be_exported_is_one_sentence(tmp_path, capfd):
    class Listing(Layers):
        def forward(self, x):
            y = self.run(x)
            return y[:, : int(str(float(y.detach().sum()))[-1]) % 3 + 1]

    x = torch.randn(2, 8, 32)
    with pytest.raises(ValueError) as error:
        bitquant.export_onnx(packed(Listing().eval(), x), x, tmp_path / "a.onnx")
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)
    assert not any(capfd.readouterr()) and not (tmp_path / "a.onnx").exists()
