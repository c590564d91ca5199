"""Kernels compiled for GPUs that are not there: the instructions meant, no spills, no moved layouts, few registers."""

import pytest

from bitquant.ops.triton import device

if "triton is not installed" in (device.unavailable_reason() or ""):
    pytest.skip("triton is not installed", allow_module_level=True)
if device.interpreted():
    pytest.skip("Triton interprets kernels", allow_module_level=True)

import triton.language as tl
from offline import compile_for

from bitquant.ops.triton import config
from bitquant.ops.triton.attention import attention
from bitquant.ops.triton.b1 import b1
from bitquant.ops.triton.elastic import gradient_kernel, levels_kernel
from bitquant.ops.triton.int8 import int8
from bitquant.ops.triton.levels import level_product, quantize
from bitquant.ops.triton.norm import layer_norm
from bitquant.ops.triton.pack import count_lanes, pack
from bitquant.ops.triton.popc import popc

ALL = ("sm_80", "sm_90", "gfx942")


def strides(*names):
    return dict.fromkeys(names, "i32")


def no_spills(compiled):
    assert compiled.spills == 0, compiled


def product(words="*i32", bits_out=False):
    """Types of a +-1 product with 768 or so features."""
    types = dict.fromkeys(("a_ptr", "b_ptr"), words) | dict.fromkeys(("a_ones_ptr", "b_ones_ptr"), "*i32")
    types |= strides("a_steps", "b_words") | dict.fromkeys(("rows", "columns", "k"), "i32:16")
    floats = {"scale_ptr": "*fp32", "bias_ptr": "*fp32", "out_ptr": "*fp16", "out_stride": "i32:16"}
    bits = {"limit_ptr": "*i32", "out_ptr": "*i32", "out_ones_ptr": "*i32", "out_stride": "i32"}
    absent = dict.fromkeys(("scale_ptr", "bias_ptr", "limit_ptr", "out_ones_ptr"))
    return absent | types | (bits if bits_out else floats) | {"UNIT": False, "RELU": False, "SCALE_STEP": 1}


@pytest.mark.parametrize("target", ("sm_80", "sm_90"))
@pytest.mark.parametrize("bits_out", (False, True))
def test_b1_is_one_native_instruction_per_tile_and_nothing_is_moved(target, bits_out):
    launch = config.CANDIDATES["b1"][2]
    compiled = compile_for(target, b1, **product(bits_out=bits_out), **launch)
    tiles = launch["MT"] * launch["NT"]
    assert compiled.opcodes["BMMA.168256.AND.POPC"] % tiles == 0 and compiled.count("BMMA") >= tiles
    assert compiled.count("BMMA") == compiled.opcodes["BMMA.168256.AND.POPC"]
    assert compiled.layout_conversions == 0 and "CALL" not in compiled.opcodes
    assert compiled.registers <= 96  # five blocks of four warps on a multiprocessor
    assert compiled.count("LDG.E.64") >= 2 * launch["MT"]
    assert compiled.count("STG.E.U16") == 0  # two columns at a time
    no_spills(compiled)


def test_the_largest_b1_tile_still_fits_the_registers():
    compiled = compile_for("sm_90", b1, **product(), **config.CANDIDATES["b1"][0])
    assert compiled.opcodes["BMMA.168256.AND.POPC"] == 32 and compiled.layout_conversions == 0
    assert compiled.registers <= 232
    no_spills(compiled)


@pytest.mark.parametrize("target", ALL)
def test_popc_counts_each_word_once(target):
    compiled = compile_for(target, popc, **product(), BM=64, BN=64, num_warps=4)
    threads = 256 if target == "gfx942" else 128
    counted = compiled.opcodes["v_bcnt_u32_b32" if target == "gfx942" else "POPC"]
    assert counted == 64 * 64 // threads  # LLVM knew the idiom
    assert compiled.registers <= 128
    no_spills(compiled)


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("bits_out", (False, True))
def test_int8_runs_on_matrix_cores(target, bits_out):
    launch = config.CANDIDATES["int8"][0]
    compiled = compile_for(target, int8, **product("*i8", bits_out), ASSEMBLY=target != "gfx942", **launch)
    least = {"sm_80": ("IMMA.16832.S8", 128), "sm_90": ("IGMMA.64", 8), "gfx942": ("v_mfma_i32", 64)}[target]
    assert compiled.count(least[0]) == least[1]
    assert compiled.registers <= (256 if target == "gfx942" else 168)
    no_spills(compiled)


@pytest.mark.parametrize("target", ALL)
def test_levels_run_on_matrix_cores(target):
    integers = strides(
        "positions", "group_columns", "channels", "group_channels", "columns", "b_words", "height", "width",
        "out_height", "out_width", "kernel_width", "stride_y", "stride_x", "dilation_y", "dilation_x", "before_y",
        "before_x", "out_batch", "out_column", "out_position",
    )  # fmt: skip
    compiled = compile_for(
        target, level_product, a_ptr="*i8", b_ptr="*i32", scale_ptr="*fp32", bias_ptr="*fp32", out_ptr="*fp16",
        **integers, SCALE_STEP=1, UNSIGNED_BYTE=False, **config.CANDIDATES["level_product"][0],
    )  # fmt: skip
    assert compiled.count({"sm_80": "IMMA.16832.S8", "sm_90": "IGMMA.64", "gfx942": "v_mfma_i32"}[target]) > 0
    no_spills(compiled)


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("rule", ("row-max", "table"))
def test_attention_stays_in_registers_and_takes_no_exponential(target, rule):
    heads = strides(*(f"{x}_{part}" for x in "qkv" for part in ("batch", "head", "row")))
    mask = strides(*(f"keep_{part}" for part in ("batch", "head", "row", "key")))
    compiled = compile_for(
        target, attention, q_ptr="*i32", k_ptr="*i32", v_ptr="*i32", keep_ptr="*i8", scale_ptr="*fp32",
        margin_ptr="*i64" if rule == "row-max" else None, table_ptr="*i64" if rule == "table" else None,
        ratio_ptr="*i64" if rule == "table" else None, limit_ptr=None, out_ptr="*fp16", out_ones_ptr=None,
        **strides("heads", "queries", "keys", "out_stride"), **heads, **mask,
        D=64, DV=64, DP=64, DVP=64, ROUNDED=tl.float16, **config.CANDIDATES["attention"][0],
    )  # fmt: skip
    assert compiled.count({"sm_80": "IMMA.16832.S8", "sm_90": "IGMMA.64", "gfx942": "v_mfma_i32"}[target]) > 0
    assert compiled.count("MUFU.EX2") == compiled.count("v_exp") == 0
    assert compiled.registers <= 240
    no_spills(compiled)


@pytest.mark.parametrize("target", ALL)
def test_kernels_that_make_bits_keep_their_nan_check(target):
    asserted = "s_trap" if target == "gfx942" else "__assertfail"
    made = [
        compile_for(
            target, pack, x_ptr="*fp16", threshold_ptr="*fp32", words_ptr="*i32", ones_ptr="*i32", rows="i32:16",
            k="i32:16", x_stride="i32:16", words_stride="i32", THRESHOLD_STEP=1, STRICT=False, ROWS=4, WORDS=32,
            num_warps=4,
        ),
        compile_for(
            target, quantize, x_ptr="*fp16", offset_ptr="*fp32", step_ptr="*fp32", out_ptr="*i8", positions="i32:16",
            channels="i32:16", x_batch="i32:16", x_channel="i32", x_position="i32:16", OFFSET_STEP=1, BITS=4,
            SIGNED=True, PLACES=True, BP=32, BC=64, num_warps=4,
        ),
        compile_for(
            target, layer_norm, x_ptr="*fp16", residual_ptr="*fp16", weight_ptr="*fp32", bias_ptr="*fp32",
            threshold_ptr="*fp32", out_ptr="*fp16", words_ptr="*i32", ones_ptr="*i32", columns="i32:16",
            words_stride="i32", eps="fp32", THRESHOLD_STEP=1, WORDS=32, num_warps=4,
        ),
        compile_for(
            target, levels_kernel, x_ptr="*fp32", shift_ptr="*fp32", alpha_ptr="*fp32", out_ptr="*fp32",
            elements="i32:16", channels="i32:16", SHIFT_STEP=1, LOW=-1, HIGH=1, BLOCK=1024, num_warps=4,
        ),
    ]  # fmt: skip
    for compiled in made:
        assert asserted in compiled.intermediate
        assert compiled.registers <= 80
        no_spills(compiled)
    if target != "gfx942":
        assert made[0].count("POPC") == 4  # 128 words in 32 lanes


@pytest.mark.parametrize("target", ALL)
def test_gradients_and_counts(target):
    gradient = compile_for(
        target, gradient_kernel, grad_ptr="*fp32", x_ptr="*fp32", shift_ptr="*fp32", alpha_ptr="*fp32", dx_ptr="*fp32",
        dshift_ptr="*fp32", dalpha_ptr="*fp32", rows="i32:16", channels="i32:16", block_rows="i32", SHIFT_STEP=1,
        SMOOTH=True, LOW=-1, HIGH=1, BR=16, BC=64, num_warps=4,
    )  # fmt: skip
    count = compile_for(target, count_lanes, lanes_ptr="*i32", ones_ptr="*i32", words="i32", WORDS=64, num_warps=4)
    for compiled in (gradient, count):
        assert compiled.registers <= 64
        no_spills(compiled)


def test_no_product_is_fused_with_its_bias():
    """Contract 1: fl(fl(acc * scale) + bias)."""
    compiled = compile_for("sm_90", popc, **product(), BM=64, BN=64, num_warps=4)
    assert compiled.count("FMUL") > 0 and compiled.count("FADD") > 0
    assert "fma.rn" not in compiled.intermediate and compiled.count("FFMA") == 0
    hip = compile_for("gfx942", popc, **product(), BM=64, BN=64, num_warps=4)
    assert hip.count("v_fma") == hip.count("v_mad_f32") == hip.count("v_pk_fma") == hip.count("v_fmac") == 0
