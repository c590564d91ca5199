"""HuBERT weights under other names: Hugging Face ``HubertModel`` directories and fairseq state_dicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitquant.atomic import replacing, write
from bitquant.sources import model_directory, read_config, weight_files

from .config import HubertConfig
from .front_end import LAYERS
from .model import Hubert
from .positions import GROUPS, KERNEL

# ours, transformers', fairseq's; "*" is one word of a name, at the end the rest of it
NAMES = [
    ("front_end.convs.*.weight",
     "feature_extractor.conv_layers.*.conv.weight", "feature_extractor.conv_layers.*.0.weight"),
    ("front_end.norm.*", "feature_extractor.conv_layers.0.layer_norm.*", "feature_extractor.conv_layers.0.2.*"),
    ("feature_norm.*", "feature_projection.layer_norm.*", "layer_norm.*"),
    ("feature_proj.*", "feature_projection.projection.*", "post_extract_proj.*"),
    ("mask_embedding", "masked_spec_embed", "mask_emb"),
    ("positional.conv.bias", "encoder.pos_conv_embed.conv.bias", "encoder.pos_conv.0.bias"),
    ("positional.conv.parametrizations.weight.original0",
     "encoder.pos_conv_embed.conv.parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
    ("positional.conv.parametrizations.weight.original1",
     "encoder.pos_conv_embed.conv.parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"),
    ("norm.*", "encoder.layer_norm.*", "encoder.layer_norm.*"),
    ("encoder.layers.*.attention.*", "encoder.layers.*.attention.*", "encoder.layers.*.self_attn.*"),
    ("encoder.layers.*.attention_norm.*", "encoder.layers.*.layer_norm.*", "encoder.layers.*.self_attn_layer_norm.*"),
    ("encoder.layers.*.ffn.fc1.*", "encoder.layers.*.feed_forward.intermediate_dense.*", "encoder.layers.*.fc1.*"),
    ("encoder.layers.*.ffn.fc2.*", "encoder.layers.*.feed_forward.output_dense.*", "encoder.layers.*.fc2.*"),
    ("encoder.layers.*.ffn_norm.*", "encoder.layers.*.final_layer_norm.*", "encoder.layers.*.final_layer_norm.*"),
]  # fmt: skip
STYLES = ("transformers", "fairseq")
# what older files call the two halves of a weight norm
OLD_NAMES = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
# parts of a training checkpoint that are no part of the trunk
HEADS = ("final_proj.", "label_embs_concat", "lm_head.", "classifier.", "projector.")

_FIXED = {  # values of config.json that say "HuBERT base", with those transformers assumes where they are absent
    "do_stable_layer_norm": (False, False),
    "feat_extract_norm": ("group", "group"),
    "feat_extract_activation": ("gelu", "gelu"),
    "hidden_act": ("gelu", "gelu"),
    "conv_bias": (False, False),
    "conv_pos_batch_norm": (False, False),
    "feat_proj_layer_norm": (True, True),
    "num_conv_pos_embeddings": (KERNEL, 128),
    "num_conv_pos_embedding_groups": (GROUPS, 16),
    "layer_norm_eps": (1e-5, 1e-5),
}


def foreign_names(model: nn.Module, style: str) -> dict[str, str]:
    """Our name -> theirs, for every tensor of a trunk with a Transformer encoder.

    Args:
        style: ``"transformers"`` or ``"fairseq"``.

    Raises:
        ValueError: an unknown style, or a model these libraries have no names for.
    """
    if style not in STYLES:
        raise ValueError(f"names must be one of {', '.join(STYLES)}; got {style!r}")
    return {name: _translate(name, 1 + STYLES.index(style)) for name in model.state_dict()}


def _translate(name: str, column: int) -> str:
    for row in NAMES:
        if (parts := _match(row[0], name)) is not None:
            foreign = row[column]
            for part in parts:
                foreign = foreign.replace("*", part, 1)
            return foreign
    raise ValueError(f"{name} has no counterpart: only HuBERT models with the Transformer encoder have other names")


def _match(pattern: str, name: str) -> list[str] | None:
    """What the stars of a pattern stand for: single words, but for the last one, which takes the rest."""
    ours, given = pattern.split("."), name.split(".")
    if ours[-1] == "*" and len(given) > len(ours):
        given = [*given[: len(ours) - 1], ".".join(given[len(ours) - 1 :])]
    if len(ours) != len(given) or any(o not in ("*", g) for o, g in zip(ours, given, strict=True)):
        return None
    return [g for o, g in zip(ours, given, strict=True) if o == "*"]


def export_state(model: Hubert, style: str) -> dict[str, Tensor]:
    """The trunk's state_dict under other names (see ``foreign_names``)."""
    names = foreign_names(model, style)
    return {names[name]: tensor for name, tensor in model.state_dict().items()}


def import_state_(model: Hubert, state: Mapping[str, Tensor], style: str) -> None:
    """Load a state_dict with other names, in place. Heads of a training checkpoint are left out.

    Raises:
        ValueError: tensors are missing, unknown, or of another shape.
    """
    prefixes = ("hubert.", "w2v_encoder.w2v_model.")
    state = {next((k.removeprefix(p) for p in prefixes if k.startswith(p)), k): v for k, v in state.items()}
    found, missing = {}, []
    for ours, theirs in foreign_names(model, style).items():
        old = next((theirs.replace(new, old) for new, old in OLD_NAMES.items() if new in theirs), theirs)
        theirs = theirs if theirs in state else old
        if theirs in state:
            found[ours] = state.pop(theirs)
        else:
            missing.append(theirs)
    unknown = [name for name in state if not name.startswith(HEADS)]
    for problem, names in (("lacks", missing), ("has unknown", unknown)):
        if names:
            raise ValueError(f"the {style} state_dict {problem} {', '.join(names[:3])}")
    for name, tensor in model.state_dict().items():
        if found[name].shape != tensor.shape:
            raise ValueError(f"{name} is {tuple(found[name].shape)} in the state_dict, not {tuple(tensor.shape)}")
    model.load_state_dict(found)


def config_from_transformers(values: Mapping) -> HubertConfig:
    """The configuration of the trunk that a ``config.json`` describes, with ``groupnorm = "reference"``.

    Raises:
        ValueError: not a HuBERT, or one that is not built like HuBERT base.
    """
    if values.get("model_type") != "hubert":
        raise ValueError(f"model_type is {values.get('model_type')!r}, not 'hubert'")
    for key, (wanted, default) in _FIXED.items():
        if values.get(key, default) != wanted:
            raise ValueError(f"not built like HuBERT base: {key} is {values[key]!r}, not {wanted!r}")
    convs = [values.get("conv_dim", [512] * 7), values.get("conv_kernel", [10, 3, 3, 3, 3, 2, 2]),
             values.get("conv_stride", [5, 2, 2, 2, 2, 2, 2])]  # fmt: skip
    front_end = next((kind for kind, layers in LAYERS.items() if layers == list(zip(*convs, strict=False))), None)
    if front_end is None:
        raise ValueError(f"the front end must be one of {', '.join(LAYERS)}; its channels are {list(convs[0])}")
    return HubertConfig(
        encoder={
            "kind": "transformer",
            "layers": values.get("num_hidden_layers", 12),
            "dim": values.get("hidden_size", 768),
            "heads": values.get("num_attention_heads", 12),
            "ffn": values.get("intermediate_size", 3072),
        },
        front_end=front_end,
        groupnorm="reference",
    )


def config_to_transformers(config: HubertConfig) -> dict:
    """The ``config.json`` of a trunk with a Transformer encoder, for transformers' ``HubertModel``."""
    channels, kernels, strides = zip(*LAYERS[config.front_end], strict=True)
    return {
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "num_hidden_layers": config.encoder["layers"],
        "hidden_size": config.dim,
        "num_attention_heads": config.encoder["heads"],
        "intermediate_size": config.encoder["ffn"],
        "conv_dim": channels,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "num_feat_extract_layers": len(channels),
        **{key: wanted for key, (wanted, _) in _FIXED.items()},
    }


def from_transformers(directory: str | Path) -> Hubert:
    """A trunk with the weights of a Hugging Face HuBERT directory (safetensors), in eval mode.

    Raises:
        FileNotFoundError: no such path.
        ValueError: no safetensors file, another architecture, or weights that do not fit it.
    """
    directory = model_directory(directory)
    model = Hubert(config_from_transformers(read_config(directory)))
    state = {}
    for file in weight_files(directory):
        state.update(load_file(file))
    import_state_(model, state, "transformers")
    return model.eval()


def to_transformers(model: Hubert, directory: str | Path, *, overwrite: bool = False) -> None:
    """Write a trunk as a directory that transformers' ``HubertModel.from_pretrained`` loads.

    Raises:
        FileExistsError: the directory is in the way.
        ValueError: a model without a counterpart there.
    """
    if not isinstance(model.feature_proj, nn.Linear):
        raise ValueError("transformers' HubertModel always projects the features: one without projection has no place")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in export_state(model, "transformers").items()}

    def holds_hubert(path: Path) -> bool:
        return read_config(path).get("model_type") == "hubert"

    with replacing(directory, overwrite=overwrite, replaceable=holds_hubert) as target:
        save_file(state, target / "model.safetensors", metadata={"format": "pt"})
        write(target / "config.json", json.dumps(config_to_transformers(model.config), indent=1).encode())


__all__ = [
    "config_from_transformers",
    "config_to_transformers",
    "export_state",
    "foreign_names",
    "from_transformers",
    "import_state_",
    "to_transformers",
]
