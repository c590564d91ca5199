"""Manifests, layouts, micro-batches."""

import json

import numpy as np
import pytest
import torch

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytest.importorskip("kaldi_native_fbank")
pytest.importorskip("sklearn")
from click.testing import CliRunner  # noqa: E402
from speech_data import RATE, data_directory, recordings, tone  # noqa: E402

from recipes.hubert.data.batches import Batching, MicroBatches  # noqa: E402
from recipes.hubert.data.frames import frames_of, samples_of  # noqa: E402
from recipes.hubert.data.layouts import find_recordings  # noqa: E402
from recipes.hubert.data.manifest import digest, read_manifest  # noqa: E402
from recipes.hubert.prepare import main, prepare  # noqa: E402
from recipes.hubert.targets import Targets  # noqa: E402


def quiet(line):
    pass


def test_unusable_files_are_named_and_skipped(tmp_path):
    audio = recordings(tmp_path / "audio", [1.0] * 12)
    (audio / "broken.wav").write_bytes(b"RIFFnothing")
    soundfile.write(audio / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(audio / "short.wav", tone(0.02, 0), RATE)
    result = CliRunner().invoke(main, [str(audio), "--out", str(tmp_path / "data"), "--held-out", "0.4"])
    assert result.exit_code == 0, result.output
    for name, reason in (("broken", "cannot be decoded"), ("silent", "it is silent"), ("short", "too short, 20 ms")):
        assert any(name in line and reason in line for line in result.stderr.splitlines())
    utterances = read_manifest(tmp_path / "data")
    assert len(utterances) == 12 and {u.split for u in utterances} == {"train", "valid"}
    assert "0.00" in result.output and str(tmp_path / "data" / "manifest.jsonl") in result.output


def test_nothing_usable_is_an_error_and_leaves_nothing(tmp_path):
    audio = tmp_path / "audio"
    audio.mkdir()
    result = CliRunner().invoke(main, [str(audio), "--out", str(tmp_path / "data")])
    assert result.exit_code == 1 and "holds no recordings" in result.output
    soundfile.write(audio / "silent.wav", np.zeros(RATE), RATE)
    result = CliRunner().invoke(main, [str(audio), "--out", str(tmp_path / "data")])
    assert result.exit_code == 1 and "none of the 1 recordings" in result.output
    assert not (tmp_path / "data").exists()


def test_resampled_recordings_have_the_length_of_the_manifest(tmp_path):
    audio = recordings(tmp_path / "audio", [1.0, 1.3, 0.7, 2.0, 1.1, 0.9] * 2, rate=22_050)
    prepare(audio, tmp_path / "data", held_out=0.4, say=quiet)
    for utterance in read_manifest(tmp_path / "data"):
        whole, part = utterance.read(), utterance.read(1001, 5000)
        assert whole.shape == (utterance.samples,) and part.shape == (5000,)
        assert np.abs(whole[1001:6001] - part)[200:-200].mean() < 0.02  # noise; a part starts at another phase


def test_parts_of_a_recording_are_exact_to_the_sample(tmp_path):
    audio = recordings(tmp_path / "audio", [3.0] * 12)
    prepare(audio, tmp_path / "data", held_out=0.4, say=quiet)
    utterance = read_manifest(tmp_path / "data")[0]
    whole = utterance.read()
    for start in range(1, 2000, 7):
        assert np.array_equal(utterance.read(start, 400), whole[start : start + 400])


def test_librispeech_layout(tmp_path):
    for split, speaker in (("train-clean-100", 19), ("dev-clean", 84), ("test-clean", 61)):
        folder = tmp_path / split / str(speaker) / "198"
        folder.mkdir(parents=True)
        soundfile.write(folder / f"{speaker}-198-0000.flac", tone(0.5, speaker), RATE)
        (folder / f"{speaker}-198.trans.txt").write_text(f"{speaker}-198-0000 NORTHANGER ABBEY\n")
    layout, found = find_recordings(tmp_path)
    assert layout == "LibriSpeech"
    assert {r.speaker: (r.split, r.text) for r in found} == {
        "19": ("train", "NORTHANGER ABBEY"), "84": ("valid", "NORTHANGER ABBEY"), "61": ("test", "NORTHANGER ABBEY"),
    }  # fmt: skip


def test_speech_commands_layout(tmp_path):
    files = [("yes", "a_nohash_0"), ("yes", "b_nohash_0"), ("no", "c_nohash_1"), ("_background_noise_", "n")]
    for folder, name in files:
        (tmp_path / folder).mkdir(exist_ok=True)
        soundfile.write(tmp_path / folder / f"{name}.wav", tone(0.5, 0), RATE)
    (tmp_path / "validation_list.txt").write_text("yes/b_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("no/c_nohash_1.wav\n")
    layout, found = find_recordings(tmp_path)
    assert layout == "Speech Commands"
    assert [(r.id, r.split, r.speaker, r.text) for r in found] == [
        ("no/c_nohash_1", "test", "c", "no"), ("yes/a_nohash_0", "train", "a", "yes"),
        ("yes/b_nohash_0", "valid", "b", "yes"),
    ]  # fmt: skip


def test_a_listed_corpus_keeps_its_texts_and_may_lose_what_has_none(tmp_path):
    audio = recordings(tmp_path / "audio", [0.5] * 20)
    rows = [{"path": f"{n:03}.wav", "speaker": "s", "text": "word" if n else None} for n in range(20)]
    (audio / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    utterances = prepare(audio, tmp_path / "data", held_out=0.3, transcribed=True, say=quiet)
    assert len(utterances) == 19 and {u.text for u in utterances} == {"word"}
    assert digest(read_manifest(tmp_path / "data")) == digest(utterances)


def test_a_damaged_manifest_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no manifest"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match="line 1, is no utterance"):
        read_manifest(tmp_path)


# micro-batches


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    data, utterances = data_directory(tmp_path_factory.mktemp("corpus"), [1.0, 1.5, 1.52, 2.5, 2.3, 3.9] * 4)
    targets = Targets(data / "targets" / "mfcc-8", utterances)
    return [u for u in utterances if u.split == "train"], targets


SETTINGS = Batching(min_seconds=1.2, max_seconds=3.0, batch_seconds=7.0)


def test_micro_batches_cover_an_epoch_within_the_budget(corpus):
    utterances, targets = corpus
    batches = MicroBatches(utterances, targets, SETTINGS, seed=0)
    made = [batches[i] for i in range(len(batches))]
    assert sorted(name for batch in made for name in batch.ids) == sorted(u.id for u in utterances if u.seconds >= 1.2)
    lengths = {u.id: min(u.samples, 3 * RATE) for u in utterances}
    for batch in made:
        shortest, longest = min(lengths[i] for i in batch.ids), max(lengths[i] for i in batch.ids)
        assert longest * len(batch.ids) <= 7 * RATE and longest - shortest < RATE // 2
        assert shortest - batch.waves.shape[1] in (0, *range(1, 800))  # a frame without a label is cut off
        assert batch.labels.shape == batch.mask.shape == (len(batch.ids), frames_of(batch.waves.shape[1]))
        assert len({int(row.sum()) for row in batch.mask}) == 1 and 0 <= batch.labels.min() <= batch.labels.max() < 8
    assert len({tuple(sorted(batch.ids)) for batch in made}) > 1


def test_the_nth_micro_batch_depends_on_the_seed_alone(corpus):
    utterances, targets = corpus
    first, second = (MicroBatches(utterances, targets, SETTINGS, seed=3) for _ in range(2))
    last = 2 * len(first) + 1
    _ = [first[i] for i in range(last)]
    one, other = first[last], second[last]
    assert one.ids == other.ids
    assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    assert not torch.equal(MicroBatches(utterances, targets, SETTINGS, seed=4)[last].mask, one.mask)


def test_labels_of_a_part_by_the_written_rule(corpus):
    utterances, targets = corpus
    utterance = max(utterances, key=lambda u: u.samples)
    labels = targets.of(utterance)
    for start, frames in ((0, 40), (1000, 33), (15_999, 20)):
        begin = round(start * 100 / 16_000)
        expected = [labels[begin + int(i * 2.0)] for i in range(frames)]
        assert targets.part(utterance, start, frames).tolist() == expected
    whole = frames_of(utterance.samples)
    assert targets.frames(utterance, 0, utterance.samples) == whole == 194
    # labels from a rounded start run short at the end: frames without one are cut
    late = utterance.samples - samples_of(50) - 90
    assert targets.frames(utterance, late, utterance.samples - late) * 2 <= len(labels) - round(late / 160)


def test_audio_without_labels(corpus):
    batch = MicroBatches(corpus[0], None, SETTINGS, seed=0)[0]
    assert batch.labels is None and batch.mask.shape == (len(batch.ids), frames_of(batch.waves.shape[1]))


def test_impossible_settings_are_refused(corpus):
    with pytest.raises(ValueError, match="leaves no frame"):
        Batching(min_seconds=0.3)
    with pytest.raises(ValueError, match="must rise"):
        Batching(max_seconds=40.0)
    with pytest.raises(ValueError, match="none of .* lasts 10"):
        MicroBatches(*corpus, Batching(min_seconds=10.0), seed=0)
