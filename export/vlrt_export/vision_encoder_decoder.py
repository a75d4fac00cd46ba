"""A `VisionEncoderDecoderModel` taken apart: encoder, decoder, what lies between, and the ids with a meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlrt.errors import VlrtError
from vlrt_export import weight_layout
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.graph import Graph
from vlrt_export.kv_graphs import Memory
from vlrt_export.modules.dense import Dense
from vlrt_export.text_decoders import TextDecoder, load_decoder, random_decoder
from vlrt_export.vision_encoders import VisionEncoder, load_encoder, random_encoder
from vlrt_export.weight_layout import linear

ENCODER, STATES, PREFIX = "image_encoder", "image_states", "decoder."
PROJECTION = linear("0", "enc_to_dec_proj")
_IGNORED = r"attn\.(masked_)?bias$|attention\.(masked_)?bias$|position_ids$|^encoder\.pooler\.|mask_token$"


@dataclass(frozen=True)
class Ids:
    """The decoder's start, its ends, and padding."""

    start: int
    ends: tuple[int, ...]
    pad: int


@dataclass(frozen=True)
class VisionText:
    """Encoder, decoder, and the projection between them where their widths differ."""

    encoder: VisionEncoder
    decoder: TextDecoder
    projection: nn.Module | None
    ids: Ids
    config: Mapping[str, Any]

    @property
    def memory(self) -> Memory:
        """What the decoder's cross-attention reads."""
        return Memory(STATES, self.encoder.width, self.encoder.length, self.projection)


def load_model(checkpoint: Checkpoint) -> VisionText:
    """Reads a checkpoint in transformers' layout.

    Raises:
        VlrtError: another model; an unknown encoder or decoder; a tensor missing, left over, of another shape or dtype.
    """
    config, tensors, where = checkpoint.config, checkpoint.tensors, checkpoint.origin
    if config.get("model_type") != "vision-encoder-decoder":
        what = f"`{where}` is a `{config.get('model_type')}` model, expected `vision-encoder-decoder`"
        raise VlrtError(what, "give the folder that holds the weights and their config.json")
    encoder = load_encoder(config.get("encoder", {}), tensors, where)
    decoder = load_decoder(config.get("decoder", {}), tensors, PREFIX, where)
    width, layout = decoder.module.sizes.width, {}
    projection = None
    if _projects(config, encoder.width, width):
        layout = PROJECTION
        make = lambda: nn.Sequential(Dense(encoder.width, width))  # noqa: E731
        projection = weight_layout.build(make, layout, tensors, where)
    known = weight_layout.names_of(decoder.layout, layout, encoder.layout or {})
    known |= {name for name in tensors if name.startswith("encoder.") and encoder.layout is None}
    known |= {f"{PREFIX}{name}" for name in _TIED}
    weight_layout.check_surplus(tensors, known, _IGNORED, where)
    settings = [checkpoint.json("generation_config.json"), config, config.get("decoder", {})]
    return VisionText(encoder, decoder, projection, _ids(settings, where), config)


_TIED = (
    "lm_head.weight",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
    "lm_head.bias",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "cls.predictions.bias",
)
"""Tensors that a checkpoint may hold beside those they are tied to."""


def random_model(options: Mapping[str, Any], seed: int) -> VisionText:
    """A model of the zoo's configurations (ViT-B/16 and GPT-2 where it names none) with random weights of `seed`."""
    parts = {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}}
    config = {name: {**part, **(options.get(name) or {})} for name, part in parts.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = random_encoder(config["encoder"])
        decoder = random_decoder(config["decoder"], PREFIX)
        width = decoder.module.sizes.width
        projection = None
        if _projects(config, encoder.width, width):
            projection = nn.Sequential(Dense(encoder.width, width)).eval().requires_grad_(False)
    last = decoder.module.sizes.vocabulary - 1
    given: dict[str, Any] = {"decoder_start_token_id": last, "eos_token_id": last, "pad_token_id": last}
    ids = _ids([config["decoder"], given], "the zoo's entry")
    return VisionText(encoder, decoder, projection, ids, config | {"model_type": "vision-encoder-decoder"})


def encoder_graph(encoder: VisionEncoder, tolerance: float) -> Graph:
    """Pixels [N, 3, H, W] to image states [N, S, M]."""
    generator = torch.Generator().manual_seed(0)
    cases = [{"pixels": torch.randn(n, 3, *encoder.image_size, generator=generator)} for n in (2, 1)]
    return Graph(
        role=ENCODER,
        module=encoder.module,
        inputs=cases[0],
        outputs=(STATES,),
        dynamic={"pixels": {0: "batch"}},
        output_axes={STATES: {0: "batch"}},
        cases=cases[1:],
        tolerance=tolerance,
    )


def _projects(config: Mapping[str, Any], encoder: int, decoder: int) -> bool:
    given = config.get("decoder", {}).get("cross_attention_hidden_size")
    if given is not None and given != decoder:
        what = f"the decoder's `cross_attention_hidden_size` is {given}, its width {decoder}"
        raise VlrtError(what, "report this with the model")
    return encoder != decoder


def _ids(settings: list[Mapping[str, Any]], where: str) -> Ids:
    """Ids as `generate` finds them: in the generation configuration, else the model's, else the decoder's."""

    def find(*names: str) -> Any:
        return next((s[name] for name in names for s in settings if s.get(name) is not None), None)

    start, end, pad = find("decoder_start_token_id", "bos_token_id"), find("eos_token_id"), find("pad_token_id")
    if start is None or end is None:
        missing = "decoder_start_token_id" if start is None else "eos_token_id"
        raise VlrtError(f"the configuration of `{where}` lacks `{missing}`", "add it to generation_config.json")
    ends = tuple(int(i) for i in end) if isinstance(end, (list, tuple)) else (int(end),)
    return Ids(int(start), ends, ends[0] if pad is None else int(pad))
