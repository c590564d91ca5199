"""What a vision model takes: pictures resized, cropped and normalised as its ``preprocessor_config.json`` says."""

import warnings
from pathlib import Path

import numpy as np
import torch

from bitquant.json_object import read_object

MAX_EDGE = 4096
FORMATS = ("PNG", "JPEG")  # Pillow knows many more, and runs other programs for some
MAX_PIXELS = 2**26  # of a file, and while it is resized, first in one direction and then in the other
MAX_RESIZED = MAX_EDGE**2  # of what a thin picture becomes, where only its shorter edge is given
CHANNELS = {1: "L", 3: "RGB"}


class PixelProcessor:
    """Pictures to the model's first argument by the fields that image processors of transformers store.

    Args:
        config (dict): ``size`` (``height`` and ``width``, ``shortest_edge``, or one number), ``crop_size``,
            ``resample`` (Pillow's number), ``rescale_factor``, ``image_mean``, ``image_std``, and ``do_*`` for each.
        place (str): where it comes from, for errors.
        argument (str): name of the model's argument.

    Raises:
        ValueError: a field is missing or out of bounds.
    """

    def __init__(self, config, place, argument="pixel_values"):
        self.place, self.argument = place, argument
        self.size = _edges(config.get("size", 224), place) if config.get("do_resize", True) else None
        self.crop = _edges(config.get("crop_size", 224), place) if config.get("do_center_crop", False) else None
        self.resample = config.get("resample", 2)
        self.factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
        normalize = config.get("do_normalize", "image_mean" in config)
        mean, std = (config.get("image_mean"), config.get("image_std")) if normalize else ([0.0] * 3, [1.0] * 3)
        try:
            self.mean, self.std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (mean, std))
            sound = len(self.mean) == len(self.std) in CHANNELS and (self.std > 0).all() and float(self.factor) > 0
        except (TypeError, ValueError):
            sound = False
        if not sound or self.resample not in range(6):
            raise ValueError(f"{place} gives no usable image_mean, image_std, rescale_factor or resample")
        self.mode = CHANNELS[len(self.mean)]

    @classmethod
    def of(cls, source):
        """The processor of a model's directory. ValueError when it holds no ``preprocessor_config.json``."""
        file = source.file("preprocessor_config.json")
        if file is None:
            raise ValueError(
                f"{source.directory} holds no preprocessor_config.json: without it the size and normalisation of the "
                "pictures are unknown"
            )
        argument = "pixel_values" if "pixel_values" in source.arguments else source.arguments[0]
        return cls(read_object(file), file, argument)

    def open(self, file):
        """A png or jpg file -> float32 (C, H, W). ValueError when it cannot be decoded or is too large."""
        image_module = _pillow()
        if not Path(file).is_file():
            raise ValueError("it is no file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a size that is refused below
                image = image_module.open(file, formats=FORMATS)
        except Exception as error:  # each decoder fails in its own way
            raise ValueError(f"it cannot be decoded: {error}") from None
        with image:
            self._check_size(image.size)
            try:
                converted = image.convert(self.mode)
            except Exception as error:
                raise ValueError(f"it cannot be decoded: {error}") from None
        return self.prepare(converted)

    def _check_size(self, size):
        """ValueError for pictures that would take too much memory, by their header."""
        width, height = size
        wide, high = self._resized(size)
        for name, (x, y), most in (
            ("it has", (width, height), MAX_PIXELS),
            ("resized in width it has", (wide, height), MAX_PIXELS),
            ("resized it has", (wide, high), MAX_RESIZED),
        ):
            if x * y > most:
                raise ValueError(f"{name} {x} x {y} pixels, more than {most:,}")

    def _resized(self, size):
        return size if self.size is None else _target(self.size, size)

    def prepare(self, image):
        """A Pillow image -> float32 (C, H, W)."""
        if self.size is not None:
            image = image.resize(self._resized(image.size), resample=self.resample)
        pixels = np.asarray(image, dtype=np.float32)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if self.crop is not None:
            pixels = _center(pixels, *_target(self.crop, (0, 0))[::-1])
        return (pixels * np.float32(self.factor) - self.mean) / self.std

    def __call__(self, pixels):
        """float32 arrays (C, H, W) -> the argument, float32 (B, C, H, W)."""
        if len({p.shape for p in pixels}) > 1:
            raise ValueError(f"{self.place} resizes pictures to different sizes: give it a fixed size or a crop_size")
        return {self.argument: torch.from_numpy(np.stack(pixels))}

    def blank(self):
        """A Pillow image of random pixels, twice as wide as the model takes."""
        width, height = _target(self.crop or self.size or {"height": 224, "width": 224}, (1, 1))
        shape = (height, 2 * width, len(self.mean))
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return _pillow().fromarray(pixels[..., 0] if self.mode == "L" else pixels)


def _edges(size, place):
    """``height`` and ``width``, or ``shortest_edge``, as a dict of ints."""
    size = size if isinstance(size, dict) else {"height": size, "width": size}
    known = {k: v for k, v in size.items() if k in ("height", "width", "shortest_edge")}
    if set(known) not in ({"height", "width"}, {"shortest_edge"}) or not all(
        isinstance(v, int) and 0 < v <= MAX_EDGE for v in known.values()
    ):
        raise ValueError(f"{place} gives no usable size: {size!r}")
    return known


def _target(size, found):
    """(width, height) to resize a picture of (width, height) to."""
    if "height" in size:
        return size["width"], size["height"]
    edge, shortest = size["shortest_edge"], max(min(found), 1)
    return tuple(max(int(edge * length / shortest), edge) for length in found)


def _center(pixels, height, width):
    """The middle of (C, H, W), with zeros around it where it is smaller."""
    missing = [max(0, wanted - have) for wanted, have in zip((height, width), pixels.shape[1:], strict=True)]
    if any(missing):
        pixels = np.pad(pixels, [(0, 0), *((m // 2, m - m // 2) for m in missing)])
    top, left = ((have - wanted) // 2 for wanted, have in zip((height, width), pixels.shape[1:], strict=True))
    return pixels[:, top : top + height, left : left + width]


def _pillow():
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ModuleNotFoundError("reading pictures needs an extra: pip install 'bitquant-torch[images]'") from None
    return Image
