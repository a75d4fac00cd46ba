"""DALL-E: the packages' own pictures code by code, and every attention against full attention with masks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vlrt.attention_patterns import PatternSpec
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.engines import EngineOptions
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt.manifest import DecodeSpec
from vlrt_export.bundle_writer import write_graph
from vlrt_export.checkpoints import open_checkpoint
from vlrt_export.codec_reader import read_image_codec
from vlrt_export.dalle_checks import guided_logits, sample_ids
from vlrt_export.dalle_graphs import IDS, PREFIX, patterns, states, step_graph, text_graph
from vlrt_export.dalle_model import DalleModel, random_dalle
from vlrt_export.dalle_pytorch_checkpoint import embedded_codec, load_dalle_pytorch
from vlrt_export.dalle_reference import plain_logits
from vlrt_export.parity import measure_graph
from vlrt_export.rudalle_checkpoint import load_rudalle

NAMES = ("lucid/kinds", "lucid/turned", "lucid/reversed", "sber/v2", "sber/v3")
EVERY = pytest.mark.parametrize("name", NAMES)
LUCID = pytest.mark.parametrize("name", NAMES[:3])

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def loaded(dalle_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, DalleModel]:
    folder = tmp_path_factory.mktemp("dalle")
    return {name: load(name, dalle_models, folder / f"{name.replace('/', '-')}.pt") for name in NAMES}


def load(name: str, goldens: ModuleType, path: Path) -> DalleModel:
    checkpoint = open_checkpoint(goldens.save(name, path))
    if name.startswith("sber"):
        heads = goldens.DESCRIBED["sber"]["num_attention_heads"]
        return load_rudalle(checkpoint, {"heads": heads, "version": name[-2:]})
    return load_dalle_pytorch(checkpoint, {})


def decode(
    session_of: Any, model: DalleModel, ids: torch.Tensor, options: DecodeOptions, begun: Any = ()
) -> list[list[tuple[int, ...]]]:
    """Codes by the runtime's loop over the torch module; the last text is the unconditional one."""
    sizes, session = model.sizes, session_of(step_graph(model.decoder, 1e-4))
    spec = DecodeSpec(
        chain=("text",), step="step", vocabulary=sizes.codebook, start_ids=(0,) * sizes.positions, end_ids=(), pad_id=0,
        states=states(sizes), max_length=sizes.positions + sizes.cells, patterns=patterns(sizes),
    )  # fmt: skip
    with torch.no_grad():
        prefix = model.text(ids).numpy()
    prompts = [[*spec.start_ids, *begun]] * (len(ids) - 1)
    nothing = {PREFIX: prefix[-1:].repeat(len(ids) - 1, 0)}
    found = generate(StepModel(spec, session), {PREFIX: prefix[:-1]}, options, prompts=prompts, unconditional=nothing)
    return [[hypothesis.tokens for hypothesis in image] for image in found]


@EVERY
def test_the_packages_logits(name: str, loaded: dict[str, DalleModel], dalle_models: ModuleType) -> None:
    """Of random codes behind two texts; with DALLE-pytorch also behind the empty text of its guidance."""
    model, codes = loaded[name], dalle_models.golden(name, "codes")
    for texts, wanted in ((dalle_models.TEXTS, "logits"), (dalle_models.TEXTS * 0, "nothing")):
        if f"{name}/{wanted}" in dalle_models.GOLDEN.files:
            found = plain_logits(model.text, model.decoder, texts, codes[:, :-1])
            assert torch.allclose(found, dalle_models.golden(name, wanted), atol=1e-5)


@EVERY
def test_the_packages_greedy_pictures(name: str, loaded: dict[str, DalleModel], dalle_models: ModuleType) -> None:
    """Code by code through the loop and its compact caches; the packages attend over everything with masks."""
    model = loaded[name]
    ids = torch.cat([dalle_models.TEXTS, dalle_models.TEXTS[:1] * 0])
    found = decode(dalle_models.TorchSession, model, ids, DecodeOptions(max_new_tokens=model.sizes.cells))
    assert [list(image[0]) for image in found] == dalle_models.golden(name, "greedy").tolist()


@LUCID
def test_the_codec_inside_a_checkpoint(name: str, loaded: dict[str, DalleModel], dalle_models: ModuleType) -> None:
    checkpoint = loaded[name].checkpoint
    inside = embedded_codec(checkpoint) if checkpoint else None
    assert inside is not None
    codec = read_image_codec(inside)
    assert codec.tokenizer is not None
    codes = codec.tokenizer(dalle_models.golden(name, "photographs"))
    assert codes.flatten().tolist() == dalle_models.golden(name, "found").flatten().tolist()
    painted = codec.detokenizer(dalle_models.golden(name, "greedy").reshape(2, 8, 8))
    assert torch.allclose(painted, ((dalle_models.golden(name, "pixels") + 1) / 2).clamp(0, 1), atol=1e-6)


def test_a_vqgan_inside_a_checkpoint(dalle_models: ModuleType, seeded: ModuleType, tmp_path: Path) -> None:
    """As `VQGanVAE` of DALLE-pytorch wraps taming's: its codes are those of the golden model itself."""
    with np.load(Path(__file__).parents[1] / "golden" / "vqgan.npz") as stored:
        shapes = {name: tuple(shape) for name, shape in json.loads(str(stored["nearest/shapes"])).items()}
        pixels, codes = stored["nearest/pixels"], stored["nearest/codes"]
    inside = {f"vae.model.{name}": torch.from_numpy(value) for name, value in seeded.seeded(shapes).items()}
    bare = {name: value for name, value in dalle_models.weights("lucid/kinds").items() if not name.startswith("vae.")}
    hparams = dalle_models.DESCRIBED["lucid"]["kinds"]
    torch.save({"hparams": hparams, "vae_params": None, "weights": bare | inside}, tmp_path / "dalle.pt")
    checkpoint = open_checkpoint(tmp_path / "dalle.pt")
    load_dalle_pytorch(checkpoint, {})
    found = embedded_codec(checkpoint)
    assert found is not None
    codec = read_image_codec(found, 32)
    assert codec.tokenizer is not None
    assert codec.kind == "vqgan"
    assert codec.tokenizer(torch.from_numpy(pixels)).tolist() == codes.reshape(len(codes), 8, -1).tolist()


BASE = {"words": 30, "text": 5, "codebook": 40, "width": 32, "heads": 2, "head_width": 16, "feed_forward": 48}
SMALL: dict[str, dict[str, Any]] = {
    "full": {"attention": ["full", "full"], "grid": (3, 4)},
    "row": {"attention": ["row", "row"], "grid": (4, 3), "begin": 0},
    "column": {"attention": ["column", "column"], "grid": (3, 5)},
    "conv": {"attention": ["conv", "conv"], "grid": (5, 4), "kernel": 3},
    "mixed": {"attention": ["row", "full", "column", "conv"], "grid": (4, 4), "text": 9, "gated": True, "scaled": True},
    "shifted": {"attention": ["column", "full"], "grid": (4, 4), "shifted": True, "rotary": True, "begin": 0},
}


@pytest.fixture(scope="session")
def small() -> dict[str, DalleModel]:
    made = {name: random_dalle(BASE | more, seed=len(name)) for name, more in SMALL.items()}
    for model in made.values():  # wide enough that earlier codes decide the next
        for parameter in (*model.text.parameters(), *model.decoder.parameters()):
            parameter.mul_(2.0 if parameter.ndim > 1 else 1.0)
    return made


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("name", SMALL)
def test_greedy_codes_are_the_likeliest(
    name: str, scale: float, small: dict[str, DalleModel], dalle_models: ModuleType
) -> None:
    model, ids = small[name], sample_ids(small[name])
    for text, image in zip(
        ids,
        decode(
            dalle_models.TorchSession, model, ids, DecodeOptions(max_new_tokens=model.sizes.cells, guidance_scale=scale)
        ),
    ):
        codes = torch.tensor(image[0])
        assert guided_logits(model, text, ids[-1], codes[:-1], scale).argmax(-1).tolist() == codes.tolist()
        assert len(set(image[0])) > 2, "the model says the same whatever it reads"


@pytest.mark.parametrize("begun", [0, 6])
@pytest.mark.parametrize("name", SMALL)
def test_samples_are_the_reference_s(
    name: str, begun: int, small: dict[str, DalleModel], dalle_models: ModuleType
) -> None:
    """The same random numbers give the codes of `torch.multinomial` over full attention, candidate by candidate."""
    model, ids, count, scale = small[name], sample_ids(small[name])[[0, 2]], 3, 2.0
    cells = list(range(begun))
    steps = model.sizes.cells - begun
    options = DecodeOptions(
        do_sample=True, num_return_sequences=count, max_new_tokens=steps, top_k=9, temperature=1.3, seed=4,
        guidance_scale=scale,
    )  # fmt: skip
    (found,) = decode(dalle_models.TorchSession, model, ids, options, cells)
    torch.manual_seed(4)
    rows = torch.tensor([cells] * count, dtype=torch.long).reshape(count, begun)
    for _ in range(steps):
        logits = torch.stack([guided_logits(model, ids[0], ids[1], row, scale)[-1] for row in rows]) / 1.3
        lowest = logits.topk(9).values[:, -1:]
        chosen = torch.multinomial(logits.masked_fill(logits < lowest, -torch.inf).softmax(-1), 1)
        rows = torch.cat([rows, chosen], 1)
    assert [list(candidate) for candidate in found] == rows[:, begun:].tolist()
    assert len({tuple(candidate) for candidate in found}) == count


def test_written_graphs_say_what_torch_says(small: dict[str, DalleModel], tmp_path: Path) -> None:
    """The operators that serve in place agree with the module; here of a model with most of what there may be."""
    graph = step_graph(small["shifted"].decoder, 1e-4)
    session = OnnxRuntimeSession(write_graph(graph, tmp_path), tmp_path / f"{graph.role}.onnx", EngineOptions())
    measured = list(measure_graph(graph, SimpleNamespace(get=lambda role: session)))  # type: ignore[arg-type]
    assert {m.stage for m in measured} >= {"decoder_step.logits", "decoder_step.next_shift.*"}
    assert all(m.passed for m in measured), measured


def test_patterns_of_the_loop_and_the_graph_agree(small: dict[str, DalleModel]) -> None:
    pattern = PatternSpec("p", "around", 3, (4, 4), 3)
    assert [pattern.filled(length) for length in (1, 3, 4, 5, 9)] == [1, 3, 4, 5, 8]
    assert replace(pattern, kind="column").waiting == 12
    assert replace(pattern, kind="row").waiting == 0
    assert IDS in text_graph(small["row"].text, 1e-4).inputs
