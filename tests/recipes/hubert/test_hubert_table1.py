"""Table 1: the paper's within its rounding, the consistent one as profiling.md prints it, both computed."""

import json

import pytest
from click.testing import CliRunner

from recipes.hubert import table1
from recipes.hubert.paper import TABLE1

# profiling.md: MB, FLOP G, binary GMAC, time 1e-4 s. In three cells of the Squeezeformer rows that page counts the
# pointwise convolution of the time reduction at the full frame rate and leaves out its depthwise one (31.31, 13.05,
# 6.87 there); these are the counts of what runs.
CONSISTENT = {
    "Vanilla": ("368.85", "105.64", "-", "54.17"),
    "Conformer-S": ("131.87", "39.77", "-", "20.39"),
    "Squeezeformer-XS": ("132.04", "31.30", "-", "16.05"),
    "Sparseformer-DN-S": ("60.81", "23.88", "-", "12.25"),
    "Sparseformer-SW-S": ("117.18", "37.88", "-", "19.43"),
    "BQ-Vanilla": ("39.84", "11.69", "46.97", "6.18"),
    "BQ-Conformer-S": ("12.89", "6.83", "16.47", "3.57"),
    "BQ-Squeezeformer-XS": ("13.06", "6.86", "12.22", "3.57"),
    "BQ-Sparseformer-DN-S": ("12.11", "7.24", "8.32", "3.75"),
    "BQ-Sparseformer-SW-S": ("19.71", "8.68", "14.60", "4.51"),
}


@pytest.fixture(scope="module")
def paper():
    return table1.rows("paper")


@pytest.fixture(scope="module")
def consistent():
    return table1.rows("consistent")


def test_every_cell_of_the_paper(paper):
    assert list(paper) == list(TABLE1)
    for name, (storage, *others) in table1.differences(paper).items():
        assert abs(storage) < 1e-3, (name, "storage", storage)
        for column, far in zip(table1.COLUMNS[1:], others, strict=True):
            assert far is None or abs(far) < 5e-3, (name, column, far)
    empty = [name for name, cells in paper.items() if None in cells]
    assert empty == [name for name, cells in TABLE1.items() if None in cells]


def test_every_cell_of_the_consistent_table(consistent):
    for name, (storage, flop, _, binary, time) in consistent.items():
        found = tuple("-" if cell is None else f"{cell:.2f}" for cell in (storage, flop, binary, time))
        assert found == CONSISTENT[name], name


def test_what_the_correction_means(paper, consistent):
    honest = {name: f"{share:.1%}" for name, share in table1.reductions(consistent).items()}
    assert honest == {"storage": "96.7%", "FLOP": "93.1%", "time": "93.1%"}
    printed = {name: f"{share:.1%}" for name, share in table1.reductions(paper).items()}
    assert printed == {"storage": "93.4%", "FLOP": "93.4%", "time": "91.1%"}
    conformer, narrow = consistent["BQ-Conformer-S"], consistent["BQ-Sparseformer-DN-S"]
    assert f"{1 - narrow[3] / conformer[3]:.0%}" == "49%"  # the paper: 32.9 %
    assert consistent["Conformer-S"][1] > consistent["Sparseformer-SW-S"][1]  # the paper says the reverse


def test_cells_are_computed(monkeypatch, paper):
    """A smaller model changes its rows, and nothing else."""
    monkeypatch.setattr(table1, "MODELS", {"Sparseformer-DN-S": "tiny_sparseformer"})
    changed = table1.rows("paper")
    assert list(changed) == ["Sparseformer-DN-S", "BQ-Sparseformer-DN-S"]
    for name, cells in changed.items():
        assert all(mine is None or mine < theirs for mine, theirs in zip(cells, paper[name], strict=True))


def test_command(monkeypatch):
    monkeypatch.setattr(table1, "MODELS", {"Vanilla": "tiny_transformer", "Sparseformer-DN-S": "tiny_sparseformer"})
    shown = CliRunner().invoke(table1.main, ["--convention", "paper"], catch_exceptions=False).output
    assert "difference" in shown and "Fitted, without a known reason" in shown
    plain = CliRunner().invoke(table1.main, [], catch_exceptions=False).output
    assert "Fitted" not in plain and "storage -" in plain
    data = json.loads(CliRunner().invoke(table1.main, ["--json", "--convention", "paper"]).stdout)
    assert data["fitted"] and data["rows"]["Vanilla"]["paper"]["storage_mb"] == 184.42
    with pytest.raises(ValueError, match="convention must be one of"):
        table1.rows("metric")


def test_measured_on_this_machine(monkeypatch):
    monkeypatch.setattr(table1, "MODELS", {"Vanilla": "tiny_transformer", "Sparseformer-DN-S": "tiny_sparseformer"})
    monkeypatch.setattr(table1, "SECONDS", 1)
    monkeypatch.setattr(table1, "MEASURING_SECONDS", 0.1)
    data = json.loads(CliRunner().invoke(table1.main, ["--json", "--measure"]).stdout)
    row = data["measured"]["Vanilla"]
    assert row["float_ms"] > 0 and row["packed_ms"] > 0 and row["packed_mb"] < row["float_mb"]
