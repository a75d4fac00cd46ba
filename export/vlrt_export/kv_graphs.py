"""The graphs of a transformer decoder with in-place caches, and the states that describe them; for every family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from vlrt.manifest import StateSpec
from vlrt_export.graph import Graph
from vlrt_export.modules.attention_kv import KeysValues, Places

STEP, MEMORY, MASK = "decoder_step", "decoder_memory", "memory_mask"

_Call = tuple[int, int, tuple[int, ...], int]
_CALLS: Sequence[_Call] = (
    (2, 3, (1,), 4),  # three beams of two images, one token each
    (1, 1, (3,), 0),
    (3, 1, (2, 4, 1), 0),  # prompts of different lengths
    (1, 5, (1,), 2),
    (2, 1, (1,), 0),
)
"""Images, rows per image, new tokens by row, and most earlier ones, of the step's cases."""


class KvSizes(Protocol):
    """What the graphs need of a decoder's sizes; see `vlrt_export.modules.gpt2.DecoderSizes`."""

    @property
    def vocabulary(self) -> int: ...

    @property
    def layers(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def head_width(self) -> int: ...


class KvDecoder(Protocol):
    """What the graphs need of a decoder; see `vlrt_export.modules.gpt2.Gpt2`."""

    @property
    def sizes(self) -> KvSizes: ...

    def memory(self, states: Tensor) -> list[KeysValues]: ...

    def embed(self, token: Tensor, position: Tensor) -> Tensor: ...

    def __call__(
        self,
        embedded: Tensor,
        new_length: Tensor,
        places: Places,
        past: list[KeysValues],
        memory: list[KeysValues] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]: ...


class PrefixedDecoder(KvDecoder, Protocol):
    """A decoder whose first positions an image may take; see `vlrt_export.modules.opt.Opt`."""

    def embed_prefixed(self, prefix: Tensor, token: Tensor, position: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Prefix:
    """Embeddings [B, Q, C] of an image that stand before the words, in the place of Q ids that count for nothing.

    Args:
        input: their name, as an earlier graph of the chain gives them.
        length: Q.
        width: C.
    """

    input: str
    length: int
    width: int


@dataclass(frozen=True)
class Memory:
    """What a decoder's cross-attention reads.

    Args:
        input: name of the encoder states [B, S, M] that an earlier graph of the chain gives.
        width: M.
        length: S, or 0 where it differs from run to run (questions); then `MASK` [B, S] comes with the states.
        projection: applied to the states first, where the encoder's width is not the decoder's.
    """

    input: str
    width: int
    length: int
    projection: nn.Module | None = None

    @property
    def masked(self) -> bool:
        return self.length == 0


class _Memory(nn.Module):
    """Encoder states to every layer's keys and values, once per image."""

    def __init__(self, decoder: KvDecoder, projection: nn.Module | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.projection = projection

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        return _flat(self.decoder.memory(states if self.projection is None else self.projection(states)))


class _Step(nn.Module):
    """One call of a decoder with its states as a flat list: prefill of whole prompts, and every step after it."""

    def __init__(self, decoder: KvDecoder, masked: bool, prefixed: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.masked = masked
        self.prefixed = prefixed

    def forward(
        self,
        token: Tensor,
        position: Tensor,
        new_length: Tensor,
        last_position: Tensor,
        total_length: Tensor,
        *states: Tensor,
    ) -> tuple[Tensor, ...]:
        layers = self.decoder.sizes.layers
        mask = states[0] if self.masked else None
        pairs = _pairs(states[self.masked + self.prefixed :])
        past, memory = pairs[:layers], pairs[layers:] or None
        if self.prefixed:
            embedded = cast(PrefixedDecoder, self.decoder).embed_prefixed(states[self.masked], token, position)
        else:
            embedded = self.decoder.embed(token, position)
        logits, present = self.decoder(embedded, new_length, Places(last_position, total_length), past, memory, mask)
        return logits, *_flat(present)


def memory_graph(decoder: KvDecoder, memory: Memory, tolerance: float) -> Graph:
    """Encoder states [B, S, M] to the keys and values that every layer of the decoder reads."""
    cases = [{memory.input: _normal(n, memory.length or s, memory.width, seed=n)} for n, s in ((2, 5), (1, 3), (3, 7))]
    axes = {0: "images"} if memory.length else {0: "images", 1: "length"}
    names = _memory_names(decoder)
    named = [_memory_axes(name, memory) for name in names]
    return Graph(
        role=MEMORY,
        module=_Memory(decoder, memory.projection).eval(),
        inputs=cases[0],
        outputs=names,
        dynamic={memory.input: axes},
        output_axes=dict(zip(names, named)),
        cases=cases[1:],
        tolerance=tolerance,
    )


def step_graph(decoder: KvDecoder, memory: Memory | None, tolerance: float, prefix: Prefix | None = None) -> Graph:
    """One call over R = B·k rows of W tokens against in-place caches and the memories of B images."""
    module = _Step(decoder, bool(memory and memory.masked), prefix is not None).eval()
    cases = [_case(decoder, memory, prefix, call) for call in _CALLS]
    rows, caches = {0: "rows"}, _names("", decoder.sizes.layers)
    dynamic: dict[str, Mapping[int, str]] = {"token": {0: "rows", 1: "width"}, "position": {0: "rows", 1: "width"}}
    dynamic |= dict.fromkeys(("new_length", "last_position"), rows)
    cache_axes = {0: "rows", 2: "positions"}
    dynamic |= dict.fromkeys(caches, cache_axes)
    if memory:
        dynamic |= {name: _memory_axes(name, memory) for name in _memory_names(decoder)}
    if memory and memory.masked:
        dynamic[MASK] = {0: "images", 1: "length"}
    if prefix:
        dynamic[prefix.input] = {0: "images"}
    presents = tuple(f"next_{name}" for name in caches)
    return Graph(
        role=STEP,
        module=module,
        inputs=cases[0],
        outputs=("logits", *presents),
        dynamic=dynamic,
        output_axes={"logits": rows} | dict.fromkeys(presents, cache_axes),
        cases=cases[1:],
        tolerance=tolerance,
        in_place=dict(zip(presents, caches)),
        filled="last_position",
    )


def states(decoder: KvDecoder, memory: Memory | None, prefix: Prefix | None = None) -> tuple[StateSpec, ...]:
    """The manifest's states: caches, what cross-attention reads, and an image's prefix."""
    caches = [StateSpec("kv", name, f"next_{name}") for name in _names("", decoder.sizes.layers)]
    read = [StateSpec("memory", name) for name in _memory_names(decoder)] if memory else []
    mask = [StateSpec("memory", MASK)] if memory and memory.masked else []
    first = [StateSpec("memory", prefix.input)] if prefix else []
    return (*caches, *read, *mask, *first)


def _names(prefix: str, layers: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{kind}.{layer}" for layer in range(layers) for kind in ("key", "value"))


def _memory_names(decoder: KvDecoder) -> tuple[str, ...]:
    """Of all layers, or of fewer where only some have cross-attention (CoCa)."""
    return _names("memory_", getattr(decoder.sizes, "memory_layers", decoder.sizes.layers))


def _memory_axes(name: str, memory: Memory) -> dict[int, str]:
    if memory.length:
        return {0: "images"}
    return {0: "images", 2 if "key" in name else 3: "length"}


def _flat(pairs: Sequence[KeysValues]) -> tuple[Tensor, ...]:
    return tuple(tensor for pair in pairs for tensor in (pair.keys, pair.values))


def _pairs(tensors: Sequence[Tensor]) -> list[KeysValues]:
    return [KeysValues(keys, values) for keys, values in zip(tensors[::2], tensors[1::2])]


def _case(decoder: KvDecoder, memory: Memory | None, prefix: Prefix | None, call: _Call) -> dict[str, Tensor]:
    """Random inputs of one call; where `most` is not 0, rows have different pasts, `most` of them the longest."""
    images, beams, new, most = call
    sizes, rows, width = decoder.sizes, images * beams, max(new)
    generator = torch.Generator().manual_seed(100 * rows + width)
    past = torch.tensor([max(most - row, 1) if most else 0 for row in range(rows)], dtype=torch.int32)
    lengths = torch.tensor(new, dtype=torch.int32).expand(rows).contiguous()
    case = {
        "token": torch.randint(sizes.vocabulary, (rows, width), generator=generator),
        "position": past.long()[:, None] + torch.arange(width),
        "new_length": lengths,
        "last_position": past + lengths - 1,
        "total_length": (past + lengths).amax().reshape(1),
    }
    if memory and memory.masked:
        case[MASK] = torch.zeros(images, 3 + images)
        case[MASK][1:, -1] = -1e9
    if prefix:
        case[prefix.input] = _normal(images, prefix.length, prefix.width, seed=images)
    positions = 5 + width
    for name in _names("", sizes.layers):
        case[name] = torch.randn(rows, sizes.heads, positions, sizes.head_width, generator=generator)
    if memory:
        encoded = _normal(images, memory.length or 3 + images, memory.width, seed=rows)
        with torch.no_grad():
            found = _Memory(decoder, memory.projection)(encoded)
        case |= dict(zip(_memory_names(decoder), cast("tuple[Tensor, ...]", found)))
    return case


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
