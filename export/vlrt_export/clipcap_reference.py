"""ClipCap's rungs of the parity ladder: features, prefix and sequences, each against plain torch or transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.engines import Sessions
from vlrt.manifest import Measurement
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.clip_reference import transformers_clip
from vlrt_export.clipcap_checkpoint import ClipCap
from vlrt_export.generate_reference import measure_sequences
from vlrt_export.graph import Check
from vlrt_export.image_checks import noise_picture
from vlrt_export.modules.clip import Clip
from vlrt_export.modules.clip_vit import VisionTransformerSizes
from vlrt_export.modules.clipcap_mapper import HEADS
from vlrt_export.parity import difference

Tolerance = Callable[[str, float], float]

_PICTURES = ((200, 150), (97, 401))


def reference_checks(
    model: ClipCap, clip: Clip, clip_checkpoint: Checkpoint | None, normalise: bool, tolerance: Tolerance
) -> Sequence[Check]:
    """The rungs; features of residual towers are proven by the tests of CLIP, as transformers has none."""

    def features(folder: Path) -> Iterator[Measurement]:
        import transformers

        pixels, found = _run(folder, "image_features")
        with torch.no_grad():
            expected = transformers_clip(clip, clip_checkpoint).get_image_features(pixels)
        expected = expected / expected.norm(dim=-1, keepdim=True) if normalise else expected
        gap, limit = difference(found, expected.numpy()), tolerance("features", 1e-3)
        yield Measurement("features", "max abs error", gap, limit, "transformers CLIPModel", transformers.__version__)

    def prefix(folder: Path) -> Iterator[Measurement]:
        weights = model.weights()
        _, found = _run(folder, "image_prefix")
        _, seen = _run(folder, "image_features")
        expected = plain_prefix(weights, torch.from_numpy(seen)).numpy()
        limit = tolerance("graph", 1e-4)
        reference = "the paper's mapper, written out in torch"
        yield Measurement("prefix", "max abs error", difference(found, expected), limit, reference, torch.__version__)

    def sequences(folder: Path) -> Iterator[Measurement]:
        reference = transformers_gpt2(model)
        weights = model.weights()
        prefixes: dict[bytes, Tensor] = {}  # of the pictures, which are the same in every setting

        def generate(given: dict[str, Tensor], **options: Any) -> Any:
            pixels = given["pixels"]
            key = pixels.numpy().tobytes()
            if key not in prefixes:
                _, seen = _run(folder, "image_features", pixels)
                prefixes[key] = plain_prefix(weights, torch.from_numpy(seen))
            return generate_behind(reference, prefixes[key], end_ids, **options)

        spec = Bundle.open(folder).manifest.decode
        end_ids = spec.end_ids if spec else ()
        yield from measure_sequences(folder, generate, "captions", "GPT2LMHeadModel", tolerance("score", 1e-4))

    vit = isinstance(clip.sizes.vision, VisionTransformerSizes)
    return (*((features,) if vit else ()), prefix, sequences)


def generate_behind(reference: Any, embeds: Tensor, end_ids: Sequence[int], **options: Any) -> Any:
    """Transformers' `generate` after a prefix of embeddings [N, P, C]; as many ids lead its sequences as ours have."""
    places = torch.zeros(embeds.shape[:2], dtype=torch.long)
    ids = {"eos_token_id": list(end_ids), "pad_token_id": end_ids[0]}
    attended = {"attention_mask": torch.ones_like(places)}
    found = reference.generate(inputs_embeds=embeds, **attended, **ids, **options)
    returned = len(found.sequences) // len(embeds)
    found.sequences = torch.cat([places.repeat_interleave(returned, 0), found.sequences], 1)
    return found


def transformers_gpt2(model: ClipCap) -> Any:
    """Transformers' own language model with the checkpoint's weights."""
    import transformers

    sizes = model.decoder.sizes
    config = transformers.GPT2Config(
        vocab_size=sizes.vocabulary,
        n_positions=sizes.positions,
        n_embd=sizes.width,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        n_inner=sizes.feed_forward,
        bos_token_id=None,
        eos_token_id=None,
    )
    reference = transformers.GPT2LMHeadModel(config)
    weights = {k.removeprefix("gpt."): v for k, v in model.weights().items() if k.startswith("gpt.")}
    weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])
    reference.load_state_dict(weights)
    return reference.eval()


def plain_prefix(weights: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """A mapper's result [N, P, C] from its state dict alone, written out as the paper describes it."""
    width = weights["gpt.transformer.wte.weight"].shape[1]
    at = {name.removeprefix("clip_project."): tensor for name, tensor in weights.items() if "clip_project." in name}
    if "model.0.weight" in at:
        hidden = torch.tanh(F.linear(features, at["model.0.weight"], at["model.0.bias"]))
        return F.linear(hidden, at["model.2.weight"], at["model.2.bias"]).view(len(features), -1, width)
    spread = F.linear(features, at["linear.weight"], at["linear.bias"]).view(len(features), -1, width)
    x = torch.cat([spread, at["prefix_const"][None].repeat(len(features), 1, 1)], 1)
    number = 0
    while f"transformer.layers.{number}.norm1.weight" in at:
        x = _plain_layer({k.split(".", 3)[3]: v for k, v in at.items() if f"layers.{number}." in k}, x)
        number += 1
    return x[:, spread.shape[1] :]


def _plain_layer(at: Mapping[str, Tensor], x: Tensor) -> Tensor:
    count, length, width = x.shape
    normed = F.layer_norm(x, (width,), at["norm1.weight"], at["norm1.bias"])
    queries = F.linear(normed, at["attn.to_queries.weight"]).view(count, length, HEADS, -1)
    both = F.linear(normed, at["attn.to_keys_values.weight"]).view(count, length, 2, HEADS, -1)
    scores = torch.einsum("bnhd,bmhd->bnmh", queries, both[:, :, 0]) * (width // HEADS) ** -0.5
    mixed = torch.einsum("bnmh,bmhd->bnhd", scores.softmax(2), both[:, :, 1]).reshape(count, length, width)
    x = x + F.linear(mixed, at["attn.project.weight"], at["attn.project.bias"])
    normed = F.layer_norm(x, (width,), at["norm2.weight"], at["norm2.bias"])
    hidden = F.relu(F.linear(normed, at["mlp.fc1.weight"], at["mlp.fc1.bias"]))
    return x + F.linear(hidden, at["mlp.fc2.weight"], at["mlp.fc2.bias"])


def _run(folder: Path, output: str, pixels: Tensor | None = None) -> tuple[Tensor, Any]:
    """An output of the staged bundle's chain, and the pixels it came from."""
    bundle = Bundle.open(folder)
    image, spec = bundle.manifest.image, bundle.manifest.decode
    if image is None or spec is None:
        raise ValueError("the staged bundle does not caption")
    if pixels is None:
        pixels = torch.from_numpy(pictures.preprocess([noise_picture(*size) for size in _PICTURES], image))
    return pixels, Sessions(bundle).run_chain(spec.chain, {image.input: pixels.numpy()})[output]
