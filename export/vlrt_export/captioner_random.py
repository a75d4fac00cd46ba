"""Captioners with random weights, for latency work: any encoder, the published widths, stand-in words."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from vlrt.manifest import Source
from vlrt_export.captioner import Captioner, Words, forbid, seeded, word_level
from vlrt_export.image_encoders import encoder_choice, randomise
from vlrt_export.modules.show_and_tell import ShowAndTell, ShowAndTellSizes
from vlrt_export.modules.show_attend_tell import ShowAttendTell, ShowAttendTellSizes

_VOCABULARY = 2550
_WIDTH = 512
_ATTENTION = 256
_LONGEST = 25
Decoder = TypeVar("Decoder", ShowAttendTell, ShowAndTell)

_SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
_DEFAULTS = {"num_beams": 3, "length_penalty": 0.7, "early_stopping": True, "max_new_tokens": _LONGEST}


def random_show_attend_tell(encoder: str, attention: str, seed: int) -> Captioner:
    """Show, Attend and Tell of the real weights' widths on the encoder of that name."""
    channels = encoder_choice(encoder).channels
    sizes = ShowAttendTellSizes(channels, _WIDTH, _WIDTH, _WIDTH, _ATTENTION, _VOCABULARY)
    decoder = seeded(seed, lambda: _spread(ShowAttendTell(sizes, attention)))
    forbid(decoder.output.bias, (0, 1, 3))
    return _captioner(encoder, decoder, seed, pooled=False)


def random_show_and_tell(encoder: str, seed: int) -> Captioner:
    """Show and Tell of the paper's widths on the encoder of that name."""
    channels = encoder_choice(encoder, pooled=True).channels
    sizes = ShowAndTellSizes(channels, _WIDTH, _WIDTH, _VOCABULARY)
    decoder = seeded(seed, lambda: _spread(ShowAndTell(sizes)))
    forbid(decoder.output.bias, (0, 1, 3))
    return _captioner(encoder, decoder, seed, pooled=True)


def _spread(decoder: Decoder) -> Decoder:
    """Words as far apart as trained ones: torch's own initial embedding gives logits of tens."""
    nn.init.normal_(decoder.embedding.weight, std=0.2)
    return decoder


def _captioner(name: str, decoder: nn.Module, seed: int, *, pooled: bool) -> Captioner:
    choice = encoder_choice(name, pooled=pooled)
    size = choice.image.size[0]

    def build() -> nn.Module:
        encoder = choice.build(size)
        randomise(encoder, torch.randn(2, 3, size, size))
        return encoder

    vocabulary = {word: i for i, word in enumerate(_SPECIAL)}
    vocabulary |= {f"word{i}": i for i in range(len(_SPECIAL), _VOCABULARY)}
    return Captioner(
        encoder=seeded(seed, build),
        decoder=decoder,
        image=choice.image,
        grid=choice.grid(size),
        region_channels=choice.channels,
        words=Words(word_level(vocabulary, "<unk>", _SPECIAL), _VOCABULARY, pad_id=0, start_id=1, end_id=2),
        max_new_tokens=_LONGEST,
        source=Source(name, f"seed {seed}", "none", "random weights and stand-in words: for latency work only"),
        defaults=_DEFAULTS,
        card="Random weights: its captions mean nothing.",
    )
