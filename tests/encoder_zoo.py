"""Tiny random encoders of many families, each with three calls: padded with a mask, other lengths, without a mask."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

BATCH, LENGTH = (2, 3, 1), (13, 17, 9)
SAMPLES = (800, 1000, 640)


def _mask(batch, length, padded):
    mask = torch.ones(batch, length, dtype=torch.long)
    if batch > 1:
        mask[1, length - padded :] = 0
    return mask


def _text(vocabulary=60, key="input_ids"):
    calls = []
    for i, (batch, length) in enumerate(zip(BATCH, LENGTH, strict=True)):
        call = {key: torch.randint(3, vocabulary, (batch, length))}
        if i < 2:
            call["attention_mask"] = _mask(batch, length, 3 + i)
        calls.append(call)
    return calls


def _audio():
    calls = []
    for i, (batch, samples) in enumerate(zip(BATCH, SAMPLES, strict=True)):
        call = {"input_values": torch.randn(batch, samples)}
        if i < 2:
            call["attention_mask"] = _mask(batch, samples, 200)
        calls.append(call)
    return calls


def _batches(*shape, key):
    return [{key: torch.randn(batch, *shape)} for batch in (2, 3, 1)]


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
TEXT = {**SMALL, "vocab_size": 60, "max_position_embeddings": 40}
SPEECH = {
    **SMALL,
    "conv_dim": (8, 8, 8),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 3,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "vocab_size": 10,
}
IMAGE = {**SMALL, "image_size": 32, "patch_size": 8}

HUGGING_FACE = {
    "hubert": ("HubertModel", "HubertConfig", SPEECH, _audio),
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2Config", SPEECH, _audio),
    "wavlm": ("WavLMModel", "WavLMConfig", SPEECH, _audio),
    "wav2vec2-conformer": (
        "Wav2Vec2ConformerModel",
        "Wav2Vec2ConformerConfig",
        {**SPEECH, "position_embeddings_type": "relative"},
        _audio,
    ),
    "data2vec-audio": ("Data2VecAudioModel", "Data2VecAudioConfig", {**SPEECH, "conv_pos_kernel_size": 5}, _audio),
    "whisper-encoder": (
        "WhisperEncoder",
        "WhisperConfig",
        {
            "d_model": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "encoder_layerdrop": 0.0,
            "vocab_size": 60,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        functools.partial(_batches, 8, 40, key="input_features"),
    ),
    "ast": (
        "ASTModel",
        "ASTConfig",
        {**SMALL, "patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 32, "num_mel_bins": 16},
        functools.partial(_batches, 32, 16, key="input_values"),
    ),
    "bert": ("BertModel", "BertConfig", TEXT, _text),
    "bert-eager": ("BertModel", "BertConfig", {**TEXT, "attn_implementation": "eager"}, _text),
    "roberta": ("RobertaModel", "RobertaConfig", TEXT, _text),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, "vocab_size": 60, "max_position_embeddings": 40},
        _text,
    ),
    "albert": ("AlbertModel", "AlbertConfig", {**TEXT, "embedding_size": 8}, _text),
    "electra": ("ElectraModel", "ElectraConfig", {**TEXT, "embedding_size": 8}, _text),
    "deberta-v2": (
        "DebertaV2Model",
        "DebertaV2Config",
        {
            **TEXT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
        },
        _text,
    ),
    "modernbert": (
        "ModernBertModel",
        "ModernBertConfig",
        {
            **TEXT,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
        },
        _text,
    ),
    "t5-encoder": (
        "T5EncoderModel",
        "T5Config",
        {"d_model": 16, "num_layers": 2, "num_heads": 4, "d_ff": 32, "d_kv": 4, "vocab_size": 60},
        _text,
    ),
    "clip-text": (
        "CLIPTextModel",
        "CLIPTextConfig",
        {**TEXT, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
        _text,
    ),
    "vit": ("ViTModel", "ViTConfig", IMAGE, functools.partial(_batches, 3, 32, 32, key="pixel_values")),
    "swin": (
        "SwinModel",
        "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        functools.partial(_batches, 3, 32, 32, key="pixel_values"),
    ),
    "dinov2": ("Dinov2Model", "Dinov2Config", IMAGE, functools.partial(_batches, 3, 32, 32, key="pixel_values")),
    "convnext": (
        "ConvNextModel",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
        functools.partial(_batches, 3, 32, 32, key="pixel_values"),
    ),
}


def hugging_face(model_class, config_class, settings, calls, **override):
    transformers = pytest.importorskip("transformers")
    settings = {**settings, **override}
    implementation = settings.pop("attn_implementation", None)
    config = getattr(transformers, config_class)(**settings)
    for name in ("hidden_dropout", "hidden_dropout_prob", "attention_dropout", "attention_probs_dropout_prob"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    if model_class == "WhisperEncoder":
        from transformers.models.whisper.modeling_whisper import WhisperEncoder as kind
    else:
        kind = getattr(transformers, model_class)
    kwargs = {"attn_implementation": implementation} if implementation else {}
    return kind._from_config(config, **kwargs).eval(), calls()


class SelfAttention(nn.Module):
    """Attention as people write it by hand: one projection, in-place mask, explicit softmax."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv, self.out, self.drop = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Dropout(0.0)

    def forward(self, x, mask=None):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5
        if mask is not None:
            scores.masked_fill_(mask[:, None, None, :] == 0, float("-inf"))
        return self.out((self.drop(scores.softmax(-1)) @ v).transpose(1, 2).reshape(batch, length, width))


class EinsumAttention(SelfAttention):
    """Attention spelled out with einsum."""

    def forward(self, x, mask=None):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, self.heads, 3 * width // self.heads).chunk(3, dim=-1)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (width // self.heads) ** -0.5
        if mask is not None:
            scores = torch.where(mask[:, None, None, :] > 0, scores, torch.finfo(scores.dtype).min)
        weights = F.dropout(F.softmax(scores, dim=-1), 0.0, self.training)
        return self.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, width))


class FoldedAttention(SelfAttention):
    """Heads folded into the batch (bmm), as in fairseq, with an additive mask."""

    def forward(self, x, mask=None):
        batch, length, width = x.shape
        head = width // self.heads

        def fold(t):
            return t.view(batch, length, self.heads, head).transpose(1, 2).reshape(batch * self.heads, length, head)

        q, k, v = (fold(t) for t in self.qkv(x).chunk(3, -1))
        scores = torch.bmm(q * head**-0.5, k.transpose(1, 2))
        if mask is not None:
            scores = scores.view(batch, self.heads, length, length) + (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e9
            scores = scores.view(batch * self.heads, length, length)
        out = torch.bmm(self.drop(torch.softmax(scores, dim=-1)), v)
        out = out.view(batch, self.heads, length, head).transpose(1, 2).reshape(batch, length, width)
        return self.out(out)


class Layer(nn.Module):
    """A pre-norm transformer layer around any attention."""

    def __init__(self, attention, width=16):
        super().__init__()
        self.attention, self.norm1, self.norm2 = attention, nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Dropout(0.0), nn.Linear(32, width))

    def forward(self, x, mask=None):
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Stack(nn.Module):
    """Layers in a row."""

    def __init__(self, make, count=2):
        super().__init__()
        self.layers = nn.ModuleList(Layer(make()) for _ in range(count))

    def forward(self, x, mask=None):
        for layer in self.layers:
            x = layer(x, mask)
        return x


class TorchAttention(nn.Module):
    """nn.MultiheadAttention, with and without returned weights."""

    def __init__(self, width=16):
        super().__init__()
        self.first = nn.MultiheadAttention(width, 4, batch_first=True)
        self.second = nn.MultiheadAttention(width, 2, kdim=width, vdim=width, bias=False)

    def forward(self, x, mask=None):
        padding = None if mask is None else mask == 0
        x = self.first(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        y = x.transpose(0, 1)
        out, weights = self.second(y, y, y, key_padding_mask=padding)
        return out.transpose(0, 1), weights


class TorchEncoder(nn.Module):
    """nn.TransformerEncoder."""

    def __init__(self, **kwargs):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, **kwargs)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x, mask=None):
        return self.encoder(x, src_key_padding_mask=None if mask is None else mask == 0)


def _frames():
    calls = []
    for i, (batch, length) in enumerate(zip(BATCH, LENGTH, strict=True)):
        call = {"x": torch.randn(batch, length, 16)}
        if i < 2:
            call["mask"] = _mask(batch, length, 3 + i)
        calls.append(call)
    return calls


PLAIN = {
    "nn-multihead-attention": TorchAttention,
    "nn-transformer-encoder": TorchEncoder,
    "nn-transformer-encoder-norm-first": functools.partial(TorchEncoder, norm_first=True, activation="gelu"),
    "hand-written": functools.partial(Stack, SelfAttention),
    "hand-written-einsum": functools.partial(Stack, EinsumAttention),
    "hand-written-bmm": functools.partial(Stack, FoldedAttention),
}

TIMM = {
    "timm-vit": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 4},
    ),
    "timm-resnet": ("resnet18", {}),
    "timm-convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
}

NAMES = [*HUGGING_FACE, *PLAIN, *TIMM]


def from_timm(name, settings):
    try:
        import timm
    except (ImportError, OSError, RuntimeError) as error:  # it imports torchvision, which may not fit this torch
        pytest.skip(f"timm does not import: {error}")
    return timm.create_model(name, **settings).eval(), _batches(3, 32, 32, key="x")


def build(name, **override):
    """(model in eval mode, three calls as keyword dicts); skips where a family's package is missing."""
    torch.manual_seed(0)
    if name in HUGGING_FACE:
        return hugging_face(*HUGGING_FACE[name], **override)
    if name in TIMM:
        return from_timm(*TIMM[name])
    return PLAIN[name]().eval(), _frames()
