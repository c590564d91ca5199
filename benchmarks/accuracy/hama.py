"""The phoneme recogniser of the package hama 1.7.0 (Apache-2.0): a Conformer-CTC of 4 blocks and 2.0M parameters.

``python -m benchmarks.accuracy.hama DIR`` writes its weights, then
``bitquant quantize benchmarks.accuracy.hama:encoder --weights DIR/model.safetensors --data SPEECH --out OUT``.
"""

import json
import struct
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.accuracy.packages import package_file

REQUIREMENT = "hama==1.7.0"
WEIGHTS = ("assets/asr_waveform.hama", "a9fcfe73e179ca48e399cd76a90a6b3e1887bf5037ecc52b778d13a149563328")
VOCABULARY = ("assets/g2p_vocab.json", "520d19e4e6ae58658eed53594e0feab8ea8e1b4b04a7746e25e50c16c29b91bf")
PARTS = ("weight", "bias")
BLANK, WORD_BOUNDARY = "<blank>", "<wb>"
WIDTH, INNER, HEADS, KERNEL, BLOCKS, LABELS, MELS, WINDOW, HOP = 144, 576, 4, 31, 4, 191, 80, 400, 160


class LogMel(nn.Module):
    """Waveform (B, T) at 16 kHz -> log-mel energies (B, T / 160 + 1, 80)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("filters", torch.zeros(WINDOW // 2 + 1, MELS))
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = torch.stft(waveform, WINDOW, HOP, window=self.window, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return (power.transpose(1, 2) @ self.filters).clamp_min(1e-10).log()


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.expand = nn.Linear(WIDTH, INNER)
        self.contract = nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.silu(self.expand(self.norm(x))))


class Attention(nn.Module):
    """Multi-head self-attention without positions."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        q, k, v = (p(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Convolution(nn.Module):
    """Pointwise with gate, depthwise (its batch norm folded in), pointwise."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.gate = nn.Conv1d(WIDTH, 2 * WIDTH, 1)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2, groups=WIDTH)
        self.out = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.gate(self.norm(x).transpose(1, 2)), dim=1)
        return self.out(F.silu(self.depthwise(x))).transpose(1, 2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.attention = FeedForward(), Attention()
        self.convolution, self.second = Convolution(), FeedForward()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.first(x)
        x = x + self.attention(x)
        x = x + self.convolution(x)
        return self.norm(x + 0.5 * self.second(x))


class Conformer(nn.Module):
    """Waveform (B, T) float32 at 16 kHz -> ``{"logits": (B, T / 320, 191)}``, phones and blank for CTC."""

    sampling_rate = 16000

    def __init__(self):
        super().__init__()
        self.features = LogMel()
        self.stem = nn.Conv1d(MELS, WIDTH, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, LABELS)

    def forward(self, waveform: Tensor) -> dict[str, Tensor]:
        x = F.gelu(self.stem(self.features(waveform).transpose(1, 2))).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x)}


def encoder() -> Conformer:
    """The model with random weights: the factory for ``--weights``."""
    return Conformer()


def pretrained() -> dict[str, Tensor]:
    """The package's weights, float32, under the names of ``Conformer``."""
    stored = {name: torch.from_numpy(value.astype(np.float32)) for name, value in _read(_asset(WEIGHTS)).items()}
    state = {
        "features.filters": stored["mel_fb"],
        "stem.weight": stored["onnx::Conv_801"],
        "stem.bias": stored["onnx::Conv_802"],
        "head.weight": stored["acoustic_model.model.proj.weight"][..., 0],
        "head.bias": stored["acoustic_model.model.proj.bias"],
    }
    for i in range(BLOCKS):
        state |= {f"blocks.{i}.{name}": value for name, value in _block(stored, i).items()}
    return {name: value.contiguous() for name, value in state.items()}


def _block(stored: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    # matrices and folded convolutions lost their names when the model was exported: they are numbered in order of use
    matrix, depthwise = 829 + 9 * i, 804 + 3 * i
    matrices = {
        "first.expand": ("ffn1.fc1", matrix),
        "first.contract": ("ffn1.fc2", matrix + 1),
        "attention.out": ("attn.out_proj", matrix + 6),
        "second.expand": ("ffn2.fc1", matrix + 7),
        "second.contract": ("ffn2.fc2", matrix + 8),
    }
    named = {
        "first.norm": "ffn1.norm",
        "attention.norm": "attn_norm",
        "convolution.norm": "conv.norm",
        "convolution.gate": "conv.pointwise1",
        "convolution.out": "conv.pointwise2",
        "second.norm": "ffn2.norm",
        "norm": "norm",
    }
    own = f"acoustic_model.model.blocks.{i}."
    state = {f"{ours}.{part}": stored[f"{own}{theirs}.{part}"] for ours, theirs in named.items() for part in PARTS}
    for ours, (theirs, number) in matrices.items():
        state |= {f"{ours}.weight": stored[f"onnx::MatMul_{number}"].T, f"{ours}.bias": stored[f"{own}{theirs}.bias"]}
    joint = stored[f"onnx::MatMul_{matrix + 2}"].T.chunk(3), stored[f"{own}attn.in_proj_bias"].chunk(3)
    for name, weight, bias in zip(("query", "key", "value"), *joint, strict=True):
        state |= {f"attention.{name}.weight": weight, f"attention.{name}.bias": bias}
    for part, number in zip(PARTS, (depthwise, depthwise + 1), strict=True):
        state[f"convolution.depthwise.{part}"] = stored[f"onnx::Conv_{number}"]
    return state


def labels() -> list[str]:
    """The 191 output labels: IPA phones, a word boundary and the blank."""
    vocabulary = json.loads(_asset(VOCABULARY).read_text(encoding="utf-8"))
    return [*vocabulary["decoder"], WORD_BOUNDARY, BLANK]


def phones(logits: Tensor, names: list[str]) -> str:
    """Greedy CTC decoding of (frames, 191): one string, words apart."""
    best = torch.unique_consecutive(logits.argmax(-1)).tolist()
    return "".join(" " if names[i] == WORD_BOUNDARY else names[i] for i in best if names[i] != BLANK).strip()


def _asset(file: tuple[str, str]) -> Path:
    return package_file("hama", *file, REQUIREMENT)


def _read(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a ``.hama`` file: magic, count, then name, dtype, shape, offset and size of each, then data."""
    content = file.read_bytes()
    if content[:6] != b"HAMAPK":
        raise ValueError(f"{file} is not a hama file")
    position, found = 12, []
    for _ in range(struct.unpack_from("<I", content, 8)[0]):
        (length,) = struct.unpack_from("<H", content, position)
        name = content[position + 2 : position + 2 + length].decode()
        position += 2 + length
        kind, rank = content[position : position + 2]
        shape = struct.unpack_from(f"<{rank}I", content, position + 2)
        offset, size = struct.unpack_from("<QQ", content, position + 2 + 4 * rank)
        position += 18 + 4 * rank
        found.append((name, (np.float32, np.float16, np.int8, np.int32, np.int64)[kind], shape, offset, size))
    start = len(content) - max(offset + size for *_, offset, size in found)
    return {
        name: np.frombuffer(content[start + offset : start + offset + size], dtype).reshape(shape)
        for name, dtype, shape, offset, size in found
    }


def write(directory: Path) -> None:
    """Write the package's weights to ``directory/model.safetensors``. Errors as ``package_file``."""
    state = pretrained()
    directory.mkdir(parents=True, exist_ok=True)
    save_file(state, directory / "model.safetensors")


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def main(directory: Path) -> None:
    """Write the package's weights to DIRECTORY/model.safetensors."""
    try:
        write(directory)
    except (ModuleNotFoundError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"wrote {directory / 'model.safetensors'}")


if __name__ == "__main__":
    main()
