"""The gate for models that compare photographs with sentences: cosines, retrieval, and matching probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder, Vectors
from vlrt.engines import Array
from vlrt.manifest import Measurement
from vlrt.text import TextCodec
from vlrt_export.calibration import Calibration
from vlrt_export.gate_metrics import Limits, reference, register
from vlrt_export.trial import TrialSessions

_PAIRED = 8
"""Photographs that every sentence is matched with."""


@dataclass(frozen=True)
class Embedded:
    """Vectors of the held-out photographs [N, Q·D], of the sentences [T, D], and their best cosines [N, T]."""

    images: Vectors
    texts: Vectors
    cosines: Vectors


@register("embed")
class Embedding:
    """A space of photographs and sentences."""

    def observe(
        self, bundle: Bundle, sessions: TrialSessions, data: Calibration, expected: Embedded | None
    ) -> Embedded:
        encoder = DualEncoder(bundle, sessions=sessions)
        images = np.concatenate([encoder.images([photograph]) for photograph in data.held_out])
        texts = np.concatenate([encoder.texts([sentence]) for sentence in data.sentences])
        several = images if images.ndim == 3 else images[:, None]
        return Embedded(images.reshape(len(images), -1), texts, (several @ texts.T).max(1))

    def compare(self, expected: Embedded, found: Embedded, data: Calibration, limits: Limits) -> Iterator[Measurement]:
        what, version, note = reference(data)
        for name, ours, theirs in (("images", found.images, expected.images), ("texts", found.texts, expected.texts)):
            ending = (limits["cosine"], what, version, note if name == "images" else "")
            cosine = least_cosine(ours, theirs)
            yield Measurement(f"gate, {name}", "least cosine with fp32", cosine, *ending, better="higher")
        share, told = retrieval_agreement(found.cosines, expected.cosines)
        shown = f"{told} of {sum(expected.cosines.shape)} choices that fp32 makes by a clear margin; {note}"
        ending = (limits["retrieval_agreement"], what, version, shown)
        metric = "share of first places alike"
        yield Measurement("gate, retrieval", metric, round(share, 4), *ending, better="higher")


@register("match")
class Matching:
    """A graph that reads a photograph and a sentence together."""

    def observe(self, bundle: Bundle, sessions: TrialSessions, data: Calibration, expected: Array | None) -> Array:
        spec, text, image = bundle.manifest.match, bundle.manifest.text, bundle.manifest.image
        if spec is None or text is None or image is None:
            raise ValueError("a bundle that matches has text and image sections")
        ids = TextCodec.open(bundle).encode(data.sentences[:_PAIRED])
        found = []
        for photograph in data.held_out[:_PAIRED]:
            arrays: dict[str, Array] = {image.input: pictures.preprocess([photograph], image), text.input: ids}
            found.append(sessions.run_chain((*spec.image, spec.graph), arrays)[spec.output])
        return np.stack(found)

    def compare(self, expected: Array, found: Array, data: Calibration, limits: Limits) -> Iterator[Measurement]:
        what, version, note = reference(data)
        gap = float(np.abs(found - expected).max())
        yield Measurement(
            "gate, matching", "largest change of a probability", gap, limits["match"], what, version, note
        )


def least_cosine(found: Vectors, expected: Vectors) -> float:
    """The smallest cosine of rows."""
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return float(((found * expected).sum(-1) / lengths).min())


def retrieval_agreement(found: Vectors, expected: Vectors) -> tuple[float, int]:
    """Share of rows and columns whose largest cosine is at the same place, of those where fp32's choice is clear.

    Clear is a margin to the second of more than twice the root mean square change of cosines around their row's, or
    column's, mean. Below it the choice says nothing of either.

    Returns:
        The share, one where no choice is clear, and how many are.
    """
    agreed = told = 0
    for ours, theirs in ((found, expected), (found.T, expected.T)):
        if theirs.shape[1] < 2:
            continue
        noise = np.sqrt(np.mean(np.square(_centred(ours) - _centred(theirs))))
        ranked = np.sort(theirs, axis=1)
        clear = ranked[:, -1] - ranked[:, -2] > 2 * noise
        agreed += int((ours.argmax(1) == theirs.argmax(1))[clear].sum())
        told += int(clear.sum())
    return (agreed / told if told else 1.0), told


def _centred(cosines: Vectors) -> Vectors:
    means: Vectors = cosines.mean(axis=1, keepdims=True)
    return cosines - means
