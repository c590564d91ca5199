"""Pictures: the numbers a vision model gets, and files that cannot be used."""

import json

import numpy as np
import pytest
import torch

from bitquant.data.pictures import Pictures
from bitquant.data.pixels import PixelProcessor
from bitquant.sources.source import Source

Image = pytest.importorskip("PIL.Image")
CONFIG = {"size": {"height": 16, "width": 24}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


class Vision(torch.nn.Module):
    def forward(self, pixel_values):
        return pixel_values


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 256, (20 + 3 * i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.{('png', 'jpg')[i % 2]}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_resizes_and_normalises(folder):
    data = Pictures.read(folder, Source("model", Vision(), folder, []))
    batch = data.example_inputs(data.samples)
    assert batch["pixel_values"].shape == (2, 3, 16, 24)
    image = Image.open(folder / "0.png").resize((24, 16), resample=2)
    expected = (np.asarray(image) / 255 - CONFIG["image_mean"]) / CONFIG["image_std"]
    assert batch["pixel_values"][0].permute(1, 2, 0).numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "name, options",
    [
        ("ViT", {"size": {"height": 16, "width": 16}}),
        ("ViT", {"size": {"height": 16, "width": 12}, "resample": 3, "image_mean": [0.1] * 3}),
        ("CLIP", {"size": {"shortest_edge": 18}, "crop_size": {"height": 16, "width": 16}}),
    ],
)
def test_same_numbers_as_transformers(folder, name, options):
    transformers = pytest.importorskip("transformers")
    cls = getattr(transformers, f"{name}ImageProcessorPil", None)
    if cls is None:
        pytest.skip(f"this transformers has no Pillow processor for {name}")
    theirs = cls(**options)
    ours = PixelProcessor(json.loads(theirs.to_json_string()), "test")
    for file in ("0.png", "3.jpg"):
        expected = theirs(Image.open(folder / file).convert("RGB"), return_tensors="np")["pixel_values"][0]
        assert ours.open(folder / file) == pytest.approx(np.asarray(expected), abs=1e-5)


def test_grey_and_palette_pictures(folder):
    Image.new("P", (9, 9)).save(folder / "0.png")
    grey = {"size": 8, "image_mean": [0.5], "image_std": [0.5]}
    assert PixelProcessor(CONFIG, "test").open(folder / "0.png").shape == (3, 16, 24)
    assert PixelProcessor(grey, "test").open(folder / "0.png").shape == (1, 8, 8)


def test_damaged_pictures_are_named(folder):
    (folder / "bad.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "text.jpg").write_text("no picture")
    data = Pictures.read(folder, Source("model", Vision(), folder, []))
    kept, skipped = data.usable(data.samples)
    assert len(kept) == 6
    assert [name for name, _ in skipped] == ["bad.png", "text.jpg"]
    assert all("cannot be decoded" in reason for _, reason in skipped)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"size": {"height": 10**9, "width": 4}}, "no usable size"),
        ({"size": {"longest_edge": 4}}, "no usable size"),
        ({"image_std": [0, 1, 1]}, "no usable image_mean"),
        ({"image_mean": "grey"}, "no usable image_mean"),
        ({"resample": 99}, "no usable image_mean, image_std, rescale_factor or resample"),
    ],
)
def test_preprocessors_that_lie(changes, words):
    with pytest.raises(ValueError, match=words):
        PixelProcessor({**CONFIG, **changes}, "test")


def test_pictures_need_one_size(folder):
    config = {"size": {"shortest_edge": 8}}
    processor = PixelProcessor(config, "test")
    with pytest.raises(ValueError, match="to different sizes"):
        processor([processor.open(folder / "0.png"), processor.open(folder / "5.jpg")])
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="holds no preprocessor_config.json"):
        Pictures.read(folder, Source("model", Vision(), folder, []))
