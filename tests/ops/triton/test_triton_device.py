"""Which kernel runs where, with its reason, and how it is launched: no triton and no GPU needed."""

import importlib.util
import json

import pytest
import torch

from bitquant import ops
from bitquant.ops.triton import config, device
from bitquant.ops.triton.device import Device

A100 = Device("cuda", 80, "", "NVIDIA A100-SXM4-80GB", 108)
H100 = Device("cuda", 90, "", "NVIDIA H100 80GB HBM3", 132)
B200 = Device("cuda", 100, "", "NVIDIA B200", 148)
T4 = Device("cuda", 75, "", "Tesla T4", 40)
MI300 = Device("hip", 0, "gfx942", "AMD Instinct MI300X", 304)
RADEON = Device("hip", 0, "gfx1030", "AMD Radeon RX 6800", 60)


@pytest.mark.parametrize(
    ("on", "rows", "kernel", "reason"),
    [
        (A100, 2048, "b1", "1-bit tensor cores of sm_80"),
        (H100, 17, "b1", "1-bit tensor cores of sm_90"),
        (H100, 16, "popc", "16 rows do not fill a tensor core"),
        (B200, 2048, "int8", "int8 tensor cores of sm_100"),
        (T4, 2048, "popc", "where there is no tensor core"),
        (MI300, 2048, "int8", "gfx942 has int8 matrix cores"),
        (RADEON, 2048, "popc", "where there is no tensor core"),
    ],
)
def test_choice_by_device_and_rows(monkeypatch, on, rows, kernel, reason):
    monkeypatch.delenv("BITQUANT_GPU_KERNEL", raising=False)
    chosen, why = device.choose(on, rows)
    assert chosen == kernel and reason in why


def test_doctor_names_every_kernel_and_the_chosen_one_first():
    text = device.describe(B200)
    assert text.startswith(
        "NVIDIA B200 (sm_100); int8 runs: int8 tensor cores of sm_100; b1 does not run: sm_100 has no"
    )
    assert "popc runs" in text


def test_a_kernel_asked_for_by_name_runs_or_raises(monkeypatch):
    monkeypatch.setenv("BITQUANT_GPU_KERNEL", "b1")
    assert device.choose(H100, 1)[0] == "b1"
    with pytest.raises(RuntimeError, match="'b1' cannot run: sm_100 has no 1-bit tensor cores"):
        device.choose(B200, 4096)
    monkeypatch.setenv("BITQUANT_GPU_KERNEL", "b2")
    with pytest.raises(ValueError, match="unknown GPU kernel 'b2': choose one of b1, int8, popc"):
        device.choose(H100, 4096)


@pytest.mark.parametrize("spec", (None, importlib.util.spec_from_loader("triton", None)))
def test_without_triton_the_reason_says_so(monkeypatch, spec):
    """The second: a folder of that name on the path, which Python takes for a package."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert "triton is not installed" in device.unavailable_reason()
    backend = next(b for b in ops.backends() if b.name == "triton")
    assert not backend.available
    with pytest.raises(ops.BackendUnavailable, match="triton is not installed"), ops.use_backend("triton"):
        pass


def test_a_backend_of_another_device_raises(monkeypatch):
    with pytest.raises(ops.BackendUnavailable, match="'native' does not serve tensors on cuda"):
        ops.dispatch._by_name("native", "cuda") if ops.backends()[0].available else pytest.skip("no native kernels")


def test_blocks_fill_the_gpu_before_they_grow():
    assert config.rule("b1", H100, 8192, 3072)["MT"] == 4
    assert config.rule("b1", H100, 128, 768) == config.CANDIDATES["b1"][-1]
    assert config.rule("level_product", H100, 100000, 48)["BN"] == 16


def test_a_configuration_file_decides(monkeypatch, tmp_path):
    entries = [{"rows": 512, "MT": 1, "num_warps": 4}, {"rows": 8192, "MT": 2, "num_warps": 4}]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"device": "any", "origin": "test", "kernels": {"b1": entries}}))
    monkeypatch.setenv("BITQUANT_GPU_CONFIG", str(file))
    assert config.settings("b1", H100, 512, 768) == {"MT": 1, "num_warps": 4}
    assert config.settings("b1", H100, 513, 768) == {"MT": 2, "num_warps": 4}
    assert config.settings("b1", H100, 9000, 768) == config.rule("b1", H100, 9000, 768)
    assert config.settings("popc", H100, 16, 768) == config.rule("popc", H100, 16, 768)


def test_fake_kernels_need_no_gpu():
    x, lanes = torch.empty(4, 9, 70, device="meta"), torch.empty(2, 3, 16, dtype=torch.int32, device="meta")
    one = torch.empty(1, device="meta")
    assert ops.binary_linear(x, one, False, lanes, 20, one, None).shape == (4, 9, 20)
    words, count = ops.threshold_pack(x.half(), one, True)
    assert words.shape == (4, 9, 3) and count.shape == (4, 9) and words.dtype == count.dtype == torch.int32
