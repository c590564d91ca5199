"""How well Whisper's decoder reads an encoder: a measure that tells encoders apart long before their words are right.

Given the recording and the text up to a token, the decoder says the next one; counted is how often it does not.
"""

from pathlib import Path

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.accuracy.score import LONGEST, scorable
from benchmarks.accuracy.whisper import END, NO_TIMES, START, pretrained, tokenizer
from bitquant.data import read_data
from bitquant.sources import Source


@torch.no_grad()
def next_token_errors(source: Source, models: dict[str, nn.Module], data: Path, *, part: str) -> dict[str, float]:
    """Share of wrong next tokens of every encoder over the recordings that ``score`` takes of a part of ``data``."""
    recordings, decoder, tokens = read_data(data, source, max_seconds=LONGEST), pretrained(), tokenizer()
    said = scorable(recordings, data, part)
    inputs = {name: recordings.collate([name], None) for name in said}
    found = {}
    for label, encoder in models.items():
        wrong = count = 0
        for name, batch in inputs.items():
            text = tokens.encode(f" {said[name].strip()}", add_special_tokens=False).ids
            target = torch.tensor([START, NO_TIMES, *text, END])
            logits = decoder(
                decoder_input_ids=target[None, :-1],
                encoder_outputs=BaseModelOutput(last_hidden_state=encoder(**batch).last_hidden_state),
            ).logits[0, 1:]
            wrong += int((logits.argmax(-1) != target[2:]).sum())
            count += len(text) + 1
        found[label] = wrong / count
    return found
