"""Whole models with float paths beside their 1-bit layers: calibration, training, files, reports."""

import copy

import pytest
import torch
from torch import nn

import bitquant
from bitquant import QuantConfig
from bitquant.nn import BitFunctionalLinear
from bitquant.nn.low_rank import LowRank
from bitquant.widths import Widths, in_float, set_widths_


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(24, 24)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(24, 2, 48, 0.0, batch_first=True) for _ in range(2))

    def forward(self, features, attention_mask=None):
        x = self.stem(features)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=None if attention_mask is None else attention_mask == 0)
        return x


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 40, dtype=torch.long)
    mask[1:, 30:] = 0
    return [{"features": torch.randn(3, 40, 24, generator=generator), "attention_mask": mask} for _ in range(3)]


def student_of(model, batches, **overrides):
    student = copy.deepcopy(model)
    bitquant.quantize_(student, QuantConfig.preset("bit-plus", low_rank=4, **overrides), batches[0])
    return student


def paths_of(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, LowRank)}


def test_starts_at_the_directions_that_hold_most(model, batches):
    student = student_of(model, batches)
    bitquant.calibrate_(student, batches)
    seen = []
    layer = student.get_submodule("layers.0.linear1")
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for batch in batches[::-1]:
            student(**batch)
    path = layer.float_path
    assert torch.allclose(path.down @ path.down.T, torch.eye(4), atol=1e-5)
    assert torch.allclose(path.up, layer.weight @ path.down.T, atol=1e-6)
    power = torch.linalg.eigvalsh(torch.cat(seen).T @ torch.cat(seen))
    kept = (torch.cat(seen) @ path.down.T).square().sum() / power.sum()
    assert 0.9 * power[-4:].sum() / power.sum() < kept < 1


class Rows(nn.Sequential):
    def forward(self, features, attention_mask):
        return super().forward(features)


def test_padding_is_left_out_of_the_start(batches):
    torch.manual_seed(0)
    model = Rows(*(nn.Linear(24, 24) for _ in range(4)))
    padded = copy.deepcopy(batches)
    for batch in padded:
        batch["features"][batch["attention_mask"] == 0] = 1e3
    first, second = (paths_of(student_of(model, found)) for found in (batches, padded))
    assert first.keys() == second.keys() == {"1.float_path", "2.float_path"}
    for path, found in first.items():
        assert torch.equal(found.down, second[path].down), path


def test_floats_pass_at_32_bits(model, batches):
    student = student_of(model, batches)
    set_widths_(student, Widths(32, 32))
    with torch.no_grad():
        for batch in batches:
            kept = batch["attention_mask"].bool()
            assert torch.allclose(student(**batch)[kept], model(**batch)[kept], atol=2e-3)


@pytest.mark.parametrize("bits", [1, 4])
def test_from_training_to_a_file(model, batches, bits, tmp_path):
    student = student_of(model, batches, activation_bits=bits)
    before = {path: copy.deepcopy(found.state_dict()) for path, found in paths_of(student).items()}
    assert any(isinstance(module, BitFunctionalLinear) for module in student.modules())
    bitquant.distill(student, model, batches, steps=3, lr=1e-3)
    for path, found in paths_of(student).items():
        assert not torch.equal(found.down, before[path]["down"]), path
        assert not torch.equal(found.up, before[path]["up"]), path
    with torch.no_grad():
        expected = [student(**batch) for batch in batches]
        bitquant.convert_(student)
        assert all(torch.equal(student(**batch), wanted) for batch, wanted in zip(batches, expected, strict=True))
        bitquant.save(student, tmp_path / "packed")
        loaded = bitquant.load(tmp_path / "packed", model=model)
        assert all(torch.equal(loaded(**batch), wanted) for batch, wanted in zip(batches, expected, strict=True))
    assert {found.down.dtype for found in paths_of(loaded).values()} == {torch.float16}
    assert paths_of(loaded).keys() == before.keys()


def test_a_students_checkpoint(model, batches, tmp_path):
    student = student_of(model, batches)
    bitquant.save(student, tmp_path / "student")
    loaded = bitquant.load(tmp_path / "student", model=model)
    assert all(
        torch.equal(a, b) for a, b in zip(student.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_a_chain_starts_no_path_again(model, batches, monkeypatch):
    student = student_of(model, batches)
    before = {path: found.down.detach().clone() for path, found in paths_of(student).items()}
    monkeypatch.setattr(LowRank, "observe", lambda *arguments: pytest.fail("a trained path was started again"))
    bitquant.distill(student, model, batches, chain="w1a2,w1a1", steps=1, lr=1e-9, scale_lr=1e-9)
    assert all(torch.allclose(found.down, before[path], atol=1e-6) for path, found in paths_of(student).items())
    monkeypatch.undo()
    bitquant.calibrate_(student, batches)
    assert not any(torch.allclose(found.down, before[path]) for path, found in paths_of(student).items())


def test_widths_of_rules_do_not_change_where_paths_start(model, batches):
    rules = {"re:layers.0.linear.": {"activation_bits": 8}, "layers.0.self_attn": {"activation_bits": 2}}
    plain, ruled = (paths_of(student_of(model, batches, rules=chosen)) for chosen in ({}, rules))
    for path, found in plain.items():
        assert torch.equal(found.down, ruled[path].down), path


def test_in_float_leaves_everything_as_it_was(model, batches):
    student = student_of(model, batches)
    modules, state = dict(student.named_modules()), copy.deepcopy(student.state_dict())
    with torch.no_grad(), in_float(nn.Sequential(student)):
        for batch in batches:
            kept = batch["attention_mask"].bool()
            assert torch.allclose(student(**batch)[kept], model(**batch)[kept], atol=2e-3)
    assert modules == dict(student.named_modules())
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    with torch.no_grad():
        assert not torch.allclose(student(**batches[0]), model(**batches[0]), atol=0.1)


def test_a_wrapped_student_is_calibrated_too(model, batches):
    one, other = student_of(model, batches), student_of(model, batches)
    bitquant.calibrate_(one, batches)
    wrapper = nn.Module()
    wrapper.inner = other
    wrapper.forward = lambda **call: other(**call)
    bitquant.calibrate_(wrapper, iter(batches))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_autocast(model, batches):
    student = student_of(model, batches)
    packed = copy.deepcopy(student)
    bitquant.convert_(packed)
    layers = [("layers.0.linear1", torch.randn(3, 5, 24)), ("layers.1.linear2", torch.randn(4, 48))]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for path, x in layers:
            for given in (x, x.bfloat16()):
                expected = student.get_submodule(path)(given)
                assert torch.equal(packed.get_submodule(path)(given), expected) and expected.dtype == given.dtype
        packed(**batches[0])


def test_a_product_with_a_parameter_starts_its_path_in_fp32_under_autocast(model, batches):
    student = student_of(model, batches)
    student.load_state_dict(model.state_dict())
    plain = copy.deepcopy(student)
    with torch.no_grad():
        plain(**batches[0])
        with torch.autocast("cpu", torch.bfloat16):
            student(**batches[0])
    for path, found in paths_of(student).items():
        assert torch.equal(found.up, paths_of(plain)[path].up), path


def test_a_float_checkpoint_starts_the_path_again(model, batches):
    student = student_of(model, batches)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.mul_(2)
    student.load_state_dict(other.state_dict())
    with torch.no_grad():
        student(**batches[0])  # a product with a parameter of its caller sees it when called
    layer, attention = student.layers[0].linear1, student.layers[0].self_attn
    assert torch.allclose(layer.float_path.up, other.layers[0].linear1.weight @ layer.float_path.down.T, atol=1e-6)
    (product,) = (m for m in attention.children() if isinstance(m, BitFunctionalLinear) and m.shape[0] == 72)
    assert torch.allclose(
        product.float_path.up, other.layers[0].self_attn.in_proj_weight @ product.float_path.down.T, atol=1e-6
    )


def test_report_and_profile_count_the_path(model, batches):
    student = student_of(model, batches)
    found = bitquant.report(student)
    rows = {row.path: row for row in found.rows}
    beside = rows["layers.0.linear1.float_path"]
    assert beside.macs == 3 * 40 * 4 * (24 + 24 + 48) and not beside.binarized and "float path" in beside.reason
    plain = copy.deepcopy(model)
    bitquant.quantize_(plain, "bit-plus", batches[0])
    assert found.total_macs - bitquant.report(plain).total_macs == sum(
        row.macs for row in found.rows if row.path.endswith(".float_path")
    )
    assert found.share_seen == 1 and found.share_binarized < bitquant.report(plain).share_binarized
    for quantized in (student, plain):
        bitquant.convert_(quantized)
    layers = {row.path: row for row in bitquant.profile(student, batches[0]).layers}
    without = {row.path: row for row in bitquant.profile(plain, batches[0]).layers}
    assert layers["layers.0.linear1.float_path"].macs == beside.macs
    assert layers["layers.0.linear1"].storage_bytes - without["layers.0.linear1"].storage_bytes == 2 * 4 * (24 + 48)


def test_report_of_an_owner_that_goes_back_to_float(model, batches):
    student = student_of(model, batches)
    before = bitquant.report(student)
    attention = student.layers[0].self_attn
    attention._capture.path, attention._capture.reason = "float", "neither path is right"
    after = bitquant.report(student)
    gone = {row.path for row in before.rows} - {row.path for row in after.rows}
    assert gone and all(path.startswith("layers.0.self_attn.") and path.endswith(".float_path") for path in gone)
    assert before.total_macs - after.total_macs == sum(row.macs for row in before.rows if row.path in gone)
    assert after.share_seen == 1


def test_profile_of_a_convolution():
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Conv1d(6, 6, 1) for _ in range(3)))
    x = torch.randn(2, 6, 10)
    bitquant.quantize_(layers, QuantConfig.preset("bit-plus", low_rank=2), x)
    (row,) = [row for row in bitquant.report(layers).rows if row.path == "1.float_path"]
    bitquant.convert_(layers)
    (profiled,) = [row for row in bitquant.profile(layers, x).layers if row.path == "1.float_path"]
    assert profiled.macs == row.macs == 2 * 10 * 2 * (6 + 6 + 6)


def test_outputs_are_not_handed_on_as_bits():
    layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    x = torch.randn(32, 64)
    for rank, some in ((0, True), (2, False)):
        student = copy.deepcopy(layers)
        bitquant.quantize_(student, QuantConfig.preset("bit-plus", low_rank=rank), x)
        bitquant.convert_(student)
        with torch.no_grad():
            expected = student(x)
            bitquant.optimize_(student, example_inputs=x)
            assert any(getattr(module, "defers_from", None) is not None for module in student) == some
            assert torch.equal(student(x), expected)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_not_a_number(model, batches, number):
    student = student_of(model, batches)
    batches[0]["features"][0, 0, 0] = number
    with pytest.raises(ValueError, match="NaN or infinity"):
        bitquant.calibrate_(student, batches)


def test_factors_too_large_for_fp16(model, batches):
    student = student_of(model, batches)
    student.layers[0].linear1.float_path.up.data[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"layers\.0\.linear1: .* too large for fp16"):
        bitquant.convert_(student)


def test_rules_choose_the_rank(model, batches):
    student = student_of(model, batches, rules={"re:.*linear1": {"low_rank": 2}, "layers.1.linear2": {"low_rank": 0}})
    ranks = {path: found.rank for path, found in paths_of(student).items()}
    assert ranks["layers.0.linear1.float_path"] == 2 and ranks["layers.0.linear2.float_path"] == 4
    assert "layers.1.linear2.float_path" not in ranks


def test_distributed_data_parallel(model, batches, tmp_path):
    student = student_of(model, batches)
    bitquant.calibrate_(student, batches)
    student.train()
    copied = copy.deepcopy(student)
    copied(**batches[0]).square().mean().backward()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        nn.parallel.DistributedDataParallel(student)(**batches[0]).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    for (name, mine), theirs in zip(student.named_parameters(), copied.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad), name
    assert all(path.down.grad.any() and path.up.grad.any() for path in paths_of(student).values())


@pytest.mark.parametrize("preset", ["bit-plus", "bit-ref"])
def test_trained_state(model, batches, preset):
    student, other = copy.deepcopy(model), copy.deepcopy(model)
    for each in (student, other):
        bitquant.quantize_(each, QuantConfig.preset(preset, low_rank=4), batches[0])
    bitquant.distill(student, model, batches, steps=2)
    other.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert torch.equal(other(**batches[0]), student(**batches[0]))
    layer, trained = other.layers[0].linear1, copy.deepcopy(other.layers[0].linear1.state_dict())
    layer.load_state_dict({"bias": trained["bias"]}, strict=False)  # no weight, so nothing starts again
    assert all(torch.equal(value, trained[name]) for name, value in layer.state_dict().items())


def test_state_without_paths(model, batches):
    student, plain = student_of(model, batches), copy.deepcopy(model)
    bitquant.quantize_(plain, "bit-plus", batches[0])
    bitquant.distill(plain, model, batches, steps=2)
    student.load_state_dict(plain.state_dict())
    with torch.no_grad():
        student(**batches[0])  # products with a parameter of their caller start there
    with in_float(student), in_float(plain):
        assert torch.allclose(student(**batches[0]), plain(**batches[0]), atol=1e-3)
