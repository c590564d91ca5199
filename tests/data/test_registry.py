"""Which kind of data a path holds, and whether the model takes it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from bitquant.data import example_inputs, read_data, recognise
from bitquant.data.kind import files_below


def model(*arguments, tmp_path=None):
    file = {"preprocessor_config.json": json.dumps({"size": 8})}
    for name, content in file.items():
        (tmp_path / name).write_text(content)
    return SimpleNamespace(
        name="model",
        arguments=list(arguments),
        directory=tmp_path,
        model=None,
        tokenizer=None,
        file=lambda name: tmp_path / name if (tmp_path / name).exists() else None,
    )


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_counts_visible_files_of_each_kind(tmp_path):
    touch(tmp_path / "d", "a.wav", "b/c.FLAC", ".hidden/d.wav", "e.txt", "f.py", "g.JPG")
    assert recognise(tmp_path / "d") == {"audio": 2, "text": 1, "image": 1}
    assert recognise(touch(tmp_path, "x.npz") / "x.npz") == {"array": 1}
    assert recognise(touch(tmp_path, "README") / "README") == {"text": 1}
    assert [f.name for f in files_below(tmp_path / "d", (".wav", ".flac"))] == ["a.wav", "c.FLAC"]


def test_the_model_decides_between_kinds(tmp_path):
    folder = touch(tmp_path / "d", "a.png", "b.png", "c.txt")
    assert read_data(folder, model("pixel_values", tmp_path=tmp_path)).kind == "image"


def test_what_cannot_be_decided_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        recognise(tmp_path / "nowhere")
    touch(tmp_path / "d", "a.py")
    with pytest.raises(ValueError, match=r"holds no file of a known kind \(.txt.*.npz\)"):
        recognise(tmp_path / "d")
    touch(tmp_path / "d", "a.png", "b.txt")
    with pytest.raises(ValueError, match="holds 1 text file and 1 image file, but model takes input_values"):
        read_data(tmp_path / "d", model("input_values", tmp_path=tmp_path))
    with pytest.raises(ValueError, match="could take either: give a folder of one kind"):
        read_data(tmp_path / "d", model("input_ids", "pixel_values", tmp_path=tmp_path))
    with pytest.raises(ValueError, match="model takes x: give it data"):
        example_inputs(model("x", tmp_path=tmp_path))


def test_a_model_with_names_of_its_own_takes_what_there_is(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "d").mkdir()
    for name in "ab":
        image.new("RGB", (9, 9), (255, 0, 0)).save(tmp_path / "d" / f"{name}.png")
    data = read_data(tmp_path / "d", model("x", "mask", tmp_path=tmp_path))
    batch = data.example_inputs(data.samples)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {"x": (2, 3, 8, 8)}
    assert batch["x"][:, 0].unique().tolist() == [1.0]


def test_arrays(tmp_path):
    from bitquant.data import describe, restore

    np.savez(tmp_path / "a.npz", x=np.arange(40.0).reshape(20, 2), ids=np.arange(20, dtype=np.int32))
    takes = model("x", "ids", tmp_path=tmp_path)
    data = read_data(tmp_path / "a.npz", takes)
    batch = data.example_inputs(data.samples)
    assert {name: (str(t.dtype), tuple(t.shape)) for name, t in batch.items()} == {
        "x": ("torch.float32", (2, 2)),
        "ids": ("torch.int64", (2,)),
    }
    again = restore(json.loads(json.dumps(describe(data, [3, 5]))), takes)
    assert next(iter(again.batches(again.samples, batch_size=8)))["ids"].tolist() == [3, 5]
    assert [facts["batch"] for facts, _ in data.timings()] == [1, 32]


def test_rows_are_split_by_content_and_bad_ones_left_out(tmp_path):
    rows = np.random.default_rng(0).normal(size=(300, 2))
    np.savez(tmp_path / "a.npz", x=rows)
    np.savez(tmp_path / "b.npz", x=rows[::-1])
    takes = model("x", tmp_path=tmp_path)
    first, second = (read_data(tmp_path / f"{name}.npz", takes) for name in "ab")
    assert [299 - i for i in second.split()[1]] == first.split()[1]
    rows[7] = np.nan
    np.savez(tmp_path / "a.npz", x=rows)
    kept, skipped = read_data(tmp_path / "a.npz", takes).usable([6, 7, 8])
    assert kept == [6, 8]
    assert skipped == [("row 7", "it holds NaN or infinite values")]


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"y": np.zeros(3)}, "holds 'y', but model takes x"),
        ({"x": np.zeros((3, 1)), "z": np.zeros(4)}, "differ in their first axis, the samples: x 3, z 4"),
        ({"x": np.zeros(())}, "'x' .* has no first axis"),
        ({"x": np.array(["a", "b"])}, "'x' .* not numbers"),
        ({"x": np.array([{}, []], dtype=object)}, "Python objects, which are not read"),
        ({}, "the samples: none"),
    ],
)
def test_bad_arrays(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        read_data(tmp_path / "a.npz", model("x", *(["z"] if "z" in arrays else []), tmp_path=tmp_path))


def test_damaged_array_file(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((300, 300)))
    content = (tmp_path / "a.npz").read_bytes()
    for damaged in (b"", b"PK\x03\x04nonsense", content[:-30], content[:200] + b"\xff" * 50 + content[250:]):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or not an .npz file"):
            read_data(tmp_path / "a.npz", model("x", tmp_path=tmp_path))
