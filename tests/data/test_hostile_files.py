"""Data files that nobody vouches for: what they claim, what they are, and where they lie."""

import io
import json
import os
import resource
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch

from bitquant.data import read_data, recognise
from bitquant.data.arrays import read_npz
from bitquant.data.audio import check_audio, read_audio
from bitquant.data.pictures import Pictures
from bitquant.data.pixels import PixelProcessor
from bitquant.json_object import read_object
from bitquant.sources.source import Source

MEGABYTES = 200_000  # kB


@pytest.fixture(autouse=True)
def little_memory():
    """Whatever a file claims, hardly any memory is taken."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES


class Vision(torch.nn.Module):
    def forward(self, pixel_values):
        return pixel_values


def source(folder):
    config = {"size": 8, "image_mean": [0.5] * 3, "image_std": [1] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return Source("model", Vision(), folder, [])


def png(width, height):
    """A picture of one colour, made without its pixels: bytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    compressor = zlib.compressobj(9)
    rows = b"".join(compressor.compress(bytes(1 + width)) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["EPS", "GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_by_these_names(tmp_path, kind, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("runs a program"))
    image.new("RGB", (9, 9)).save(tmp_path / "a.png", format=kind)
    image.new("RGB", (9, 9)).save(tmp_path / "b.jpg", format=kind)
    image.new("RGB", (9, 9)).save(tmp_path / "c.jpg")
    data = Pictures.read(tmp_path, source(tmp_path))
    kept, skipped = data.usable(data.samples)
    assert kept == ["c.jpg"]
    assert [name for name, _ in skipped] == ["a.png", "b.jpg"]
    assert all("cannot be decoded" in reason for _, reason in skipped)


@pytest.mark.parametrize(
    "shape, size, words",
    [
        ((1, 60000), {"shortest_edge": 224}, "resized it has 224 x 13440000 pixels"),
        ((60000, 1), {"shortest_edge": 224}, "resized it has 13440000 x 224 pixels"),
        ((1, 60000), {"height": 4096, "width": 4096}, "resized in width it has 4096 x 60000 pixels"),
        ((9000, 9000), {"height": 8, "width": 8}, "it has 9000 x 9000 pixels, more than 67,108,864"),
        ((50000, 50000), {"height": 8, "width": 8}, "cannot be decoded|it has 50000 x 50000 pixels"),
    ],
)
def test_pictures_that_would_grow(tmp_path, shape, size, words):
    pytest.importorskip("PIL")
    width, height = shape
    content = png(*shape) if width * height < 10**6 else png(1, 1).replace(*headers(shape))
    (tmp_path / "thin.png").write_bytes(content)
    processor = PixelProcessor({"size": size, "image_mean": [0.5] * 3, "image_std": [1] * 3}, "test")
    with pytest.raises(ValueError, match=words):
        processor.open(tmp_path / "thin.png")


def headers(shape):
    """The header of the 1 x 1 picture, and one that claims another size."""
    def header(*size):
        content = b"IHDR" + struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
        return content + struct.pack(">I", zlib.crc32(content))

    return header(1, 1), header(*shape)


def npy(shape, dtype="<f8", content=b""):
    stream = io.BytesIO()
    np.lib.format.write_array_header_2_0(stream, {"shape": shape, "fortran_order": False, "descr": dtype})
    return stream.getvalue() + content


@pytest.mark.parametrize(
    "content, words",
    [
        (npy((10**9, 10**6)), "claims to hold more than half of this machine's memory: 'x'"),
        (npy((1,), "<U2000000000"), "damaged or not an .npz file|more than half"),
        (npy((10**30,)), "damaged or not an .npz file"),
        (npy((-5,)), "damaged or not an .npz file"),
        (npy((3,), "|O", b"cos\nsystem\n(S'false'\ntR."), "Python objects, which are not read"),
        (npy((3,))[:20], "damaged or not an .npz file"),
        (b"", "damaged or not an .npz file"),
        (b"cos\nsystem\n", "damaged or not an .npz file"),
    ],
)
def test_arrays_that_lie(tmp_path, content, words):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(ValueError, match=words):
        read_npz(tmp_path / "a.npz")


def test_other_files_by_the_name_of_arrays(tmp_path):
    np.savez(tmp_path / "good.npz", x=np.ones((2, 3), np.float32), m=np.array(True))
    assert read_npz(tmp_path / "good.npz")["x"].shape == (2, 3)
    encrypted = bytearray((tmp_path / "good.npz").read_bytes())
    encrypted[6] |= 1  # the flag of the first member
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    for content in (npy((10**9, 10**6)), b"\x80\x04\x95", bytes(encrypted)):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match="damaged or not an .npz file"):
            read_npz(tmp_path / "bad.npz")


def flac(total, rate=16000):
    soundfile = pytest.importorskip("soundfile")
    stream = io.BytesIO()
    soundfile.write(stream, np.random.default_rng(0).normal(0, 0.1, rate), rate, format="FLAC")
    content = bytearray(stream.getvalue())
    content[21] = (content[21] & 0xF0) | total >> 32  # 36 bits of STREAMINFO
    content[22:26] = (total & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(content)


def wav(claimed, rate=16000):
    wave = (np.random.default_rng(0).normal(0, 3000, 16000)).astype("<i2").tobytes()
    kind = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate & 0xFFFFFFFF, 2, 16)
    header = struct.pack("<4sI4s4sI", b"RIFF", claimed, b"WAVE", b"fmt ", 16) + kind
    return header + struct.pack("<4sI", b"data", claimed) + wave


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.flac", lambda: flac(2**36 - 1)),
        ("a.flac", lambda: flac(0)),  # of an encoder that did not know
        ("a.wav", lambda: wav(2**32 - 1)),
        ("a.wav", lambda: wav(2**31 + 7)),
    ],
)
def test_recordings_that_claim_more_than_they_hold(tmp_path, name, content):
    (tmp_path / name).write_bytes(content())
    try:
        assert check_audio(tmp_path / name) == 1.0
    except ValueError as error:
        assert "cannot be decoded" in str(error)
        return
    assert len(read_audio(tmp_path / name, 16000)) == 16000
    assert len(read_audio(tmp_path / name, 16000, start=0.5, seconds=10.0)) <= 16000


@pytest.mark.parametrize("rate", [1, 999, 768001, 2**31 - 1])
def test_rates_that_nobody_uses(tmp_path, rate):
    pytest.importorskip("soundfile")
    (tmp_path / "a.wav").write_bytes(wav(32000, rate))
    for attempt in (lambda: check_audio(tmp_path / "a.wav"), lambda: read_audio(tmp_path / "a.wav", 16000)):
        with pytest.raises(ValueError, match="sampling rate of .* is not in 1000..768000|cannot be decoded"):
            attempt()


@pytest.mark.skipif(os.name != "posix", reason="makes pipes")
def test_pipes_and_devices_are_refused(tmp_path):
    pytest.importorskip("soundfile"), pytest.importorskip("PIL")
    model = source(tmp_path)
    for name in ("pipe", "pipe.txt", "pipe.npz", "pipe.wav", "pipe.png"):
        os.mkfifo(tmp_path / name)
        for attempt in (recognise, lambda path: read_data(path, model)):
            with pytest.raises(ValueError, match="neither a file nor a folder"):
                attempt(tmp_path / name)
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        recognise(tmp_path / "zero")
    with pytest.raises(ValueError, match="holds no file of a known kind"):
        recognise(tmp_path)
    with pytest.raises(ValueError, match="no file"):
        check_audio(tmp_path / "pipe.wav")
    with pytest.raises(ValueError, match="no file"):
        PixelProcessor.of(model).open(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="no file"):
        read_object(tmp_path / "pipe")
