"""Saves and loads models as a directory of ``bitquant.safetensors``, ``config.json`` and ``tokenizer.json``.

``config.json`` is the model's own configuration plus ``quantization_config``; nothing is ever unpickled. The weights do
not lie in ``model.safetensors``, where transformers would find no name that it knows and fill the model with noise.
"""

import copy
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bitquant.atomic import check_replaceable, replacing, sync, write
from bitquant.fields import shown
from bitquant.memory_layout import lay_out_, layout
from bitquant.metadata import FORMAT_VERSION, METHOD, check_metadata, digest
from bitquant.metadata import digest_file as digest_file
from bitquant.skeleton import attention_of, build_skeleton, check_geometry
from bitquant.sources import PREPROCESSOR, TOKENIZER, WEIGHTS, model_directory, read_config, read_headers, weight_files
from bitquant.sources.factory import make

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def save(model, directory, *, tokenizer_file=None, preprocessor_file=None, factory=None, overwrite=False):
    """Writes a student or a packed model so that ``load(directory)`` needs nothing else.

    All files are written beside the target and renamed into place at the end: a full disk or an interruption leaves
    what was there before, and nothing new.

    Args:
        model (nn.Module): after ``quantize_`` or ``convert_``.
        directory (str or Path): made with its parents.
        tokenizer_file (str or Path, optional): copied to ``tokenizer.json``.
        preprocessor_file (str or Path, optional): copied to ``preprocessor_config.json``.
        factory (str, optional): ``package.module:factory`` that makes the float model, for one that transformers
            alone cannot rebuild.
        overwrite (bool): replace an earlier bitquant checkpoint; anything else in the way is never removed.

    Raises:
        FileExistsError: the directory is in the way.
        OSError: it cannot be written.
    """
    from bitquant.packed.structure import structure

    tensors, tied = _unique_tensors(model)
    config = model.config.to_dict() if factory is None and _is_transformers(model) else {}
    if config:
        config["architectures"] = [_architecture(model)]
        config.pop("_name_or_path", None)
    with replacing(directory, overwrite=overwrite, replaceable=is_checkpoint) as target:
        _write_tensors(tensors, target / WEIGHTS)
        meta = config["quantization_config"] = {
            "quant_method": METHOD,
            "format_version": FORMAT_VERSION,
            "sha256": "",
            "tied": tied,
            "structure": structure(model),
            "layout": layout(model),
            "attention": attention_of(model),
            **({"factory": factory} if factory else {}),
        }
        config = json.loads(json.dumps(config))  # as it will be read: keys are text
        check_metadata(meta)
        meta = config["quantization_config"]
        meta["sha256"] = digest(config, target / WEIGHTS)
        write(target / "config.json", json.dumps(config, indent=1).encode())
        for name, file in ((TOKENIZER, tokenizer_file), (PREPROCESSOR, preprocessor_file)):
            if file is not None:
                write(target / name, Path(file).read_bytes())


@torch.inference_mode(False)
def load(directory, *, model=None, allow_factory=False):
    """Rebuilds a saved model, in eval mode on the CPU.

    Every name, shape and dtype is compared with the file's header before anything is allocated.

    Args:
        directory (str or Path): written by ``save``.
        model (nn.Module, optional): for a model that is not from transformers, a float instance of its class; it is
            not changed.
        allow_factory (bool): import and call the factory that the checkpoint names. That runs code which the file
            chose: only for files you trust.

    Returns:
        nn.Module: the student or packed model.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: not a bitquant checkpoint, another format, a damaged or changed weights file or ``config.json``, or
            metadata that does not fit the weights and the model.
    """
    from bitquant.packed.structure import restore_
    from bitquant.packed.values import check_values

    directory = model_directory(directory)
    config, meta = read_metadata(directory)
    file = weight_files(directory)[0]
    if file.name != WEIGHTS or digest(config, file) != meta["sha256"]:
        raise ValueError(f"{directory} is damaged, or was changed after it was saved: the sha256 of its files differs")
    found = _with_tied(read_headers([file]), meta["tied"])
    if model is not None:
        skeleton = _without_weights(model)
    elif "model_type" in config:
        # one packed bit is the least that a value of the float model can have become
        skeleton = build_skeleton(
            config, tensors=len(found), elements=8 * file.stat().st_size, attention=meta["attention"]
        )
    elif "factory" in meta:
        if not allow_factory:
            raise ValueError(
                f"{directory} was made from {shown(meta['factory'])}, which is not imported on a file's word: pass "
                "what it returns, load(directory, model=...), or where you trust the file allow it "
                "(--allow-factory, or load(directory, allow_factory=True))"
            )
        skeleton = _without_weights(make(meta["factory"]).float())
    else:
        raise ValueError(f"{directory} holds no transformers model: pass an instance of its class, load(..., model=)")
    check_geometry(skeleton)
    _cast_as_stored(skeleton, found)
    trial = copy.deepcopy(skeleton)
    with torch.device("meta"):
        restore_(trial, meta["structure"])
    _compare(trial.state_dict(), found, directory)
    restore_(skeleton, meta["structure"])
    try:
        skeleton.load_state_dict(_with_tied(load_file(file), meta["tied"]), assign=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()[:300]
        raise ValueError(f"the weights file of {directory} does not fit the model: {reason}") from None
    for name, tensor in (*skeleton.named_parameters(), *skeleton.named_buffers()):
        if tensor.is_meta:
            raise ValueError(f"{directory} does not determine the value of {shown(name)}")
    check_values(skeleton)
    _tie(skeleton, meta["tied"])
    lay_out_(skeleton, meta["layout"])
    return skeleton.eval()


def read_metadata(directory):
    """``config.json`` of a checkpoint and its ``quantization_config``, the latter checked.

    Raises:
        ValueError: the directory is not a bitquant checkpoint of a format that this version reads.
    """
    config = read_config(directory)
    meta = config.get("quantization_config")
    if not isinstance(meta, dict) or meta.get("quant_method") != METHOD:
        raise ValueError(f"{directory} is not a bitquant checkpoint: its config.json names no bitquant quantization")
    version = meta.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{directory} has format version {shown(version)}; this bitquant reads version {FORMAT_VERSION}"
        )
    try:
        check_metadata(meta)
    except ValueError as error:
        raise ValueError(f"{directory}/config.json: {error}") from None
    return config, meta


def is_checkpoint(directory):
    """Whether a directory holds a bitquant checkpoint, of any version."""
    try:
        meta = read_config(directory).get("quantization_config")
    except ValueError:
        return False
    return isinstance(meta, dict) and meta.get("quant_method") == METHOD


def check_target(directory, *, overwrite=False):
    """Raises what ``save`` would raise, before hours of training: the target is in the way or cannot be written."""
    check_replaceable(directory, overwrite=overwrite, replaceable=is_checkpoint)


def _write_tensors(tensors, file):
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(f"{file.name} cannot be written: {error}") from None
    file.chmod(file.parent.stat().st_mode & 0o666)  # the library makes it private; the user's umask decides
    sync(file)


def _unique_tensors(model):
    """State for the file, each storage once, and the other names of tied tensors: ``{name: name kept}``."""
    tensors, tied, first, storages = {}, {}, {}, set()
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        view = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and view in first:
            tied[name] = first[view]
            continue
        first[view] = name
        storage = tensor.untyped_storage()
        # another view of a storage in the file, or a part of a larger one, is written as a tensor of its own
        alone = storage.data_ptr() not in storages and storage.nbytes() == tensor.nbytes
        storages.add(storage.data_ptr())
        tensors[name] = tensor.contiguous() if alone else tensor.clone(memory_format=torch.contiguous_format)
    return tensors, tied


def _with_tied(entries, tied):
    for name, kept in tied.items():
        if kept not in entries or name in entries:
            raise ValueError(f"the weights file does not hold {shown(kept)} alone, to which {shown(name)} is tied")
    return {**entries, **{name: entries[kept] for name, kept in tied.items()}}


def _tie(model, tied):
    """Makes tied parameters one object again, so that further training steps them once."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, kept in tied.items():
        if name in parameters and kept in parameters:
            path, _, leaf = name.rpartition(".")
            model.get_submodule(path)._parameters[leaf] = parameters[kept]


def _cast_as_stored(skeleton, found):
    """Gives float parameters without memory the dtype of the file: a bfloat16 model comes back as one."""
    for name, parameter in skeleton.named_parameters():
        dtype = _DTYPES.get(found[name][1]) if name in found else None
        if parameter.is_meta and dtype is not None and dtype.is_floating_point:
            parameter.data = parameter.data.to(dtype)


def _compare(expected, found, directory):
    for kind, names in (("lacks", expected.keys() - found.keys()), ("has unknown", found.keys() - expected.keys())):
        if names:
            raise ValueError(f"the weights file of {directory} {kind} {', '.join(map(shown, sorted(names)[:3]))}")
    for name, tensor in expected.items():
        shape, dtype = found[name]
        if shape != tuple(tensor.shape) or _DTYPES.get(dtype) != tensor.dtype:
            wanted = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            raise ValueError(f"{shown(name)} is {shape} {dtype} in the weights file of {directory}, not {wanted}")


def _without_weights(model):
    """A copy whose parameters, and buffers that are saved, have no memory; other buffers keep their values."""
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    memo = {id(buffer): buffer.detach().to("meta") for buffer in model.buffers() if id(buffer) in saved}
    memo |= {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    # a weight that a hook makes of others at each call has a gradient, and torch copies no such tensor
    made = [t for m in model.modules() for t in vars(m).values() if isinstance(t, torch.Tensor) and not t.is_leaf]
    memo |= {id(tensor): tensor.detach() for tensor in made}
    return copy.deepcopy(model, memo)


def _is_transformers(model):
    return hasattr(model, "config") and any(c.__module__.startswith("transformers.") for c in type(model).__mro__)


def _architecture(model):
    return next(c.__name__ for c in type(model).__mro__ if c.__module__.startswith("transformers."))
