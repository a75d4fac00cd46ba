"""BLIP-2's and InstructBLIP's rungs of the parity ladder: pixels, sequences and probabilities against transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.embedding import DualEncoder
from vlrt.engines import Array, Sessions
from vlrt.errors import BundleError
from vlrt.manifest import DecodeSpec, ImageSpec, Measurement
from vlrt.text import PromptReader, TextCodec
from vlrt_export.blip2_checkpoint import Blip2
from vlrt_export.blip2_graphs import IDS, QUERY_IDS
from vlrt_export.generate_reference import SETTINGS, Expected, compare, expected_sequences, measurements
from vlrt_export.graph import Check, Graph
from vlrt_export.image_checks import measure_pixels, noise_picture
from vlrt_export.modules.llama import Llama
from vlrt_export.parity import difference
from vlrt_export.weight_layout import invert

Tolerance = Callable[[str, float], float]

_PICTURES = ((200, 150), (97, 401))
_QUESTIONS = ("how many dogs are there?", "what is this?")
_SENTENCES = ("a dog", "two children play in the snow near a red car")
_OPTIONS = {name: {**setting, "max_new_tokens": 10} for name, setting in SETTINGS.items()}


def reference_checks(
    model: Blip2, config: Mapping[str, Any], graphs: Sequence[Graph], spec: ImageSpec, tolerance: Tolerance
) -> Sequence[Check]:
    """The rungs that transformers is the reference for.

    Args:
        config: the parsed ``config.json``.
        graphs: of the model; when the reference has run, the memory of their weights is given back.
    """

    def pixels(_: Path) -> Iterator[Measurement]:
        yield measure_pixels(spec, tolerance("pixels", 1e-6), "BlipImageProcessor")

    def sequences(folder: Path) -> Iterator[Measurement]:
        expected = _expected_sequences(folder, model, transformers_blip2(model, config))
        # One after the other, as the weights of a large model do not fit into memory twice.
        for graph in graphs:
            graph.drop_weights()
        yield from _measure_sequences(folder, model, expected, tolerance("score", 1e-4))

    def matching(folder: Path) -> Iterator[Measurement]:
        yield from _measure_matching(folder, transformers_blip2(model, config), tolerance("match", 1e-4))

    stretches = (pixels,) if spec.resize == "stretch" else ()
    return (*stretches, matching if model.retrieval else sequences)


def class_name(model: Blip2) -> str:
    """Transformers' class of a model's kind."""
    if model.retrieval:
        return "Blip2ForImageTextRetrieval"
    return f"{'InstructBlip' if model.instructed else 'Blip2'}ForConditionalGeneration"


def transformers_blip2(model: Blip2, config: Mapping[str, Any]) -> Any:
    """Transformers' own class over views of the model's weights, so that they are in memory once.

    The names come back through the layouts that read them, so a weight in the wrong place still shows.

    Args:
        config: the parsed ``config.json``.
    """
    import transformers

    name = class_name(model)
    settings = getattr(transformers, "InstructBlipConfig" if model.instructed else "Blip2Config")(**config)
    with torch.device("meta"):
        reference = getattr(transformers, name)(settings)
    weights = {k: v for part, layout in model.layouts.items() for k, v in invert(part, layout).items()}
    reference.load_state_dict(weights, strict=False, assign=True)
    if not model.retrieval:
        reference.language_model.tie_weights()
        reference.tie_weights()
    for inside in reference.modules():
        for key, buffer in list(inside.named_buffers(recurse=False)):
            if buffer.is_meta and key == "position_ids":
                inside.register_buffer(key, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)
            if buffer.is_meta and key == "inv_freq":
                inside.register_buffer(key, inside.rope_init_fn(inside.config, "cpu")[0], persistent=False)
    lacking = [k for k, v in (*reference.named_parameters(), *reference.named_buffers()) if v.is_meta]
    if lacking:
        raise ValueError(f"the reference was given no `{lacking[0]}`")
    return reference.eval()


def reference_ids(model: Blip2, ids: Array) -> dict[str, torch.Tensor]:
    """A prompt's ids [N, L], padded at the end, behind the places of the image, as transformers' processors do it."""
    places = np.full((len(ids), model.sizes.qformer.queries), model.ids.image, np.int64)
    present = np.concatenate([np.ones_like(places), (ids != model.ids.pad).astype(np.int64)], 1)
    together = np.concatenate([places, ids], 1)
    return {"input_ids": torch.from_numpy(together), "attention_mask": torch.from_numpy(present)}


def _expected_sequences(folder: Path, model: Blip2, reference: Any) -> dict[str, list[list[Expected]]]:
    """What the reference answers, by setting."""
    bundle = Bundle.open(folder)
    spec, pixels = _decode_spec(bundle), torch.from_numpy(_pixels(bundle))
    given, _, prompts = _prompts(bundle, model)
    known = len(spec.start_ids) if model.encoder else len(prompts[0])

    if isinstance(model.decoder, Llama):
        # Vicuna's configurations name other ids than its tokenizer, which the bundle goes by.
        given |= {"eos_token_id": list(spec.end_ids), "pad_token_id": spec.pad_id}

    def run(**chosen: Any) -> Any:
        return reference.generate(pixel_values=pixels, **given, **chosen)

    return {
        name: expected_sequences(run, known, spec.end_ids, {"do_sample": False, **options})
        for name, options in _OPTIONS.items()
    }


def _measure_sequences(
    folder: Path, model: Blip2, expected: Mapping[str, list[list[Expected]]], tolerance: float
) -> Iterator[Measurement]:
    bundle = Bundle.open(folder)
    spec, pixels = _decode_spec(bundle), _pixels(bundle)
    _, arrays, prompts = _prompts(bundle, model)
    # The encoders' sessions end with the chain, before the decoder's begins.
    initial = Sessions(bundle).run_chain(spec.chain, {"pixels": pixels} | arrays)
    step = StepModel(spec, Sessions(bundle).get(spec.step))
    for name, options in _OPTIONS.items():
        found = generate(step, initial, DecodeOptions(**options), prompts=prompts)
        agreement = compare(found, expected[name])
        yield from measurements("answers", name, agreement, len(_PICTURES), class_name(model), tolerance)


def _decode_spec(bundle: Bundle) -> DecodeSpec:
    if bundle.manifest.decode is None:
        raise BundleError("the staged bundle does not decode")
    return bundle.manifest.decode


def _pixels(bundle: Bundle) -> Array:
    if bundle.manifest.image is None:
        raise BundleError("the staged bundle sees nothing")
    return pictures.preprocess([noise_picture(*size) for size in _PICTURES], bundle.manifest.image)


def _prompts(bundle: Bundle, model: Blip2) -> tuple[dict[str, Any], dict[str, Array], list[list[int]]]:
    """Questions as transformers takes them, as the chain's inputs, and as what the loop continues."""
    spec, answer = bundle.manifest.decode, bundle.manifest.answer
    if spec is None or answer is None:
        raise BundleError("the staged bundle answers nothing")
    # Behind the image transformers cannot pad without placing the padding in between: there all are asked the same.
    questions = _QUESTIONS if model.encoder else _QUESTIONS[:1] * len(_PICTURES)
    asked = [answer.template.replace("{}", question) for question in questions]
    reader = PromptReader(bundle, TextCodec.open(bundle))
    arrays, prompts = reader.arrays(asked), reader.prompts(spec.start_ids, asked)
    given = reference_ids(model, arrays[IDS] if model.encoder else np.asarray(prompts)[:, len(spec.start_ids) - 1 :])
    if model.instructed:
        given["qformer_input_ids"] = torch.from_numpy(arrays[QUERY_IDS])
        given["qformer_attention_mask"] = (given["qformer_input_ids"] != model.ids.query_pad).long()
    return given, arrays, prompts


def _measure_matching(folder: Path, reference: Any, limit: float) -> Iterator[Measurement]:
    import transformers

    bundle = Bundle.open(folder)
    spec, image = bundle.manifest.match, bundle.manifest.image
    if spec is None or image is None:
        raise BundleError("the staged bundle matches nothing")
    encoder = DualEncoder(bundle)
    pixels = pictures.preprocess([noise_picture(*size) for size in _PICTURES], image)
    ids = encoder.codec.encode(_SENTENCES)
    pairs = {image.input: pixels, IDS: np.concatenate([ids] * len(pixels))}
    probabilities = encoder.sessions.run_chain((*spec.image, spec.graph), pairs)[spec.output]
    reference.config.image_token_index = None
    words = torch.from_numpy(pairs[IDS])
    given = {"input_ids": words, "attention_mask": (words != encoder.codec.spec.pad_id).long()}
    given["pixel_values"] = torch.from_numpy(pixels.repeat(len(ids), 0))
    with torch.no_grad():
        judged = reference(**given, use_image_text_matching_head=True).logits_per_image.softmax(-1)[:, 1]
        # Of N·k images and N·k texts it gives every pair's score; each image's own texts are on the diagonal.
        cosines = reference(**given).logits_per_image.diagonal()
    ending = (limit, "transformers Blip2ForImageTextRetrieval", transformers.__version__)
    yield Measurement("matching", "max abs error", difference(probabilities, judged.numpy()), *ending)
    seen, said = encoder.images([noise_picture(*size) for size in _PICTURES]), encoder.token_ids(ids)
    ours = np.einsum("nqd,kd->nkq", seen, said).max(-1).ravel()
    yield Measurement("cosines", "max abs error", difference(ours, cosines.numpy()), *ending)
