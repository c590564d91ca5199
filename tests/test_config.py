import dataclasses
import json

import pytest

from bitquant import QuantConfig

PATHS = ["encoder.layer.0.attention.self.query", "encoder.layer.0.output.dense", "pooler.dense"]


@pytest.mark.parametrize("name", ["bit-ref", "bit-plus"])
def test_json_round_trip(name):
    config = QuantConfig.preset(
        name, modules_to_not_convert=["pooler"], rules={"re:.*query": {"ste": "smooth"}, "pooler.dense": None}
    )
    assert QuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_presets_differ_as_documented():
    ref, plus = QuantConfig.preset("bit-ref"), QuantConfig.preset("bit-plus")
    assert (ref.weight_scale, ref.weight_center, ref.attention, ref.ste) == ("tensor", "tensor", "table", "window")
    assert (plus.weight_scale, plus.attention, plus.signed_init) == ("row", "row-max", 1.0)
    assert ref.relu and not plus.relu and plus.weight_scale_learnable and not ref.weight_scale_learnable
    assert QuantConfig() == plus


@pytest.mark.parametrize(
    ("rules", "skip", "path", "ste"),
    [
        ({}, [], PATHS[0], "window"),
        ({PATHS[0]: {"ste": "smooth"}}, [], PATHS[0], "smooth"),
        ({"re:.*query": {"ste": "smooth"}}, [], PATHS[0], "smooth"),
        ({"re:.*query": {"ste": "smooth"}}, [], PATHS[1], "window"),
        ({"re:.*": None, PATHS[0]: {}}, [], PATHS[0], "window"),  # an exact name goes before a pattern
        ({"re:.*": None}, [], PATHS[0], None),
        ({}, ["pooler"], PATHS[2], None),
        ({}, ["encoder.layer.0"], PATHS[1], None),
        ({}, ["output.dense"], PATHS[1], None),
        ({}, ["put.dense"], PATHS[1], "window"),  # only at a dot
        ({}, ["re:pool"], PATHS[2], "window"),  # a pattern matches whole names
        ({}, ["re:pool.*r"], PATHS[2], None),  # of the module or of one around it
        ({}, ["attention"], PATHS[0], None),
        ({"encoder.layer.0": None}, [], PATHS[0], None),
        ({"encoder": None, "encoder.layer.0": {"ste": "smooth"}}, [], PATHS[1], "smooth"),  # the innermost name
        ({"encoder.layer": None, "re:.*query": {"ste": "smooth"}}, [], PATHS[0], None),
        ({"encoder.layer.1": None}, [], PATHS[1], "window"),
        ({}, "pooler", PATHS[2], None),  # one name
    ],
)
def test_rules(rules, skip, path, ste):
    chosen = QuantConfig.preset("bit-plus", rules=rules, modules_to_not_convert=skip).for_module(path)
    assert (chosen and chosen.ste) == ste


def test_rule_without_match_names_near_ones():
    config = QuantConfig.preset("bit-plus", modules_to_not_convert=["poler.dense"])
    with pytest.raises(ValueError, match=r"'poler.dense' matches no layer.*'pooler.dense'"):
        config.check_rules(PATHS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantConfig.preset("bit-pus"), "unknown preset 'bit-pus'; known presets: bit-ref, bit-plus"),
        (lambda: QuantConfig.preset("bit-plus", stee="window"), "unknown configuration field 'stee'.*'ste'"),
        (lambda: QuantConfig(ste="sharp"), "ste must be one of window, smooth"),
        (lambda: QuantConfig(relu=1), "relu must be true or false"),
        (lambda: QuantConfig(attention_keep=0.0), r"attention_keep must be in \(0, 1\]"),
        (lambda: QuantConfig(signed_init=-1), "signed_init must be positive"),
        (lambda: QuantConfig(signed_init=float("nan")), "signed_init must be positive"),
        (lambda: QuantConfig(attention_keep="x"), "attention_keep must be a number; got 'x'"),
        (lambda: QuantConfig(rules=[1]), r"rules must be a dictionary of module names; got \[1\]"),
        (lambda: QuantConfig(modules_to_not_convert=[1]), "modules_to_not_convert must be a list of module names"),
        (lambda: QuantConfig(modules_to_not_convert=None), "modules_to_not_convert must be a list of module names"),
        (lambda: QuantConfig(weight_bits=True), "weight_bits must be one of 1, 32; got True"),
        (lambda: QuantConfig(float_embeddings=3), "float_embeddings must be a string"),
        (lambda: QuantConfig(embedding_bits=4.0), "embedding_bits must be one of 1, 2, 4, 8, 32; got 4.0"),
        (lambda: QuantConfig(embedding_bits=3), "embedding_bits must be one of 1, 2, 4, 8, 32; got 3"),
        (lambda: QuantConfig.from_dict({"embeddings": True}), "did you mean 'embedding_bits'"),
        (lambda: QuantConfig(version=99), "configuration version 1, not 99"),
        (lambda: QuantConfig(rules={"re:(": None}), "not a valid regular expression"),
        (lambda: QuantConfig(rules={"a": 3}), "must map to null or to a dictionary"),
        (lambda: QuantConfig(rules={"a": {"rules": {}}}), "cannot set rules"),
        (lambda: QuantConfig(rules={"a": {"ste": "x"}}), "ste must be one of"),
        (lambda: QuantConfig.from_dict([1]), "must be a JSON object"),
    ],
)
def test_bad_values_say_what_would_be_right(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantConfig().ste = "smooth"


def test_as_users_give_it():
    config = QuantConfig(ste="smooth")
    assert QuantConfig.of(config) is config and QuantConfig.of({"ste": "smooth"}) == config
    assert QuantConfig.of(None) == QuantConfig.of("bit-plus") == QuantConfig.preset("bit-plus")
    with pytest.raises(ValueError, match="must be a JSON object, not int"):
        QuantConfig.of(8)
