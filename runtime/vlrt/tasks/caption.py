"""Captioning: a photograph in, sentences out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlrt.engines import Array
from vlrt.errors import BundleError, UsageError
from vlrt.image_decoder import ImageDecoder

if TYPE_CHECKING:
    from vlrt.decode import Hypothesis
    from vlrt.image import ImageLike


@dataclass(frozen=True)
class Caption:
    """One caption of one photograph.

    Args:
        text: the sentence, with the prompt that it begins with.
        score: what the search ranks by: the sum of log-probabilities, divided as the length penalty says.
        tokens: generated ids, the end id included where the sentence ended.
        words: each token's own text, without the end where that is no text.
        attention: where the model looked at each of `words`: float32 [words, rows, columns], each map sums to one;
            `None` for models that do not attend.
        alternatives: the further hypotheses of the search, best first (only on the best one).
        timings: seconds by stage for the batch this caption came from: ``read``, ``encode``, ``decode``.
    """

    text: str
    score: float
    tokens: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    attention: NDArray[np.float32] | None = None
    alternatives: tuple[Caption, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)


class Captioner(ImageDecoder):
    """Captions photographs with the captioner of a bundle.

    Args:
        bundle: one that serves ``caption``.
        options: device and threads.
    """

    task = "caption"

    def __call__(self, photograph: ImageLike, *, prompt: str = "", **options: Any) -> Caption:
        """The best caption of a photograph.

        Args:
            photograph: path, bytes, Pillow image or array.
            prompt: how the caption begins, e.g. ``a photo of``.
            options: fields of `vlrt.decode.DecodeOptions` that differ from the bundle's defaults, e.g. ``num_beams=5``.

        Raises:
            ImageError: not a readable image.
            UsageError: an option that cannot be meant, or a prompt longer than the decoder's longest sequence.
        """
        return self.batch([photograph], prompt=prompt, **options)[0]

    def batch(
        self,
        photographs: Sequence[ImageLike],
        *,
        prompt: str | Sequence[str] = "",
        on_token: Callable[[int, int], None] | None = None,
        should_cancel: Callable[[], bool] | None = None,
        **options: Any,
    ) -> list[Caption]:
        """The best caption of each photograph, decoded together.

        Args:
            prompt: how the captions begin, for all or for each photograph.
            on_token: told (index of the photograph, token id) as soon as a token is final.
            should_cancel: asked before every step.
        """
        chosen = self.options(**options)
        if not photographs:
            return []
        from vlrt import image as pictures  # here, while the graphs load
        from vlrt.decode import generate

        started = time.perf_counter()
        arrays, prompts = self._read(prompt, len(photographs))
        loaded = [pictures.load(photograph) for photograph in photographs]
        arrays[self.image_spec.input] = pictures.preprocess(loaded, self.image_spec)
        read = time.perf_counter()
        initial = self.sessions.run_chain(self.spec.chain, arrays)
        encoded = time.perf_counter()
        found = generate(
            self.step_model, initial, chosen, prompts=prompts, on_token=on_token, should_cancel=should_cancel
        )
        timings = {"read": read - started, "encode": encoded - read, "decode": time.perf_counter() - encoded}
        return [self._best(hypotheses, begun, timings) for hypotheses, begun in zip(found, prompts)]

    def _read(self, given: str | Sequence[str], photographs: int) -> tuple[dict[str, Array], list[list[int]]]:
        """The prompts as inputs of the chain, and as what the decoder continues."""
        texts = [given] * photographs if isinstance(given, str) else list(given)
        if len(texts) != photographs:
            raise UsageError(f"there are {len(texts)} prompts for {photographs} photographs", "give one for each")
        return {**self.prompt_reader.arrays(texts)}, self.prompt_reader.prompts(self.spec.start_ids, texts)

    def _best(self, hypotheses: Sequence[Hypothesis], prompt: Sequence[int], timings: dict[str, float]) -> Caption:
        if not hypotheses:
            what = f"the model of `{self.bundle.name}` gives no word a probability, so there is no caption"
            raise BundleError(what, "relax the options that forbid words, or export the bundle again")
        begun = prompt[len(self.spec.start_ids) :]
        alternatives = tuple(self._caption(h, begun) for h in hypotheses[1:])
        return self._caption(hypotheses[0], begun, alternatives=alternatives, timings=timings)

    def _caption(self, hypothesis: Hypothesis, begun: Sequence[int], **more: Any) -> Caption:
        ids = [int(i) for i in hypothesis.tokens]
        ended = bool(ids) and ids[-1] in self.spec.end_ids and not self.spec.end_is_text
        spoken = ids[:-1] if ended else ids
        return Caption(
            text=self.codec.decode([*begun, *spoken]),
            score=float(hypothesis.score),
            tokens=tuple(ids),
            words=tuple(self.codec.words(spoken)),
            attention=self._attention(hypothesis, len(spoken)),
            **more,
        )

    def _attention(self, hypothesis: Hypothesis, words: int) -> NDArray[np.float32] | None:
        for kept in self.spec.records:
            if kept.grid is not None:
                maps = np.asarray(hypothesis.records[kept.output][:words], dtype=np.float32)
                return maps.reshape(words, *kept.grid)
        return None
