"""Zero-shot classification: which of some labels a photograph shows, without training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder, Vectors
from vlrt.engines import EngineOptions
from vlrt.errors import UsageError
from vlrt.image import ImageLike
from vlrt.prompt_bank import PromptBank, PromptRequest, encode_labels, open_bank
from vlrt.prompts import LearnedPrompts, split_labels


@dataclass(frozen=True)
class Choice:
    """One label for one photograph.

    Args:
        label: as given.
        probability: softmax of scale · cosine over all labels given together.
        score: cosine of the two embeddings, −1 to 1.
    """

    label: str
    probability: float
    score: float


@dataclass(frozen=True)
class Classification:
    """The labels of one photograph, likeliest first; equal ones in the order given."""

    choices: tuple[Choice, ...]

    @property
    def label(self) -> str:
        """The likeliest label."""
        return self.choices[0].label

    @property
    def probability(self) -> float:
        """That label's probability."""
        return self.choices[0].probability


class Classifier:
    """Chooses among labels with the dual encoder of a bundle.

    Args:
        bundle: one that serves ``classify``.
        options: device and threads.

    Source: Radford et al. (arXiv 2103.00020), section 3.1.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        bundle.require("classify")
        self.encoder = DualEncoder(bundle, options)
        self.encoder.sessions.prepare(self.encoder.spec.image)

    def bank(
        self,
        labels: str | Iterable[str],
        templates: Iterable[str] | None = None,
        prompts: LearnedPrompts | None = None,
        *,
        cache: bool = True,
    ) -> PromptBank:
        """Encodes labels once; the result can be given to calls in the labels' place.

        Args:
            labels: at least two; one string separates them by commas.
            templates: sentences with ``{}`` for the label; the bundle's own where `None`.
            prompts: learned prompts instead of templates.
            cache: keep the embeddings in the user's cache folder, and take them from there.

        Raises:
            UsageError: fewer than two labels, one twice, a template without ``{}``, templates beside prompts.
            VlrtError: prompts that do not fit the bundle or the labels.
        """
        names = split_labels(labels) if isinstance(labels, str) else tuple(labels)
        own = self.encoder.spec.templates if prompts is None else ()
        chosen = tuple(templates) if templates is not None else own
        request = PromptRequest(names, chosen, prompts)
        if cache:
            return open_bank(self.encoder, request)
        return PromptBank(request.labels, encode_labels(self.encoder, request))

    def __call__(
        self, photograph: ImageLike, labels: str | Iterable[str] | PromptBank, top: int | None = None
    ) -> Classification:
        """The labels of one photograph.

        Args:
            photograph: path, bytes, Pillow image or array.
            labels: labels, or a bank of them.
            top: how many to return; all where `None`.

        Raises:
            ImageError: not a readable image.
            UsageError: labels that cannot be meant, or `top` below one.
        """
        return self.batch([photograph], labels, top)[0]

    def batch(
        self, photographs: Sequence[ImageLike], labels: str | Iterable[str] | PromptBank, top: int | None = None
    ) -> list[Classification]:
        """The labels of each photograph, encoded together."""
        if top is not None and top < 1:
            raise UsageError(f"`top` is {top}, expected at least 1")
        bank = labels if isinstance(labels, PromptBank) else self.bank(labels)
        cosines = self.encoder.images(photographs) @ bank.vectors.T
        return [self._classification(row, bank.labels, top) for row in cosines]

    def _classification(self, cosines: Vectors, labels: Sequence[str], top: int | None) -> Classification:
        logits = self.encoder.spec.scale * cosines.astype(np.float64)
        odds = np.exp(logits - logits.max())
        shares = odds / odds.sum()
        order = np.argsort(-cosines, kind="stable")[:top]
        return Classification(tuple(Choice(labels[i], float(shares[i]), float(cosines[i])) for i in order))
