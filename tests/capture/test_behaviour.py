"""What users do with models still works on rewritten ones."""

import copy
import io
import threading
import warnings

import encoder_zoo as zoo
import pytest
import torch
from identity import Child, call, difference, gradient_difference, gradients, rewrite_, tensors
from torch import nn

from bitquant.capture import CaptureError, code, discover, owners, restore_owner_, wrap_owners_
from bitquant.capture.owner import OwnerMixin


def pair(name, **override):
    """(rewritten, original, calls)"""
    model, calls = zoo.build(name, **override)
    original = copy.deepcopy(model)
    rewrite_(model, calls[0])
    return model, original, calls


def test_forward_hooks():
    model, original, calls = pair("bert")
    seen = {}
    for tag, m in (("new", model), ("old", original)):
        for path in ("encoder.layer.0.attention.self", "encoder.layer.0.attention.self.query"):
            m.get_submodule(path).register_forward_hook(
                lambda _, args, out, key=(tag, path): seen.setdefault(key, tensors(out)[0])
            )
        call(m, calls[0])
    for path in ("encoder.layer.0.attention.self", "encoder.layer.0.attention.self.query"):
        assert difference(seen["new", path], seen["old", path]) < 1e-5


def test_gradient_checkpointing():
    model, original, calls = pair("hubert")
    model.gradient_checkpointing_enable()
    model.train(), original.train()
    assert gradient_difference(gradients(model, calls[1]), gradients(original, calls[1])) < 1e-4


@pytest.mark.parametrize("name", ["hubert", "bert", "bert-eager", "vit"])
def test_hidden_states_and_attentions(name):
    model, original, calls = pair(name)
    kwargs = {"output_hidden_states": True, "output_attentions": name == "bert-eager"}
    got, expected = model(**calls[0], **kwargs), original(**calls[0], **kwargs)
    assert len(got.hidden_states) == 3 and difference(got, expected) < 1e-5


def test_deepcopy_is_independent():
    model, original, calls = pair("bert")
    duplicate = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert difference(call(duplicate, calls[1]), call(original, calls[1])) < 1e-5


def test_pickle():
    model, original, calls = pair("hand-written")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert difference(call(loaded, calls[0]), call(original, calls[0])) < 1e-5 and owners(loaded) == owners(model)


@pytest.mark.parametrize("name", ["bert", "hand-written", "nn-transformer-encoder", "wavlm"])
def test_autocast(name):
    model, original, calls = pair(name)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert difference(call(model, calls[0]), call(original, calls[0])) < 2e-2
    assert all(record["path"] == "fx" for record in owners(model).values())


def test_inference_mode_and_dtypes():
    model, original, calls = pair("bert")
    with torch.inference_mode():
        assert difference(call(model, calls[0]), call(original, calls[0])) < 1e-5
    assert difference(call(model.bfloat16(), calls[0]), call(original.bfloat16(), calls[0])) < 2e-2


def test_distributed_data_parallel(tmp_path):
    model, original, calls = pair("bert")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model.train(), find_unused_parameters=True)
        got = {k.removeprefix("module."): v for k, v in gradients(parallel, calls[1]).items()}
    finally:
        torch.distributed.destroy_process_group()
    assert gradient_difference(got, gradients(original.train(), calls[1])) < 1e-4


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_is_handed_to_the_child(inplace):
    class Recorder(Child):
        def forward(self, *args, **kwargs):
            self.dropout = kwargs["dropout_p"]
            return super().forward(*args, **kwargs)

    model, calls = zoo.build("hand-written")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p, module.inplace = 0.3, inplace
    rewrite_(model, calls[0], lambda site: Recorder(site.kind))
    for training, p in ((True, 0.3), (False, 0.0), (True, 0.3)):
        call(model.train(training), calls[0])
        assert [m.dropout for m in model.modules() if isinstance(m, Recorder)] == [p, p]
    assert all(record["path"] == "fx" for record in owners(model).values())


def test_threads():
    model, original, calls = pair("bert")
    model.bfloat16().float()  # forgets all graphs: every thread meets a tracing one
    original.bfloat16().float()
    with torch.no_grad():
        expected = [call(original, inputs) for inputs in calls]
    errors = []

    def work(k):
        with torch.no_grad():
            for i in range(6):
                inputs = (i + k) % 3
                errors.append(difference(call(model, calls[inputs]), expected[inputs]))
                call(original, calls[inputs])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 24 and max(errors) < 1e-5


def test_rewriting_leaves_random_state_and_buffers():
    model, calls = zoo.build("wav2vec2-conformer")
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    rewrite_(model, calls[0])
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())


def test_torch_functions_are_restored():
    before = torch.arange, torch.zeros, torch.autograd.Function.apply, nn.Module.__call__
    pair("hand-written")
    assert before == (torch.arange, torch.zeros, torch.autograd.Function.apply, nn.Module.__call__)


def test_children_by_choice():
    model, calls = zoo.build("deberta-v2")
    original = copy.deepcopy(model)
    discovery = discover(model, calls[0])
    wrapped = wrap_owners_(model, discovery, lambda s: Child(s.kind) if s.role == "qk" else None, calls[0])
    assert {s.role for s in wrapped} == {"qk"} and all(s.traced == "fx" for s in wrapped)
    record = owners(model)["encoder.layer.0.attention.self"]
    assert record["children"] == {"bit_matmul_0": "matmul"}
    assert record["left"] == ["bit_matmul_1", "bit_matmul_2", "bit_matmul_3"]
    assert difference(call(model, calls[1]), call(original, calls[1])) < 1e-5
    with pytest.raises(CaptureError, match="rewritten already"):
        wrap_owners_(model, discovery, lambda s: Child(s.kind), calls[0])


def test_children_can_be_replaced():
    class Zero(nn.Module):
        def forward(self, query, key, value, **_):
            return torch.zeros_like(query)

    model, original, calls = pair("bert")
    before = call(model, calls[0])[0]
    for path in owners(model):
        model.get_submodule(path)._modules["bit_attention_0"] = Zero()
    assert difference(call(model, calls[0])[0], before) > 1e-3
    call(model, calls[2])  # another key: traced with the new children in place


@pytest.mark.parametrize("path", ["fx", "fall-back"])
def test_restored_from_a_record(path):
    model, original, calls = pair("bert")
    records = owners(model)
    fresh = copy.deepcopy(original)
    for name, record in records.items():
        record["path"] = path
        module = fresh.get_submodule(name)
        with pytest.raises(CaptureError, match="lacks its child bit_attention_0"):
            restore_owner_(module, record)
        module.add_module("bit_attention_0", Child("attention"))
        restore_owner_(module, record)
    assert owners(fresh) == records
    for inputs in calls:
        assert difference(call(fresh, inputs), call(original, inputs)) < 1e-5


def test_code_is_readable():
    model, _, calls = pair("bert")
    source = code(model, "encoder.layer.0.attention.self")
    assert "self.bit_attention_0(" in source and "self.query(" in source
    with pytest.raises(CaptureError, match="not rewritten; rewritten modules: encoder.layer.0.attention.self"):
        code(model, "pooler")


def test_an_unseen_path_warns():
    class Model(nn.Module):
        def forward(self, x, twice=False):
            x = x @ x.mT
            return x @ x if twice else x

    model, x = Model(), torch.randn(3, 3)
    rewrite_(model, x)
    with pytest.warns(UserWarning, match="bit_matmul_1 stays in float"):
        model(x, twice=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x, twice=True)


def test_an_error_of_the_model_is_not_a_fall_back():
    model, _, calls = pair("hand-written")
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 3, 7))
    assert all(record["path"] == "fx" for record in owners(model).values())


def test_too_many_graphs_fall_back():
    class Model(nn.Module):
        def forward(self, x):
            return x @ torch.eye(int(x.shape[0]), dtype=x.dtype)[: range(x.shape[0])[-1] + 1]

    model = Model()
    rewrite_(model, torch.randn(2, 2))
    for size in range(1, 30):
        x = torch.randn(size, size)
        assert torch.allclose(model(x), x)
    assert "too many graphs" in owners(model)[""]["reason"]


def test_compile_without_freezing():
    model, original, calls = pair("bert")
    with torch.no_grad():
        for inputs in calls:
            call(model, inputs)
        compiled = torch.compile(model, backend="eager", dynamic=True)
        for inputs in calls:
            assert difference(compiled(**inputs), call(original, inputs)) < 1e-5


def test_neither_path_is_right():
    class Odd(nn.Module):
        def forward(self, x):
            self.seen = x.shape  # refuses a graph
            return x @ x.mT + len(torch.overrides._get_current_function_mode_stack())  # sees the interception

    model, x = Odd(), torch.randn(3, 3)
    with pytest.warns(UserWarning, match="stays in float"):
        discovery = rewrite_(model, x)
    (site,) = discovery.sites
    assert site.traced is None and "differs" in site.reason and type(model) is Odd and not model._modules
    assert torch.equal(model(x), x @ x.mT)


def test_moving_a_model_forgets_its_graphs():
    model, _, calls = pair("bert")
    model.double()
    assert not any(m._capture.graphs for m in model.modules() if isinstance(m, OwnerMixin))
