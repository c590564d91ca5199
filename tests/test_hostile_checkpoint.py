"""Checkpoints whose metadata was written to run, hang or crash what loads them, with a sha256 that fits."""

import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bitquant
from bitquant.capture.errors import TraceFailed
from bitquant.capture.owner import OwnerMixin
from bitquant.capture.rewrite import Rewritten
from bitquant.metadata import digest
from bitquant.skeleton import build_skeleton, model_class
from bitquant.widths import parse_widths, set_widths_
from tests.fuzz.mutations import PAYLOAD
from tests.fuzz.subjects import Plain, answer

INPUTS = {"ids": torch.arange(16).view(2, 8) % 12}


def saved(directory, *, pack=True, **options):
    torch.manual_seed(0)
    model = Plain().eval()
    bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", depthwise="binary", **options), INPUTS)
    if pack:
        bitquant.convert_(model)
    bitquant.save(model.eval(), directory)
    return model


def edit(directory, change):
    config = json.loads((directory / "config.json").read_text())
    change(config["quantization_config"])
    config["quantization_config"]["sha256"] = digest(config, directory / "bitquant.safetensors")
    (directory / "config.json").write_text(json.dumps(config))


def refused(directory, change, match):
    edit(directory, change)
    with pytest.raises(ValueError, match=match) as caught:
        bitquant.load(directory, model=Plain())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


class Attention(nn.Module):
    """Attention that runs its children by name, as adapters of a language do."""

    def __init__(self, name):
        super().__init__()
        self.adapters = nn.ModuleDict({name: nn.Linear(16, 16)})
        self.name = name

    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, self.adapters[self.name](x))


@pytest.mark.parametrize("name", [PAYLOAD, 'x"', "class", "a b", "ﬁ", "x\ny"])
def test_names_of_modules_are_never_written_into_code(name):
    model = Attention(name).eval()
    x = torch.randn(2, 4, 16)
    bitquant.quantize_(model, "bit-plus", (x,))
    with torch.no_grad():
        first = model(x)
        bitquant.convert_(model)
        assert torch.equal(model(x), first)
    assert "BITQUANT_FUZZ_RAN" not in os.environ
    assert isinstance(model, OwnerMixin) and model._capture.path == "fall-back"
    assert "cannot be written as code" in model._capture.reason


def test_names_that_are_identifiers_or_numbers_are_traced():
    model = Attention("en_XX").eval()
    bitquant.quantize_(model, "bit-plus", (torch.randn(2, 4, 16),))
    assert model._capture.path == "fx"


@pytest.mark.parametrize("keyword", ["x=1, y", "class"])
def test_keywords_are_never_written_into_code(keyword):
    graph = torch.fx.Graph()
    out = graph.call_function(dict, (), {keyword: 1})
    graph.output(out)
    with pytest.raises(TraceFailed, match="cannot be written as code"):
        Rewritten.compile(graph, None)


OWNER = {"children": {}, "left": [], "operands": {}, "path": "fx", "reason": None}


def test_only_products_of_ours_make_an_owner(tmp_path):
    saved(tmp_path / "out")
    original = (tmp_path / "out" / "config.json").read_bytes()
    changes = {
        "has no child": lambda s: s["owners"].update({"layers.0.act": OWNER}),
        "none of ours": lambda s: s["owners"].update(head={**OWNER, "children": {"bit_attention_00": "attention"}}),
        "not in the structure": lambda s: s["owners"].update(
            head={**OWNER, "children": {"bit_attention_0": "attention"}}
        ),
        "does not rewrite": lambda s: s["owners"].pop("layers.0"),
        "no module": lambda s: s["modules"].pop("layers.0.up"),
        "says nothing of": lambda s: s["modules"].update({"layers.0.norm": s["modules"]["layers.0.up"]}),
        "no parameter of that module": lambda s: s["owners"]["layers.0"]["operands"]["bit_linear_fn_0"]["paths"].append(
            "forward"
        ),
        "exists only as bits": lambda s: s["owners"]["layers.0"].update(path="float"),
        "another form|parameter of shape": lambda s: s["owners"]["layers.0"]["operands"]["bit_linear_fn_0"].update(
            form="transposed"
        ),
        "no smooth activation": lambda s: s["record"]["relu"].append("layers.0.forward"),
        "no module 'layers.9'": lambda s: s["record"]["blocks"].append("layers.9"),
    }
    for match, change in changes.items():
        (tmp_path / "out" / "config.json").write_bytes(original)
        refused(tmp_path / "out", lambda meta, change=change: change(meta["structure"]), match)


HANGS = {"rules": {"re:(x+x+)+y": {"activation_bits": 8}}}


@pytest.mark.parametrize("where", ["config", "overrides"])
def test_patterns_are_refused(tmp_path, where):
    saved(tmp_path / "out")

    def change(meta):
        record = meta["structure"]["record"]
        (record["config"] if where == "config" else record["overrides"].setdefault("layers.0.up", {})).update(HANGS)

    refused(tmp_path / "out", change, "unknown field 'rules'")


def test_rules_are_kept_without_their_patterns(tmp_path, monkeypatch):
    rules = {"re:layers.0.*": {"activation_bits": 4}, "layers.1.up": {"activation_bits": 8}}
    model = saved(tmp_path / "out", pack=False, rules=rules, modules_to_not_convert=["re:.*down"])
    text = (tmp_path / "out" / "config.json").read_text()
    assert "re:" not in text and "float_embeddings" not in text

    matched = []
    for name in ("fullmatch", "match", "search"):
        function = getattr(re, name)
        monkeypatch.setattr(re, name, lambda p, *rest, f=function: (matched.append(p), f(p, *rest))[1])
    again = bitquant.load(tmp_path / "out", model=Plain())
    assert bitquant.report(again).to_dict() == bitquant.report(model).to_dict()
    widths = parse_widths("w1a2")
    matched.clear()
    set_widths_(again, widths)
    assert matched == []
    set_widths_(model, widths)
    assert bitquant.report(again).to_dict() == bitquant.report(model).to_dict()
    assert again.layers[0].up.input_quantizer.bits == 4 and again.layers[1].conv.input_quantizer.bits == 2
    assert torch.equal(answer(again, INPUTS), answer(model, INPUTS))


@pytest.mark.parametrize("key", ["stride", "padding", "dilation", "kernel_size"])
@pytest.mark.parametrize("value", [0, -1, 2, 2**31 - 1, 2**31, 2**60, 2**63 - 1, 10**30, 1.5, True, "1"])
def test_geometry_of_a_convolution_is_that_of_the_model(tmp_path, key, value):
    saved(tmp_path / "out")
    value = [[value, value]] if key == "padding" else [value]
    refused(
        tmp_path / "out",
        lambda meta: meta["structure"]["modules"]["layers.0.conv"].update({key: value}),
        f"{key}|2\\^31",
    )


@pytest.mark.parametrize("sizes", [{"stride": 2**60}, {"dilation": 2**62}, {"padding": 2**31}, {"stride": 2**63 - 1}])
def test_geometry_of_float_convolutions_is_bounded_too(tmp_path, sizes):
    """Those of a transformers model come from its configuration."""
    saved(tmp_path / "out")
    model = Plain()
    name, value = next(iter(sizes.items()))
    setattr(model.conv, name, (value,))
    with pytest.raises(ValueError, match="2\\^31"):
        bitquant.load(tmp_path / "out", model=model)


BITS = [0, -1, 3, 16, 10**9, float("nan"), 1.0, "1", None, True, [1]]


@pytest.mark.parametrize("bits", BITS, ids=str)
@pytest.mark.parametrize("where", ["module", "config", "row", "override"])
def test_bits_are_those_that_there_are(tmp_path, bits, where):
    saved(tmp_path / "out", pack=where == "module", rules={"layers.0.up": {"activation_bits": 2}})

    def change(meta):
        record = meta["structure"]["record"]
        row = next(row for row in record["rows"] if row["path"] == "layers.0.up")
        places = {
            "module": (meta["structure"]["modules"].get("layers.0.up"), "bits"),
            "config": (record["config"], "activation_bits"),
            "row": (row, "activation_bits"),
            "override": (record["overrides"]["layers.0.up"], "activation_bits"),
        }
        place, key = places[where]
        place[key] = bits

    refused(tmp_path / "out", change, "bits")


@pytest.mark.parametrize("pack", [True, False])
def test_every_missing_and_every_unknown_field_is_named(tmp_path, pack):
    saved(tmp_path / "out", pack=pack)
    file = tmp_path / "out" / "config.json"
    original = json.loads(file.read_text())["quantization_config"]

    def places(value, path=()):
        if isinstance(value, dict):
            yield path
            for key, below in value.items():
                yield from places(below, (*path, key))
        elif isinstance(value, list):
            for index, below in enumerate(value[:1]):
                yield from places(below, (*path, index))

    def at(meta, path):
        for key in path:
            meta = meta[key]
        return meta

    free = {"tied", "overrides"}  # objects that may hold less
    for path in places(original):
        for key in at(original, path):
            if key != "sha256" and not free & {*path, key} and not (path and path[-1] == "left"):
                content = json.loads(json.dumps(original))
                del at(content, path)[key]
                _refuses(file, content)
        content = json.loads(json.dumps(original))
        at(content, path)["colour"] = "red"
        _refuses(file, content)


def _refuses(file, meta):
    config = {"quantization_config": meta}
    meta["sha256"] = digest(config, file.parent / "bitquant.safetensors")
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError) as caught:
        bitquant.load(file.parent, model=Plain())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_the_digest_covers_the_configuration(tmp_path):
    saved(tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content, sort_keys=True))  # the same content, written in another way
    bitquant.load(tmp_path / "out", model=Plain())
    content["quantization_config"]["structure"]["modules"]["layers.0.up"]["signed"] ^= True
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="sha256 of its files differs"):
        bitquant.load(tmp_path / "out", model=Plain())


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layers.0.up.scale", "layers.0.up.weight_quantizer.scale_init"])
def test_scales_are_finite_and_positive(tmp_path, name, value):
    saved(tmp_path / "out", pack=name.endswith("scale"))
    tensors = load_file(tmp_path / "out" / "bitquant.safetensors")
    tensors[name][0] = value
    save_file(tensors, tmp_path / "out" / "bitquant.safetensors")
    refused(tmp_path / "out", lambda meta: None, f"{name} holds a value that is not positive and finite")


def test_a_long_reason_is_cut_when_saved(tmp_path):
    model = saved(tmp_path / "first")
    model._bitquant.rows[0].note = "why " * 10**5
    model.layers[0]._capture.reason = "because " * 10**5
    bitquant.save(model, tmp_path / "out")
    again = bitquant.load(tmp_path / "out", model=Plain())
    assert len(again._bitquant.rows[0].note) == len(again.layers[0]._capture.reason) == 1000


def test_a_long_message_is_cut(tmp_path):
    saved(tmp_path / "out")
    refused(tmp_path / "out", lambda meta: meta["structure"]["owners"].update({"x" * 10**6: OWNER}), "owners")
    edit(tmp_path / "out", lambda meta: meta["structure"]["owners"].popitem())
    refused(tmp_path / "out", lambda meta: meta["structure"]["modules"].update({"a\nb": {"type": "y" * 10**6}}), "type")


def test_no_implementation_or_file_is_taken_from_a_configuration():
    pytest.importorskip("transformers")
    hub = {"attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel"}
    text = {"model_type": "clip_text_model", **hub}
    parsed, _ = model_class({"model_type": "clip", "text_config": text, "transformers_weights": "x.safetensors", **hub})
    for config in (parsed, parsed.text_config):
        assert config._attn_implementation in (None, "eager", "sdpa")
    assert getattr(parsed, "transformers_weights", None) is None


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "timm_wrapper", "architecture": "hf-hub:someone/model"},
        {"model_type": "modernbert", "num_hidden_layers": 10**9},
        {"model_type": "bert", "num_hidden_layers": 10**9},
        {"model_type": "x" * 10**6},
        {"model_type": "bert", "num_labels": "9" * 10**6},
        {"model_type": "bert", "architectures": [["x"]], "hidden_size": 17},
    ],
    ids=["timm", "modernbert", "layers", "type", "labels", "heads"],
)
def test_configurations_that_ask_for_too_much_or_elsewhere(change):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError) as caught:
        build_skeleton(change, tensors=10, elements=10**6)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
