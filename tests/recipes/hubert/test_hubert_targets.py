"""Targets: MFCC against their definition, clusters, labels, quality."""

import numpy as np
import pytest

pytest.importorskip("soundfile")
pytest.importorskip("kaldi_native_fbank")
pytest.importorskip("sklearn")
import torch  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from speech_data import RATE, data_directory, tone  # noqa: E402

from recipes.hubert import HubertForPretraining  # noqa: E402
from recipes.hubert.data.frames import samples_of  # noqa: E402
from recipes.hubert.data.manifest import Utterance  # noqa: E402
from recipes.hubert.saved import load_pretrained, save_pretrained  # noqa: E402
from recipes.hubert.targets import Targets, make_targets  # noqa: E402
from recipes.hubert.targets.__main__ import main  # noqa: E402
from recipes.hubert.targets.clusters import Clusters  # noqa: E402
from recipes.hubert.targets.labels import check  # noqa: E402
from recipes.hubert.targets.layer import LayerFeatures  # noqa: E402
from recipes.hubert.targets.mfcc import Mfcc, differences  # noqa: E402
from recipes.hubert.targets.quality import Quality  # noqa: E402


def reference_mfcc(wave):
    """Kaldi's MFCC by its definition, in float64: 25 ms Povey windows every 10 ms, 23 mel bands of 20 to 8000 Hz."""
    frames = (len(wave) - 400) // 160 + 1
    x = np.stack([wave[160 * i : 160 * i + 400] for i in range(frames)]).astype(np.float64)
    x -= x.mean(1, keepdims=True)
    x -= 0.97 * np.concatenate([x[:, :1], x[:, :-1]], axis=1)
    x *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    power = np.abs(np.fft.rfft(x, 512)) ** 2

    def mel(hertz):
        return 1127 * np.log(1 + hertz / 700)

    edges = np.linspace(mel(20.0), mel(8000.0), 25)
    bins = mel(np.arange(256) * RATE / 512)
    filters = np.stack([
        np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, None)
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False)
    ])  # fmt: skip
    log_mel = np.log(np.maximum(power[:, :256] @ filters.T, np.finfo(np.float32).eps))
    n, k = np.arange(23), np.arange(13)[:, None]
    dct = np.sqrt(2 / 23) * np.cos(np.pi / 23 * (n + 0.5) * k)
    dct[0] = np.sqrt(1 / 23)
    return log_mel @ dct.T * (1 + 11 * np.sin(np.pi * np.arange(13) / 22))


def reference_differences(x):
    rows = np.clip(np.arange(-2, len(x) + 2), 0, len(x) - 1)
    return np.stack([sum(m * x[rows[t + 2 + m]] for m in (-2, -1, 1, 2)) / 10 for t in range(len(x))])


@pytest.mark.parametrize("samples", [400, 559, 560, 16_000, 33_333])
def test_mfcc_by_their_definition(samples):
    wave = tone(samples / RATE, 1)
    found = Mfcc()(wave)
    cepstra = reference_mfcc(wave)
    first = reference_differences(cepstra)
    expected = np.concatenate([cepstra, first, reference_differences(first)], axis=1)
    assert found.shape == (Mfcc.frames(samples), 39) == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_mfcc_of_less_than_a_window():
    assert Mfcc()(tone(0.02, 0)).shape == (0, 39) and Mfcc.frames(320) == 0


def test_differences_of_a_line_are_its_slope():
    line = 3.0 * np.arange(10, dtype=np.float32)[:, None]
    np.testing.assert_allclose(differences(line)[2:-2], 3.0)


def test_assignment_is_the_nearest_centre():
    rng = np.random.default_rng(0)
    frames, centres = rng.normal(size=(500, 39)).astype(np.float32), rng.normal(size=(7, 39)).astype(np.float32)
    distances = ((frames[:, None].astype(np.float64) - centres) ** 2).sum(-1)
    assert np.array_equal(Clusters(centres, {}).assign(frames), distances.argmin(1))


def test_clusters_round_trip_and_refuse_damage(tmp_path):
    clusters = Clusters.fit(np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32), 5, {"name": "x"}, seed=1)
    clusters.save(tmp_path)
    again = Clusters.load(tmp_path)
    assert np.array_equal(again.centres, clusters.centres) and again.features == {"name": "x"}
    (tmp_path / "kmeans.npz").write_bytes(b"PK damaged")
    with pytest.raises(ValueError, match="is damaged"):
        Clusters.load(tmp_path)
    with pytest.raises(ValueError, match="holds no kmeans.npz"):
        Clusters.load(tmp_path / "absent")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return data_directory(tmp_path_factory.mktemp("corpus"), [0.5, 0.7, 0.9] * 5)


def test_one_model_labels_every_split(corpus):
    data, utterances = corpus
    directory = data / "targets" / "mfcc-8"
    targets, clusters = Targets(directory, utterances), Clusters.load(directory)
    assert {u.split for u in utterances} == {"train", "valid"}
    for utterance in utterances:
        labels = targets.of(utterance)
        assert np.array_equal(labels, clusters.assign(Mfcc()(utterance.read())))
        assert len(labels) == Mfcc.frames(utterance.samples)
    frames = [part["frames"] for part in targets.facts["splits"].values()]
    assert sum(frames) == sum(len(targets.of(u)) for u in utterances)


def test_shuffled_labels_are_as_frequent(corpus):
    data, utterances = corpus
    plain, shuffled = (Targets(data / "targets" / "mfcc-8", utterances, shuffle=s) for s in (None, 0))
    a, b = (np.concatenate([t.of(u) for u in utterances]) for t in (plain, shuffled))
    assert not np.array_equal(a, b) and np.array_equal(np.bincount(a), np.bincount(b))


def test_entropy_of_labels(corpus):
    data, utterances = corpus
    targets = Targets(data / "targets" / "mfcc-8", utterances)
    labels = np.concatenate([targets.part(u, 0, targets.frames(u, 0, u.samples)) for u in utterances])
    share = np.bincount(labels) / len(labels)
    assert targets.entropy(utterances) == pytest.approx(-(share[share > 0] * np.log2(share[share > 0])).sum())


def test_command_makes_targets_and_labels_with_old_clusters(corpus, tmp_path):
    data, utterances = corpus
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    result = CliRunner().invoke(main, [str(data), "--clusters", "5", "--share", "1", "--out", first])
    assert result.exit_code == 0 and "entropy" in result.output, result.output
    result = CliRunner().invoke(main, [str(data), "--clusters", first, "--out", second])
    assert result.exit_code == 0, result.output
    one, other = (Targets(place, utterances) for place in (first, second))
    assert all(np.array_equal(one.of(u), other.of(u)) for u in utterances)


def test_more_clusters_than_frames(corpus, tmp_path):
    result = CliRunner().invoke(main, [str(corpus[0]), "--clusters", "5000", "--out", str(tmp_path / "out")])
    assert result.exit_code == 1 and "5000 clusters need at least as many frames" in result.output
    assert not (tmp_path / "out").exists()


def test_labels_at_another_rate_are_refused(corpus):
    data, utterances = corpus
    lengths = np.array([Mfcc.frames(u.samples) for u in utterances])
    check(utterances, lengths, 100)
    with pytest.raises(ValueError, match=r"lasts 0\.50 s and has 48 labels, at 50 a second .* are they 96 a second"):
        check(utterances, lengths, 50)
    with pytest.raises(ValueError, match="labels of 14 utterances and 15"):
        check(utterances, lengths[1:], 100)
    with pytest.raises(ValueError, match="another manifest"):
        Targets(data / "targets" / "mfcc-8", utterances[1:])


def test_layer_features_are_the_layers_output(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = HubertForPretraining.from_preset("tiny_transformer").eval()
    save_pretrained(model.config, model.state_dict(), tmp_path / "model")
    again = load_pretrained(tmp_path / "model")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    features, wave = LayerFeatures(tmp_path / "model", 2), tone(samples_of(54) / RATE, 0)
    with torch.no_grad():
        expected = model.hubert(torch.from_numpy(wave)[None]).hidden_states[2][0].numpy()
    np.testing.assert_allclose(features(wave), expected, atol=1e-6)
    monkeypatch.setattr("recipes.hubert.targets.layer.CHUNK", 20)
    assert features(wave).shape == expected.shape  # no frame is lost between chunks
    with pytest.raises(ValueError, match="layers 1 to 2, not 3"):
        LayerFeatures(tmp_path / "model", 3)
    with pytest.raises(ValueError, match="is not a model"):
        load_pretrained(tmp_path)


def test_targets_of_a_layer(corpus, tmp_path):
    torch.manual_seed(0)
    model = HubertForPretraining.from_preset("tiny_conformer")
    save_pretrained(model.config, model.state_dict(), tmp_path / "model")
    facts = make_targets(tmp_path / "out", corpus[1], LayerFeatures(tmp_path / "model", 1), 6, share=0.5)
    targets = Targets(tmp_path / "out", corpus[1])
    assert facts["label_rate"] == 50 and targets.ratio == 1.0
    assert all(len(targets.of(u)) == (u.samples - 400) // 320 + 1 for u in corpus[1])


def test_quality_of_clusters():
    """Three phones of 0.2 s: two share a cluster, so of log2(3) bits log2(3) - 2/3 are known."""
    utterance = Utterance("a", None, 9600, phones=((0.0, "x"), (0.2, "y"), (0.4, "z")))
    quality = Quality(2, 100)
    quality.add(utterance, (np.arange(58) / 100 + 0.0125 >= 0.4).astype(np.int64))
    quality.add(Utterance("b", None, 9600), np.zeros(58, np.int64))
    found = quality.result()
    assert found["phones"] == 3 and found["cluster_purity"] == pytest.approx(1, abs=0.05)
    assert found["phone_purity"] == pytest.approx(2 / 3, abs=0.05)
    assert found["pnmi"] == pytest.approx((np.log2(3) - 2 / 3) / np.log2(3), abs=0.05)
    assert Quality(2, 100).result() is None
