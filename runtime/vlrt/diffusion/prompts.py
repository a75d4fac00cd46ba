"""Prompts as named arrays: every text encoder of a diffusion bundle, run once per prompt and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vlrt.bundle import Bundle
from vlrt.diffusion.prompt_cache import PromptCache, key_of
from vlrt.diffusion_sections import DiffusionSpec, PromptSpec
from vlrt.engines import Array, Sessions
from vlrt.errors import EngineError
from vlrt.text import TextCodec


class PromptEncoder:
    """Turns prompts into what the stages know of them.

    Args:
        bundle: one with a diffusion section.
        sessions: of its graphs.
        cache: where the outputs are kept between runs.
    """

    def __init__(self, bundle: Bundle, spec: DiffusionSpec, sessions: Sessions, cache: PromptCache) -> None:
        self.bundle, self.spec, self.sessions, self.cache = bundle, spec, sessions, cache
        self._codecs: dict[str, TextCodec] = {}

    @property
    def roles(self) -> tuple[str, ...]:
        """The text encoders' graphs."""
        return tuple(role for prompt in self.spec.prompts for role in prompt.chain)

    def encode(self, prompts: Sequence[str]) -> list[dict[str, Array]]:
        """What the stages know of each prompt, by name, [1, …] each.

        A prompt longer than the context is cut, with a warning that says which words were lost; an empty one is as in
        the references: start and end id alone.

        Raises:
            EngineError: an encoder gives values that are not finite.
        """
        known: list[dict[str, Array]] = [{} for _ in prompts]
        rows: dict[object, list[list[int]]] = {}
        for spec in self.spec.prompts:
            # Encoders that read the same ids warn once of a prompt that is too long.
            reading = (replace(spec.text, input=""), spec.lowercase)
            if reading not in rows:
                rows[reading] = self._rows(spec, prompts)
            for found, inputs in zip(known, _inputs(spec, self._codec(spec), rows[reading])):
                found |= self._run(spec, inputs)
        return known

    def _rows(self, spec: PromptSpec, prompts: Sequence[str]) -> list[list[int]]:
        codec = self._codec(spec)
        return [codec.prompt_row(prompt.lower().strip() if spec.lowercase else prompt) for prompt in prompts]

    def _run(self, spec: PromptSpec, inputs: dict[str, Array]) -> dict[str, Array]:
        key = key_of(self.bundle, spec.chain, self.sessions.options.device, inputs)
        found = self.cache.get(key)
        if found is None:
            found = self.sessions.run_chain(spec.chain, inputs)
            for name, array in found.items():
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    raise EngineError(f"the text encoder gives values of `{name}` that are not finite")
            self.cache.put(key, found)
        # The mask is a condition of some denoisers too.
        return {**inputs, **found}

    def _codec(self, spec: PromptSpec) -> TextCodec:
        name = spec.text.tokenizer
        if name not in self._codecs:
            self._codecs[name] = TextCodec.open(self.bundle, spec.text)
        return TextCodec(self._codecs[name].tokenizer, spec.text)


def _inputs(spec: PromptSpec, codec: TextCodec, rows: Sequence[Sequence[int]]) -> list[dict[str, Array]]:
    """Ids, and the mask where one is wanted, of each prompt: all of one length, for rows are stacked later."""
    found = []
    for row, ids in zip(rows, codec.pad(rows)):
        inputs: dict[str, Array] = {spec.text.input: ids[None]}
        if spec.mask:
            inputs[spec.mask] = (np.arange(len(ids)) < len(row)).astype(np.int64)[None]
        found.append(inputs)
    return found
