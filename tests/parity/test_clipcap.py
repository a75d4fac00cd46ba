"""ClipCap: captions behind a prefix against transformers' `generate`, from files in the original layouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, generate
from vlrt.errors import VlrtError
from vlrt.tasks.caption import Captioner
from vlrt.zoo import Entry
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.checkpoints import open_checkpoint
from vlrt_export.clip_checkpoint import random_clip
from vlrt_export.clipcap_checkpoint import ClipCap, load_clipcap, random_clipcap
from vlrt_export.clipcap_reference import generate_behind, plain_prefix, transformers_gpt2
from vlrt_export.families import clipcap as family
from vlrt_export.generate_reference import compare, expected_sequences
from vlrt_export.graph import Plan
from vlrt_export.request import Request

SEEDS = range(6)
WORDS, FEATURES, STOP = 80, 24, 7
CLIP: dict[str, Any] = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "text_width": 64}
CLIP |= {"text_layers": 1, "vocabulary": 90, "context": 8, "dimension": FEATURES}
GPT2 = {"vocabulary": WORDS, "positions": 40, "width": 128, "layers": 2}
MAPPERS = {"mlp": {"prefix": 10}, "transformer": {"prefix": 6, "clip_length": 4, "layers": 2}}


def model(mapper: str, seed: int) -> ClipCap:
    """A random model whose image decides the words, and that ends some captions."""
    made = random_clipcap({"gpt2": GPT2, "mapper": MAPPERS[mapper]}, FEATURES, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in (made.mapper, made.decoder):
            for name, parameter in part.named_parameters():
                if parameter.ndim == 1:
                    around = 1.0 if "norm" in name or "ln_" in name else 0.0
                    around = around if name.endswith("weight") else 0.0
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + around)
                elif name in ("wte.weight", "wpe.weight", "constants"):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
                elif name == "linear.weight":
                    parameter *= 10.0  # vectors of length one are small
                elif "attn" in name or "c_proj" in name:
                    parameter *= 3.0  # what went before outweighs the last word
        made.decoder.wte.weight[STOP] += 0.06 * made.decoder.ln_f.bias.sign()
    return made


def save(mapper: str, seed: int, folder: Path) -> Request:
    """Files as their authors publish them: two state dicts, and a tokenizer's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = model(mapper, seed).weights()
    weights["gpt.lm_head.weight"] = weights["gpt.transformer.wte.weight"]
    for layer in range(2):  # buffers that the library of the time kept among the weights
        weights[f"gpt.transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 40, 40, dtype=torch.bool)
        weights[f"gpt.transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(weights, folder / "clipcap.pt")
    clip = random_clip(CLIP, 0).state_dict()
    torch.save({name.removeprefix("text."): tensor for name, tensor in clip.items()}, folder / "clip.pt")
    words = [f"w{i}" for i in range(WORDS)]
    words[STOP] = "."
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    made.save(str(folder / "tokenizer.json"))
    options = {"clip": str(folder / "clip.pt"), "tokenizer": str(folder), "normalize": mapper == "transformer"}
    return Request("tiny", Entry("clipcap", ("caption",), ""), str(folder / "clipcap.pt"), options=options)


@dataclass(frozen=True)
class Exported:
    mapper: str
    bundle: Path
    plans: list[Plan]
    graphs: list[Any]


@pytest.fixture(scope="module", params=MAPPERS)
def exported(
    request: pytest.FixtureRequest, reweighed: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """A bundle of each mapper, and per seed its graphs with other weights."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp(request.param)
    plans, graphs = [], []
    for seed in SEEDS:
        plans.append(family.build(save(request.param, seed, root / str(seed))))
        if seed == 0:
            write_bundle(plans[0], root / "tiny")
        graphs.append(reweighed.Reweighed(root / "tiny", plans[seed], root / str(seed), ("image_encoder",)))
    return Exported(request.param, root / "tiny", plans, graphs)


def pixels(seed: int, images: int) -> torch.Tensor:
    return torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def embeddings(exported: Exported, seed: int, seen: torch.Tensor) -> torch.Tensor:
    """The prefix from torch's modules and plain products; nothing of ours that is exported but the image tower."""
    tower = exported.plans[seed].graphs[0].module
    with torch.no_grad():
        return plain_prefix(model(exported.mapper, seed).weights(), tower(seen))


def ours(graphs: Any, seen: torch.Tensor, options: dict[str, Any], words: tuple[int, ...] = ()) -> Any:
    spec = graphs.manifest.decode
    initial = graphs.run_chain(spec.chain, {"pixels": seen.numpy()})
    prompts = [[*spec.start_ids, *words]] * len(seen)
    return generate(graphs.step(), initial, DecodeOptions(**options), prompts=prompts)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("beams", [1, 3, 5])
def test_sequences_and_scores(exported: Exported, beams: int, images: int) -> None:
    ended = set()
    for seed, graphs in zip(SEEDS, exported.graphs):
        seen = pixels(seed, images)
        options = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": 12}
        reference = transformers_gpt2(model(exported.mapper, seed))
        embeds = embeddings(exported, seed, seen)
        expected = expected_sequences(
            lambda **chosen: generate_behind(reference, embeds, (STOP,), **chosen),  # noqa: B023
            embeds.shape[1],
            (STOP,),
            {"do_sample": False, **options},
        )
        found = ours(graphs, seen, options)
        agreement = compare(found, expected)
        assert (agreement.different, agreement.ambiguous) == (0, 0), f"seed {seed}"
        assert agreement.score_error < 1e-4
        ended |= {hypothesis.finished for image in found for hypothesis in image}
    assert ended == {True, False}, "the models should end some captions and not others, or little is tested"


def test_the_reference_loop_gives_the_same_captions(exported: Exported) -> None:
    """Source: rmokady/CLIP_prefix_caption ``predict.py``, whose nucleus never takes the likeliest token away."""
    for seed, graphs in zip(SEEDS, exported.graphs):
        seen = pixels(seed + 50, 1)
        gpt = transformers_gpt2(model(exported.mapper, seed))
        generated, tokens = embeddings(exported, seed, seen), []
        for _ in range(20):
            with torch.no_grad():
                tokens.append(int(gpt(inputs_embeds=generated).logits[0, -1].argmax()))
            if tokens[-1] == STOP:
                break
            last = gpt.transformer.wte(torch.tensor([[tokens[-1]]]))
            generated = torch.cat([generated, last], 1).detach()
        assert list(ours(graphs, seen, {"max_new_tokens": 20})[0][0].tokens) == tokens


def test_words_may_follow_the_prefix(exported: Exported) -> None:
    words = (11, 30, 5)
    for seed, graphs in zip(SEEDS[:3], exported.graphs):
        seen = pixels(seed, 2)
        reference = transformers_gpt2(model(exported.mapper, seed))
        said = reference.transformer.wte(torch.tensor([words] * 2)).detach()
        embeds = torch.cat([embeddings(exported, seed, seen), said], 1)
        expected = expected_sequences(
            lambda **chosen: generate_behind(reference, embeds, (STOP,), **chosen),  # noqa: B023
            embeds.shape[1],
            (STOP,),
            {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8, "do_sample": False},
        )
        found = ours(graphs, seen, {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8}, words)
        assert compare(found, expected).different == 0


def test_different_images_give_different_captions(exported: Exported) -> None:
    different = 0
    for seed, graphs in zip(SEEDS, exported.graphs):
        found = ours(graphs, pixels(seed, 2), {"max_new_tokens": 10, "min_new_tokens": 10})
        different += found[0][0].tokens != found[1][0].tokens
    assert different >= len(SEEDS) / 2


def test_the_certificate_holds_every_rung(exported: Exported) -> None:
    stages = {line.stage for line in Bundle.open(exported.bundle).manifest.certificate}
    assert {"features", "prefix", "captions, greedy", "captions, beam 3", "captions, beam 5"} <= stages


def test_a_full_stop_is_shown(exported: Exported, photograph: Callable[..., Image.Image]) -> None:
    captioner = Captioner(Bundle.open(exported.bundle))
    pictures = [photograph(50, 40, seed=seed) for seed in range(8)]
    found = captioner.batch(pictures, max_new_tokens=25, num_beams=5)
    ended = [caption for caption in found if caption.tokens[-1] == STOP]
    assert ended
    assert all(caption.text.endswith(".") and caption.words[-1] == "." for caption in ended)
    assert captioner.options().max_new_tokens == 40 - len(captioner.spec.start_ids)


def test_sizes_come_from_the_shapes(tmp_path: Path) -> None:
    save("transformer", 0, tmp_path)
    loaded = load_clipcap(open_checkpoint(tmp_path / "clipcap.pt"), None)
    sizes = loaded.sizes
    assert (sizes.features, sizes.prefix, sizes.clip_length, sizes.layers, sizes.width) == (24, 6, 4, 2, 128)
    assert (loaded.decoder.sizes.heads, loaded.decoder.sizes.positions) == (2, 40)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: w.pop("clip_project.model.2.weight"), "has no mapper"),
        (lambda w: w.pop("clip_project.model.0.bias"), "lacks the tensor `clip_project.model.0.bias`"),
        (lambda w: w.pop("gpt.transformer.wte.weight"), "is not ClipCap"),
        (lambda w: w.pop("gpt.transformer.h.1.ln_1.weight"), "lacks the tensor `gpt.transformer.h.1.ln_1.weight`"),
        (lambda w: w.update(extra=torch.zeros(2)), "unexpected tensor `extra`"),
        (lambda w: w.update({"clip_project.model.2.bias": torch.zeros(3)}), "has shape .3., expected .1280."),
    ],
)
def test_damaged_checkpoints_name_the_tensor(tmp_path: Path, change: Callable[[Any], object], match: str) -> None:
    request = save("mlp", 0, tmp_path)
    weights = torch.load(tmp_path / "clipcap.pt", weights_only=True)
    change(weights)
    torch.save(weights, tmp_path / "clipcap.pt")
    with pytest.raises(VlrtError, match=match):
        family.build(request)


def test_another_clip_is_refused(tmp_path: Path) -> None:
    request = save("mlp", 0, tmp_path)
    clip = random_clip(CLIP | {"dimension": 32}, 0).state_dict()
    torch.save({name.removeprefix("text."): tensor for name, tensor in clip.items()}, tmp_path / "clip.pt")
    with pytest.raises(VlrtError, match="the mapper reads vectors of 24, this CLIP gives 32"):
        family.build(request)


@pytest.mark.parametrize(("missing", "match"), [("clip", "--clip"), ("tokenizer", "brings no tokenizer")])
def test_what_a_checkpoint_lacks_must_be_given(tmp_path: Path, missing: str, match: str) -> None:
    request = save("mlp", 0, tmp_path)
    options = {name: value for name, value in request.options.items() if name != missing}
    with pytest.raises(VlrtError, match=match):
        family.build(Request("tiny", request.entry, request.source, options=options))


def test_random_weights_make_a_plan() -> None:
    """The same graphs as above, so that they need not be traced once more."""
    options = {"clip_sizes": CLIP, "gpt2": GPT2, "mapper": MAPPERS["mlp"]}
    plan = family.build(Request("tiny", Entry("clipcap", ("caption",), ""), random=True, options=options))
    encoder, mapper, step = plan.graphs
    with torch.no_grad():
        prefix = mapper.module(encoder.module(pixels(0, 2)))
    assert prefix.shape == (2, 10, 128)
    assert step.in_place
    assert plan.decode is not None
    assert plan.decode.start_ids == (WORDS - 1,) * 10
    assert plan.source.origin == "random"
