"""``bitquant doctor`` and the group itself: fast, and honest about what is missing."""

import json
import subprocess
import sys

import bitquant


def test_doctor(bitquant_cli):
    facts = json.loads(bitquant_cli("doctor", "--json").stdout)
    assert facts["versions"]["bitquant"] == bitquant.__version__
    assert {b["name"]: b["available"] for b in facts["backends"]}["naive"] is True
    assert all(b["reason"] for b in facts["backends"])
    text = bitquant_cli("doctor")
    assert text.exit_code == 0
    assert "instruction sets" in text.stdout


def test_missing_package_is_named_with_its_extra(bitquant_cli, monkeypatch):
    from importlib import metadata

    def absent(name):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", absent)
    assert "pip install 'bitquant-torch[hf]'" in bitquant_cli("doctor").stdout


def test_help_and_import_load_nothing_heavy():
    code = (
        "import sys, bitquant.cli\n"
        "try:\n    bitquant.cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'onnx', 'triton'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("quantize", "inspect", "demo", "doctor"):
        assert command in done.stdout


def test_errors_show_a_traceback_only_when_asked(bitquant_cli, monkeypatch, tmp_path):
    assert bitquant_cli("inspect", tmp_path / "nowhere").exception.__class__ is SystemExit
    monkeypatch.setenv("BITQUANT_DEBUG", "1")
    assert isinstance(bitquant_cli("inspect", tmp_path / "nowhere").exception, FileNotFoundError)
