"""The graphs of an LSTM captioner and the manifest sections that describe them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vlrt.manifest import DecodeSpec, EmbedSpec, RecordSpec, StateSpec, TextSpec
from vlrt_export.captioner import Captioner
from vlrt_export.graph import Graph
from vlrt_export.modules.attention import HARD_SAMPLED
from vlrt_export.modules.caption_step import CaptionStep
from vlrt_export.modules.dual_encoder import DualEncoder
from vlrt_export.modules.show_and_tell import ShowAndTell, ShowAndTellStep
from vlrt_export.modules.show_attend_tell import ShowAttendTell
from vlrt_export.modules.tutorial_decoder import TutorialDecoder

ENCODER, MEMORY, STEP = "image_encoder", "caption_memory", "caption_step"
IMAGE_EMBEDDING, TEXT_ENCODER = "image_embedding", "text_encoder"

AttentiveDecoder = ShowAttendTell | TutorialDecoder

_TOKENIZER = "tokenizer.json"
_LONGEST = 1024
"""Tokens of a sequence: an LSTM has no positions to run out of, so this only bounds what a user may ask for."""

_ROWS = ((2, 3), (1, 1), (1, 5), (3, 2))
"""Images and rows per image of the step's cases."""


class _Memory(nn.Module):
    """A decoder's `memory` as a module of its own."""

    def __init__(self, decoder: AttentiveDecoder | ShowAndTell) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, regions: Tensor) -> tuple[Tensor, ...]:
        return self.decoder.memory(regions)


def encoder_graph(captioner: Captioner, tolerance: float) -> Graph:
    """Pixels [N, 3, H, W] to regions [N, S, C]."""
    height, width = captioner.image.size
    cases = [{"pixels": _normal(n, 3, height, width, seed=n)} for n in (2, 1)]
    return Graph(
        role=ENCODER,
        module=captioner.encoder,
        inputs=cases[0],
        outputs=("regions",),
        dynamic={"pixels": {0: "batch"}},
        output_axes={"regions": {0: "batch"}},
        cases=cases[1:],
        tolerance=tolerance,
    )


def memory_graph(captioner: Captioner, decoder: AttentiveDecoder | ShowAndTell, tolerance: float) -> Graph:
    """Regions [N, S, C] to all that the image contributes to the caption, computed once."""
    attentive = not isinstance(decoder, ShowAndTell)
    outputs = ("annotations", "attention_keys", "hidden", "cell") if attentive else ("hidden", "cell")
    cases = [{"regions": _regions(captioner, n)} for n in (2, 1, 3)]
    return Graph(
        role=MEMORY,
        module=_Memory(decoder).eval(),
        inputs=cases[0],
        outputs=outputs,
        dynamic={"regions": {0: "batch"}},
        output_axes={name: {0: "batch"} for name in outputs},
        cases=cases[1:],
        tolerance=tolerance,
    )


def attentive_step_graph(captioner: Captioner, decoder: AttentiveDecoder, tolerance: float) -> Graph:
    """One word further for R rows against the memories of B images."""
    cases = [_attentive_case(captioner, decoder, images, beams) for images, beams in _ROWS]
    rows, images = {0: "rows"}, {0: "images"}
    per_row = ("token", "hidden", "cell", "uniforms")
    outputs = ("logits", "next_hidden", "next_cell", "attention")
    return Graph(
        role=STEP,
        module=CaptionStep(decoder.step_weights(), decoder.mode).eval(),
        inputs=cases[0],
        outputs=outputs,
        dynamic={name: rows if name in per_row else images for name in cases[0]},
        output_axes=dict.fromkeys(outputs, rows),
        cases=cases[1:],
        tolerance=tolerance,
    )


def plain_step_graph(decoder: ShowAndTell, tolerance: float) -> Graph:
    """One word further for R rows of Show and Tell."""
    cases = [_recurrent_case(decoder, images * beams) for images, beams in _ROWS]
    outputs = ("logits", "next_hidden", "next_cell")
    return Graph(
        role=STEP,
        module=ShowAndTellStep(decoder).eval(),
        inputs=cases[0],
        outputs=outputs,
        dynamic={name: {0: "rows"} for name in cases[0]},
        output_axes={name: {0: "rows"} for name in outputs},
        cases=cases[1:],
        tolerance=tolerance,
    )


def dual_encoder_graphs(captioner: Captioner, model: DualEncoder, tolerance: float) -> list[Graph]:
    """Regions [N, S, C], and ids [N, L], to embeddings [N, D] in one space."""
    images = [{"regions": _regions(captioner, n)} for n in (2, 1, 3)]
    texts = [{"input_ids": _sentences(captioner, n, length)} for n, length in ((2, 7), (1, 2), (3, _context(model)))]
    return [
        Graph(
            role=IMAGE_EMBEDDING,
            module=model.image,
            inputs=images[0],
            outputs=("image_embedding",),
            dynamic={"regions": {0: "batch"}},
            output_axes={"image_embedding": {0: "batch"}},
            cases=images[1:],
            tolerance=tolerance,
        ),
        Graph(
            role=TEXT_ENCODER,
            module=model.text,
            inputs=texts[0],
            outputs=("text_embedding",),
            dynamic={"input_ids": {0: "batch", 1: "length"}},
            output_axes={"text_embedding": {0: "batch"}},
            cases=texts[1:],
            tolerance=tolerance,
        ),
    ]


def decode_spec(captioner: Captioner) -> DecodeSpec:
    """States, records and defaults of the captioner's loop."""
    states = [StateSpec("recurrent", name, f"next_{name}") for name in ("hidden", "cell")]
    records = []
    mode = getattr(captioner.decoder, "mode", None)
    if mode is not None:
        states += [StateSpec("memory", name) for name in ("annotations", "attention_keys")]
        records.append(RecordSpec("attention", captioner.grid))
    if mode == HARD_SAMPLED:
        states.append(StateSpec("noise", "uniforms"))
    words = captioner.words
    return DecodeSpec(
        chain=(ENCODER, MEMORY),
        step=STEP,
        vocabulary=words.size,
        start_ids=(words.start_id,),
        end_ids=(words.end_id,),
        pad_id=words.pad_id,
        states=tuple(states),
        records=tuple(records),
        defaults=dict(captioner.defaults),
        max_length=_LONGEST,
    )


def embed_spec(model: DualEncoder) -> EmbedSpec:
    """The dual encoder's chains and temperature."""
    return EmbedSpec(
        image=(ENCODER, IMAGE_EMBEDDING),
        text=(TEXT_ENCODER,),
        dimension=model.text.projection.out_features,
        scale=float(model.log_temperature.exp()),
    )


def text_spec(captioner: Captioner) -> TextSpec:
    """The tokenizer's file and ids; the context is the dual encoder's where there is one."""
    words, model = captioner.words, captioner.dual_encoder
    context = _context(model) if model else captioner.max_new_tokens + 1
    return TextSpec(_TOKENIZER, context, words.size, words.pad_id, words.start_id, words.end_id)


def bundle_files(captioner: Captioner) -> dict[str, bytes]:
    """Files beside the graphs."""
    return {_TOKENIZER: captioner.words.tokenizer}


def _attentive_case(captioner: Captioner, decoder: AttentiveDecoder, images: int, beams: int) -> Mapping[str, Tensor]:
    with torch.no_grad():
        annotations, keys, _, _ = decoder.memory(_regions(captioner, images))
    case = _recurrent_case(decoder, images * beams) | {"annotations": annotations, "attention_keys": keys}
    if decoder.mode == HARD_SAMPLED:
        case["uniforms"] = torch.rand(images * beams, 1, generator=torch.Generator().manual_seed(images))
    return case


def _recurrent_case(decoder: AttentiveDecoder | ShowAndTell, rows: int) -> dict[str, Tensor]:
    weights = decoder.embedding.weight
    cell = decoder.decode_step if isinstance(decoder, TutorialDecoder) else decoder.lstm
    token = torch.randint(weights.shape[0], (rows,), generator=torch.Generator().manual_seed(rows))
    hidden = _normal(rows, cell.hidden_size, seed=rows).tanh()
    return {"token": token, "hidden": hidden, "cell": _normal(rows, cell.hidden_size, seed=rows + 1)}


def _regions(captioner: Captioner, images: int) -> Tensor:
    height, width = captioner.grid
    return _normal(images, height * width, captioner.region_channels, seed=images).relu()


def _sentences(captioner: Captioner, sentences: int, length: int) -> Tensor:
    """Rows of words between start and end; all but the first are shorter and padded."""
    words = captioner.words
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(words.size, (sentences, length), generator=generator)
    ids[ids == words.end_id] = words.start_id
    ids[:, 0] = words.start_id
    for row in range(sentences):
        end = max(1, length - 1 - row)
        ids[row, end], ids[row, end + 1 :] = words.end_id, words.pad_id
    return ids


def _context(model: DualEncoder) -> int:
    return model.text.position.shape[0]


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
