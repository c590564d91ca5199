"""The float path beside a 1-bit layer: against its definition, from calibration to the packed model."""

import copy

import pytest
import torch
from torch import nn

import bitquant
from bitquant import QuantConfig, ops
from bitquant.capture import mutate_class_
from bitquant.nn import BitConv, BitFunctionalLinear, BitLinear
from bitquant.nn.low_rank import LowRank
from bitquant.packed import PackedConv, PackedLinear
from bitquant.widths import Widths, set_widths_


def layer_of(kind, module, rank, **overrides):
    mutate_class_(module, kind)
    module.add_quantizers(QuantConfig.preset("bit-plus", low_rank=rank, **overrides), nonnegative=True)
    with torch.no_grad():
        module.input_quantizer.alpha.fill_(0.83)
        module.input_quantizer.shift.normal_(std=0.3)
        if module.low_rank is not None:
            module.low_rank.down.normal_(std=0.1)
            module.low_rank.up.normal_(std=0.1)
    return module.eval()


def as_defined(layer, x):
    """The layer's output for x (rows, K), 1-bit inputs, written out."""
    down, up = layer.low_rank.down.half().float(), layer.low_rank.up.half().float()
    coordinates = x @ down.T
    rest = torch.addmm(x, coordinates, down, alpha=-1)
    levels = torch.where(rest >= layer.input_quantizer.threshold(), 1.0, -1.0)
    weight = layer.weight.flatten(1)
    signs = torch.where(weight >= 0, 1.0, -1.0)
    scale = layer.input_quantizer.scale() * layer.weight_quantizer.scale(layer.weight)
    return torch.addmm((levels @ signs.T) * scale + layer.bias, coordinates, up.T)


@pytest.mark.parametrize("k, n, rank", [(2, 1, 1), (63, 100, 5), (100, 63, 1), (1000, 17, 16), (384, 384, 8)])
@pytest.mark.parametrize("bits", [1, 8])
def test_linear(k, n, rank, bits):
    torch.manual_seed(k)
    layer = layer_of(BitLinear, nn.Linear(k, n), rank, activation_bits=bits)
    assert layer.low_rank.rank == rank and layer.input_quantizer.levels == "signed"
    packed = PackedLinear.from_trained(layer)
    wide = torch.randn(4, 2 * k)
    for x in (torch.randn(3, k), torch.randn(0, k), torch.randn(2, 5, k), torch.randn(k, 6).T, wide[:, ::2]):
        with torch.no_grad():
            expected = layer(x)
            if bits == 1 and x.ndim == 2:
                assert torch.equal(expected, as_defined(layer, x))
            assert torch.equal(packed(x), expected)
            with ops.use_backend("naive"):
                assert torch.equal(packed(x), expected)
    assert packed.low_rank.down.dtype is torch.float16 and not list(packed.parameters())


@pytest.mark.parametrize("convolution, space", [(nn.Conv1d, (7,)), (nn.Conv2d, (3, 5))], ids=["1d", "2d"])
def test_pointwise_convolution(convolution, space):
    torch.manual_seed(0)
    layer = layer_of(BitConv, convolution(63, 20, 1), 4)
    packed = PackedConv.from_trained(layer)
    x = torch.randn(2, 63, *space)
    x[:, :, -1] = 0  # counts 0 (contract 5)
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(packed(x), expected)
        assert torch.equal(packed(x[0]), layer(x[0]))
        flat = x[:, :, :-1].movedim(1, -1).reshape(-1, 63)
        got = expected[:, :, :-1].movedim(1, -1).reshape(-1, 20)
        assert torch.allclose(got, as_defined(layer, flat), atol=1e-5)
        bias = layer.bias.view(-1, *[1] * len(space[1:]))
        assert torch.equal(expected[0, :, -1], bias.expand_as(expected[0, :, -1]))


def test_wider_convolutions_have_none():
    for options in ({"kernel_size": 3}, {"kernel_size": 1, "stride": 2}, {"kernel_size": 1, "groups": 4}):
        assert layer_of(BitConv, nn.Conv1d(8, 8, **options), 4).low_rank is None
    assert layer_of(BitLinear, nn.Linear(3, 9), 4).low_rank.rank == 3  # no more than there are


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
    path = layer.low_rank
    assert torch.allclose(path.down @ path.down.T, torch.eye(4), atol=1e-5)
    assert torch.allclose(path.up, layer.weight @ path.down.T, atol=1e-6)
    power = torch.linalg.eigvalsh(torch.cat(seen).T @ torch.cat(seen))
    kept = (torch.cat(seen) @ path.down.T).square().sum() / power.sum()
    assert 0.9 * power[-4:].sum() / power.sum() < kept < 1


def test_what_lies_in_few_directions_passes_in_float():
    torch.manual_seed(0)
    layer = layer_of(BitLinear, nn.Linear(40, 30), 3)
    x = torch.randn(200, 3) @ torch.randn(3, 40)
    layer.low_rank.observe(x, layer.weight)
    with torch.no_grad():
        floats = nn.functional.linear(x, layer.weight)
        coordinates = x @ layer.low_rank.down.T
    assert torch.allclose(coordinates @ layer.low_rank.up.T, floats, atol=1e-3)


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
    assert first.keys() == second.keys() == {"1.low_rank", "2.low_rank"}
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


def test_a_chain_keeps_what_was_trained(model, batches):
    student = student_of(model, batches)
    trained = {path: found.down.detach() + 0.01 for path, found in paths_of(student).items()}
    for path, found in paths_of(student).items():
        found.down.data.copy_(trained[path])
    bitquant.calibrate_(student, batches, low_rank=False)
    assert all(torch.equal(found.down, trained[path]) for path, found in paths_of(student).items())
    bitquant.calibrate_(student, batches)
    assert not any(torch.equal(found.down, trained[path]) for path, found in paths_of(student).items())


def test_a_float_checkpoint_starts_the_path_again(model, batches):
    student = student_of(model, batches)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.mul_(2)
    student.load_state_dict(other.state_dict())
    with torch.no_grad():
        student(**batches[0])  # a product with a parameter of its caller sees it when called
    layer, attention = student.layers[0].linear1, student.layers[0].self_attn
    assert torch.allclose(layer.low_rank.up, other.layers[0].linear1.weight @ layer.low_rank.down.T, atol=1e-6)
    (product,) = (m for m in attention.children() if isinstance(m, BitFunctionalLinear) and m.shape[0] == 72)
    assert torch.allclose(
        product.low_rank.up, other.layers[0].self_attn.in_proj_weight @ product.low_rank.down.T, atol=1e-6
    )


def test_report_and_profile_count_the_path(model, batches):
    student = student_of(model, batches)
    found = bitquant.report(student)
    rows = {row.path: row for row in found.rows}
    beside = rows["layers.0.linear1.low_rank"]
    assert beside.macs == 3 * 40 * 4 * (24 + 24 + 48) and not beside.binarized and "float path" in beside.reason
    plain = copy.deepcopy(model)
    bitquant.quantize_(plain, "bit-plus", batches[0])
    assert found.total_macs - bitquant.report(plain).total_macs == sum(
        row.macs for row in found.rows if row.path.endswith(".low_rank")
    )
    assert found.share_seen == 1 and found.share_binarized < bitquant.report(plain).share_binarized
    for quantized in (student, plain):
        bitquant.convert_(quantized)
    layers = {row.path: row for row in bitquant.profile(student, batches[0]).layers}
    without = {row.path: row for row in bitquant.profile(plain, batches[0]).layers}
    assert layers["layers.0.linear1.low_rank"].macs == beside.macs
    assert layers["layers.0.linear1"].storage_bytes - without["layers.0.linear1"].storage_bytes == 2 * 4 * (24 + 48)


def test_outputs_are_not_handed_on_as_bits(model, batches):
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


@pytest.mark.parametrize("rank", [-1, 1.5, True, "4", None])
def test_no_rank(rank):
    with pytest.raises(ValueError, match="low_rank must be a whole number from 0"):
        QuantConfig.preset("bit-plus", low_rank=rank)


def test_not_a_number():
    layer = layer_of(BitLinear, nn.Linear(4, 4), 2)
    layer.low_rank.observing = True
    with pytest.raises(RuntimeError, match="NaN"):
        layer(torch.full((1, 4), torch.nan))


def test_rules_choose_the_rank(model, batches):
    student = student_of(model, batches, rules={"re:.*linear1": {"low_rank": 2}, "layers.1.linear2": {"low_rank": 0}})
    ranks = {path: found.rank for path, found in paths_of(student).items()}
    assert ranks["layers.0.linear1.low_rank"] == 2 and ranks["layers.0.linear2.low_rank"] == 4
    assert "layers.1.linear2.low_rank" not in ranks
