"""The rungs of the parity ladder that need no torch: the bundle's graphs on fixed inputs against stored goldens.

What a bundle gives on one synthetic picture and a few sentences is written at export, with torch's modules in place
of the graphs; `verify` computes it again on the machine at hand.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.codec import PictureCodec
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.embedding import DualEncoder
from vlrt.engines import Array, EngineOptions, Sessions
from vlrt.errors import BundleError
from vlrt.manifest import DecodeSpec, Measurement, TextSpec
from vlrt.text import PromptReader, TextCodec, TextTruncatedWarning

RunChain = Callable[[Iterable[str], Mapping[str, Array]], dict[str, Array]]

SENTENCES = ("a dog on the grass", "two children play in the snow near a red car")
QUESTION = "how many dogs are there?"
_KEPT = 48
"""Values of a tensor that a golden keeps, evenly spaced."""

_SCORE_LIMIT = 1e-3
"""On the scores of hypotheses, in nats."""

_CODE_LIMIT = 0.2
"""On a picture's codes: one of six may be a tie that another processor's rounding decides."""

_VALUE_LIMIT = 2e-3
"""On stored values, relative to the tensor's standard deviation: other processors round and fuse otherwise."""

_LEVELS_LIMIT = 2.0
"""On painted pixels: a value between two levels may be rounded to either."""


_REDUCED = {
    "max error / std": 0.25,
    "max score error": 0.5,
    "share that differs": 0.3,
    "max error, levels of 255": 32.0,
    "missing on one side": 0.0,
    "shape differs": 0.0,
}
"""By metric, of bundles in reduced precision. Where a processor's rounding moves one activation to the next of its few
levels, what follows moves too: a change of one part in ten million of the pixels moved a vision transformer's outputs
by 0.08 standard deviations at most."""


def synthetic_picture() -> Image.Image:
    """A picture made of formulas, 200x150: gradients, a disc and stripes; the same on every machine."""
    y, x = np.mgrid[0:150, 0:200]
    red = (x * 255) // 199
    green = (y * 255) // 149
    blue = np.where((x // 8 + y // 16) % 2 == 0, 200, 40)
    disc = (x - 120) ** 2 + (y - 70) ** 2 < 40**2
    channels = [np.where(disc, value, channel) for value, channel in zip((230, 60, 30), (red, green, blue))]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def observe(bundle: Bundle, run_chain: RunChain, sessions: Sessions) -> dict[str, Any]:
    """What the bundle gives on the fixed inputs, as JSON values.

    Args:
        run_chain: runs graphs by role; the exporter passes torch's modules here.
        sessions: for the decoder's step graph.
    """
    found: dict[str, Any] = {}
    described = bundle.manifest
    chains: list[tuple[str, ...]] = []
    if described.decode:
        chains.append(described.decode.chain)
    if described.embed:
        chains.append(described.embed.image)
    if described.match:
        chains.append(described.match.image)
    if described.image and chains:
        pixels = pictures.preprocess([synthetic_picture()], described.image)
        found["pixels"] = fingerprint(pixels)
        asked = _question(bundle)
        both = DualEncoder(bundle, sessions=sessions).image_inputs(pixels) if described.embed else {}
        for chain in chains:
            outputs = run_chain(chain, {**both, described.image.input: pixels, **asked})
            found |= {f"image.{name}": fingerprint(value) for name, value in outputs.items()}
            if described.decode and chain == described.decode.chain:
                found["decode"] = _decode(bundle, outputs, sessions)
        if described.match:
            found["match"] = fingerprint(_match(bundle, run_chain, pixels))
    if described.diffusion:
        found |= _painted(bundle, sessions.options)
    if described.embed and described.text:
        ids = TextCodec.open(bundle).encode(SENTENCES)
        found["ids"] = ids.tolist()
        outputs = run_chain(described.embed.text, DualEncoder(bundle, sessions=sessions).text_inputs(ids))
        found |= {f"text.{name}": fingerprint(value) for name, value in outputs.items()}
    if described.codec:
        found |= _codec(bundle, run_chain)
    if described.image_tokens and described.text and described.decode:
        found |= _drawing(bundle, described.text, described.decode, run_chain, sessions)
    return found


def _drawing(
    bundle: Bundle, text: TextSpec, spec: DecodeSpec, run_chain: RunChain, sessions: Sessions
) -> dict[str, Any]:
    """What an encoder makes of a sentence and of none, and the first codes that a decoder draws of it."""
    codec = TextCodec.open(bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextTruncatedWarning)  # a sentence of ours may well be too long for a model
        ids = codec.pad([codec.prompt_row(SENTENCES[1]), codec.prompt_row("")])
    outputs = run_chain(spec.chain, {text.input: ids})
    found: dict[str, Any] = {"ids": ids.tolist()}
    found |= {f"text.{name}": fingerprint(value) for name, value in outputs.items()}
    options = DecodeOptions(max_new_tokens=8, guidance_scale=2.0)
    asked, nothing = ({name: value[lane : lane + 1] for name, value in outputs.items()} for lane in (0, 1))
    drawn = generate(StepModel.open(spec, sessions.get), asked, options, unconditional=nothing)[0]
    return found | {"decode": [{"tokens": list(map(int, h.tokens)), "score": float(h.score)} for h in drawn]}


def _codec(bundle: Bundle, run_chain: RunChain) -> dict[str, Any]:
    """The codes of a small synthetic picture, and the picture of codes that are simply counted."""
    codec = PictureCodec(bundle)
    spec = codec.spec
    rows, columns = spec.grid if spec.grid and spec.fixed else (2, 3)
    found: dict[str, Any] = {}
    if spec.tokenizer:
        small = codec.fit(synthetic_picture(), (rows * spec.factor, columns * spec.factor))
        outputs = run_chain((spec.tokenizer,), {spec.pixels: codec.pixels([small])})
        found["codes"] = outputs[codec.output(spec.tokenizer)].tolist()
    if spec.detokenizer:
        counted = np.arange(rows * columns, dtype=np.int64).reshape(1, rows, columns) % spec.codebook
        outputs = run_chain((spec.detokenizer,), {spec.tokens: counted})
        found["codec.pixels"] = fingerprint(outputs[codec.output(spec.detokenizer)])
    return found


def _painted(bundle: Bundle, options: EngineOptions) -> dict[str, Any]:
    """As in decoding, the loop runs on the graphs, which were each proven before."""
    from vlrt.verify_painting import paint_goldens

    painted = paint_goldens(bundle, options, SENTENCES[0], synthetic_picture())
    return {name: fingerprint(value) for name, value in painted.items()}


def _question(bundle: Bundle) -> dict[str, Array]:
    """The inputs of a chain that also reads a question; none where it does not."""
    answer = bundle.manifest.answer
    if answer is None:
        return {}
    asked = answer.template.replace("{}", QUESTION)
    return {**PromptReader(bundle, TextCodec.open(bundle)).arrays([asked])}


def _match(bundle: Bundle, run_chain: RunChain, pixels: Array) -> Array:
    spec, text, image = bundle.manifest.match, bundle.manifest.text, bundle.manifest.image
    if spec is None or text is None or image is None:
        raise BundleError(f"the bundle `{bundle.name}` matches nothing")
    arrays = {image.input: pixels, text.input: TextCodec.open(bundle).encode(SENTENCES)}
    return run_chain((*spec.image, spec.graph), arrays)[spec.output]


def _decode(bundle: Bundle, initial: Mapping[str, Array], sessions: Sessions) -> list[dict[str, Any]]:
    spec = bundle.manifest.decode
    if spec is None:
        raise BundleError(f"the bundle `{bundle.name}` decodes nothing")
    options = DecodeOptions.from_manifest(spec.defaults)
    hypotheses = generate(StepModel.open(spec, sessions.get), initial, options)[0]
    return [{"tokens": list(map(int, h.tokens)), "score": float(h.score)} for h in hypotheses]


def fingerprint(array: Array) -> dict[str, Any]:
    """Shape, mean, standard deviation and some evenly spaced values of a tensor."""
    flat: NDArray[np.float64] = array.astype(np.float64).ravel()
    places = np.linspace(0, flat.size - 1, min(_KEPT, flat.size)).astype(np.int64)
    values = [round(float(v), 6) for v in flat[places]]
    return {"shape": list(array.shape), "mean": float(flat.mean()), "std": float(flat.std()), "values": values}


def verify(bundle: Bundle, options: EngineOptions | None = None) -> Iterator[Measurement]:
    """Computes the bundle's goldens again and measures how far they are from the stored ones.

    Raises:
        BundleError: the bundle has no goldens, or they are damaged.
    """
    name = bundle.manifest.goldens
    if bundle.is_foreign:
        what = f"others exported `{bundle.name}`: it has no hashes and no goldens to verify"
        raise BundleError(what, "`vlrt export --via optimum` writes a bundle that has them")
    if not name:
        raise BundleError(f"the bundle `{bundle.name}` has no goldens to verify", "export it again")
    try:
        stored = dict(json.loads(bundle.file(name).read_text("utf-8")))
    except (ValueError, TypeError, RecursionError):
        raise BundleError(f"`{name}` holds no goldens", "export the bundle again") from None
    sessions = Sessions(bundle, options)
    found = observe(bundle, sessions.run_chain, sessions)
    reduced = any(graph.precision != "fp32" for graph in bundle.manifest.graphs.values())
    for key in {**found, **stored}:
        try:
            measured = _compare(key, stored.get(key), found.get(key))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BundleError(f"`{key}` in `{name}` is no golden", "export the bundle again") from None
        given = key in ("pixels", "ids")  # not from a graph
        yield (
            measured
            if given or not reduced
            else replace(measured, limit=max(measured.limit, _REDUCED[measured.metric]))
        )


def _compare(key: str, expected: Any, found: Any) -> Measurement:
    if expected is None or found is None:
        return Measurement(key, "missing on one side", 1.0, 0.0, "golden", "")
    if key == "ids":
        wrong = float(expected != found)
        return Measurement("token ids", "rows that differ", wrong, 0.0, "golden", "")
    if key == "codes":
        wrong = float((np.asarray(expected) != np.asarray(found)).mean()) if len(expected) == len(found) else 1.0
        return Measurement("codes", "share that differs", wrong, _CODE_LIMIT, "golden", "")
    if key == "decode":
        return _compare_hypotheses(expected, found)
    if found["shape"] != expected["shape"]:
        return Measurement(key, "shape differs", 1.0, 0.0, "golden", "")
    difference = np.abs(np.subtract(found["values"], expected["values"])).max()
    if key == "picture":
        return Measurement(key, "max error, levels of 255", float(difference), _LEVELS_LIMIT, "golden", "")
    gap = difference / max(expected["std"], 1e-6)
    return Measurement(key, "max error / std", float(gap), _VALUE_LIMIT, "golden", "")


def _compare_hypotheses(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> Measurement:
    """Scores rank by rank. Other tokens at equal scores are a tie that another processor's rounding decided."""
    same = [h["tokens"] for h in expected] == [h["tokens"] for h in found]
    gap = max((abs(a["score"] - b["score"]) for a, b in zip(expected, found)), default=0.0)
    if len(expected) != len(found):
        gap = float("inf")
    note = "" if same else "other tokens at a tie"
    return Measurement("decode", "max score error", gap, _SCORE_LIMIT, "golden", "", note)
