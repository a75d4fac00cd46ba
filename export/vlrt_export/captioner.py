"""A captioner of any layout, loaded: what the two LSTM families share before they write graphs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vlrt.errors import VlrtError
from vlrt.manifest import ImageSpec, Source
from vlrt_export.modules.dual_encoder import DualEncoder
from vlrt_export.request import Request

Decoder = TypeVar("Decoder", bound=nn.Module)


@dataclass(frozen=True)
class Words:
    """A vocabulary: the tokenizer's file as bytes, its size, and the ids with a meaning."""

    tokenizer: bytes
    size: int
    pad_id: int
    start_id: int
    end_id: int

    def __post_init__(self) -> None:
        for name in ("pad_id", "start_id", "end_id"):
            if not 0 <= getattr(self, name) < self.size:
                raise VlrtError(f"`{name}` is {getattr(self, name)}, outside a vocabulary of {self.size}")


def words_only() -> dict[str, Any]:
    """A `tokenizers` pre-tokenizer that keeps words (with inner apostrophes) and drops punctuation."""
    return {"type": "Split", "pattern": {"Regex": r"\w+(?:'\w+)*"}, "behavior": "Removed", "invert": True}


def word_level(vocabulary: Mapping[str, int], unknown: str, special: Iterable[str]) -> bytes:
    """A `tokenizer.json` of whole lower-case words.

    Args:
        vocabulary: word -> id.
        unknown: the word that stands for all others.
        special: words that leave no trace in decoded text.
    """
    added = [
        {"id": vocabulary[word], "content": word, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for word in special
    ]
    described = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": words_only(),
        "model": {"type": "WordLevel", "vocab": dict(vocabulary), "unk_token": unknown},
    }
    return json.dumps(described, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Captioner:
    """Modules in eval mode and the numbers around them.

    Args:
        encoder: pixels [N, 3, H, W] -> regions [N, S, C].
        decoder: `ShowAttendTell`, `TutorialDecoder` or `ShowAndTell`.
        image: preprocessing.
        grid: rows and columns of regions.
        region_channels: C.
        words: vocabulary.
        max_new_tokens: longest caption, end word included.
        defaults: default decoding options by `vlrt.decode.DecodeOptions` field.
        source: where the weights come from.
        dual_encoder: the towers that share the image encoder, where the checkpoint has them.
        card: what it knows and does not know.
    """

    encoder: nn.Module
    decoder: nn.Module
    image: ImageSpec
    grid: tuple[int, int]
    region_channels: int
    words: Words
    max_new_tokens: int
    source: Source
    defaults: Mapping[str, Any] = field(default_factory=dict)
    dual_encoder: DualEncoder | None = None
    card: str = ""


def load_weights(module: Decoder, tensors: Mapping[str, Tensor], where: str) -> Decoder:
    """Fills a module from a checkpoint's tensors, widened to fp32, and sets it to eval mode.

    Raises:
        VlrtError: a tensor is missing, left over or of another shape; the message names the first.
    """
    wanted = module.state_dict()
    names = {name for name in wanted if not name.endswith("num_batches_tracked")}
    _complain(names - set(tensors), where, "lacks the tensor")
    _complain(set(tensors) - set(wanted), where, "has the unexpected tensor")
    state = {}
    for name in names:
        tensor = tensors[name]
        if tensor.shape != wanted[name].shape:
            shapes = f"shape {list(tensor.shape)}, expected {list(wanted[name].shape)}"
            raise VlrtError(f"`{name}` of `{where}` has {shapes}", "check the sizes in `config.json`")
        state[name] = tensor.to(torch.float32)
    module.load_state_dict(state, strict=False)
    return module.eval().requires_grad_(False)


def _complain(names: Iterable[str], where: str, what: str) -> None:
    listed = sorted(names)
    if listed:
        more = f" (and {len(listed) - 1} more)" if len(listed) > 1 else ""
        raise VlrtError(f"`{where}` {what} `{listed[0]}`{more}", "is this the checkpoint of another model?")


def forbid(bias: Tensor, ids: Iterable[int]) -> None:
    """Gives words the logit minus infinity, so that they have no share in the softmax either."""
    with torch.no_grad():
        bias[list(ids)] = -torch.inf


def credited(source: Source, request: Request) -> Source:
    """The source with the origin and licence that the zoo states for it, where it states them."""
    origin, licence = request.option("origin", source.origin), request.entry.license or source.license
    return replace(source, origin=origin, license=licence)


def seeded(seed: int, build: Callable[[], Decoder]) -> Decoder:
    """Builds a module whose initial weights depend on `seed` alone; in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval().requires_grad_(False)
