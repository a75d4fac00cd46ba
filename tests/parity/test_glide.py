"""GLIDE against OpenAI's own implementation: goldens made by `tests/golden/glide.py`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vlrt.bundle import Bundle
from vlrt.engines import Sessions
from vlrt.errors import VlrtError
from vlrt.manifest import DiffusionSpec
from vlrt.picture_file import Painting
from vlrt.tasks import load
from vlrt.text import TextCodec
from vlrt_export import picture_checks
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.families import glide as family
from vlrt_export.modules.glide_clip import ClipGradient, NoisedClipImage, NoisedClipSizes, unit
from vlrt_export.request import Request

TIMES = np.array([997, 12])


def beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checkpoints = beside("glide_checkpoints")
made = checkpoints.script()


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    with np.load(checkpoints.GOLDEN / "glide.npz") as every:
        return {name: every[name] for name in every.files}


@pytest.fixture(scope="module")
def tokens() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoints.GOLDEN / "glide_tokens.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both bundles: text to picture with the noised CLIP, and inpainting."""
    torch.set_num_threads(1)
    root, found = tmp_path_factory.mktemp("glide"), {}
    for name, inpaint in (("plain", False), ("inpaint", True)):
        request = checkpoints.save(root / f"{name}-checkpoints", inpaint, clip=not inpaint)
        write_bundle(family.build(request), root / name)
        found[name] = root / name
    return found


def spec_of(bundle: Bundle) -> DiffusionSpec:
    found = bundle.manifest.diffusion
    assert found is not None
    return found


def conditions(bundle: Bundle, sessions: Sessions, prompts: tuple[str, ...]) -> dict[str, Any]:
    """Every array that the bundle's text encoders make of prompts."""
    known: dict[str, Any] = {}
    for prompt in spec_of(bundle).prompts:
        codec = TextCodec.open(bundle, prompt.text)
        rows = [codec.prompt_row(text) for text in prompts]
        given = {prompt.text.input: codec.pad(rows)}
        if prompt.mask:
            given[prompt.mask] = np.arange(prompt.text.context)[None] < np.array([[len(row)] for row in rows])
            given[prompt.mask] = given[prompt.mask].astype(np.int64)
        known |= sessions.run_chain(prompt.chain, given)
    return known


def denoise(sessions: Sessions, role: str, known: Mapping[str, Any], sample: Any) -> Any:
    session = sessions.get(role)
    given = {**known, "sample": sample, "timestep": TIMES}
    return session.run(**{tensor.name: given[tensor.name] for tensor in session.spec.inputs})


@pytest.mark.parametrize(("name", "kind"), [("plain", ""), ("inpaint", "_inpaint")])
def test_denoisers_predict_what_the_originals_do(
    name: str, kind: str, folders: dict[str, Path], stored: dict[str, Any]
) -> None:
    bundle = Bundle.open(folders[name])
    sessions = Sessions(bundle)
    known = conditions(bundle, sessions, made.PROMPTS)
    for stage, size in (("base", 8), ("upsampler", 16)):
        kept = made.keep_mask(size, 8).repeat(2, 1, 1, 1)
        known |= {f"{stage}_kept": kept.numpy(), f"{stage}_masked": (kept * made.picture(size)).numpy()}
    enlarged = F.interpolate(torch.from_numpy(stored["low"]), (16, 16), mode="bilinear", align_corners=False)
    known["upsampler_low_resolution"] = enlarged.numpy()
    for stage, golden, sample in (("base", "base", "x"), ("upsampler", "upsample", "y")):
        found = denoise(sessions, stage, known, stored[sample])["prediction"]
        assert np.abs(found - stored[f"{golden}{kind}"]).max() < 2e-5
        assert np.abs(found[0] - found[1]).max() > 0.1


def test_noised_clip_is_the_original(folders: dict[str, Path], stored: dict[str, Any]) -> None:
    bundle = Bundle.open(folders["plain"])
    sessions = Sessions(bundle)
    known = conditions(bundle, sessions, made.PROMPTS)
    assert np.abs(known["clip_text_embedding"] - stored["clip_text"]).max() < 1e-5
    found = denoise(sessions, "clip_gradient", known, stored["x"])["gradient"]
    assert np.abs(found - stored["clip_gradient"]).max() < 1e-4 * np.abs(stored["clip_gradient"]).max()


def decibels(found: Painting, expected: Any) -> float:
    """Against a golden picture [1, 3, H, W] in −1 to 1."""
    pixels = np.clip(np.rint((expected[0].transpose(1, 2, 0) + 1) * 127.5), 0, 255).astype(np.uint8)
    return picture_checks.psnr(found.pixels, pixels)


@pytest.mark.parametrize(("name", "prompt"), [*zip(("first", "second"), made.PROMPTS)])
def test_a_seed_paints_the_originals_picture(
    name: str, prompt: str, folders: dict[str, Path], stored: dict[str, Any]
) -> None:
    found = load("generate", folders["plain"])(prompt, seed=made.SEED, steps={"base": int(made.STEPS)})
    assert decibels(found, stored[f"{name}/picture"]) >= 50
    other = {"first": "second", "second": "first"}[name]
    assert decibels(found, stored[f"{other}/picture"]) < 20


def test_clip_guidance_paints_the_originals_picture(folders: dict[str, Path], stored: dict[str, Any]) -> None:
    options = {"seed": made.SEED, "steps": {"base": int(made.STEPS)}, "guidance": 1.0}
    painter = load("generate", folders["plain"])
    found = painter(made.PROMPTS[0], gradient_guidance=made.GRADIENT_GUIDANCE, **options)
    assert decibels(found, stored["gradient/picture"]) >= 50
    assert decibels(painter(made.PROMPTS[0], **options), stored["gradient/picture"]) < 20


def test_inpainting_paints_the_originals_picture(folders: dict[str, Path], stored: dict[str, Any]) -> None:
    mask = np.full((48, 48), 255, np.uint8)
    mask[:12] = 0
    options = {"seed": made.SEED, "steps": {"base": int(made.STEPS)}, "guidance": made.GUIDANCE}
    inpainter = load("inpaint", folders["inpaint"])
    found = inpainter(made.photograph(), Image.fromarray(mask), made.PROMPTS[0], height=16, width=16, **options)
    assert decibels(found, stored["inpaint/picture"]) >= 50


def test_the_certificate_holds_pictures(folders: dict[str, Path]) -> None:
    found = {name: Bundle.open(folder).manifest.certificate for name, folder in folders.items()}
    stages = {name: [m.stage for m in every if m.stage.startswith("picture.")] for name, every in found.items()}
    assert stages == {"plain": ["picture.generate", "picture.clip-guided"], "inpaint": ["picture.inpaint"]}


def test_written_gradient_is_autograd(stored: dict[str, Any]) -> None:
    sizes = NoisedClipSizes(8, 2, 560, 16, 24, 2, 2, 3, 3, 8)
    tower = NoisedClipImage(sizes)
    with torch.no_grad():
        for name, tensor in tower.state_dict().items():
            tensor.copy_(torch.from_numpy(made.weight(name, tuple(tensor.shape))))
    text = unit(torch.randn(2, 24, generator=torch.Generator().manual_seed(3)))
    sample, times = torch.from_numpy(stored["x"]).requires_grad_(True), torch.from_numpy(TIMES)
    (expected,) = torch.autograd.grad(100 * (tower(sample, times) * text).sum(), sample)
    with torch.no_grad():
        found = ClipGradient(tower, 100.0)(sample, times, text)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_ids_are_the_originals(folders: dict[str, Path], tokens: dict[str, Any]) -> None:
    bundle = Bundle.open(folders["plain"])
    own, _, clip = (TextCodec.open(bundle, prompt.text) for prompt in spec_of(bundle).prompts)
    for sentence, (ids, mask) in zip(made.SENTENCES, tokens["glide"]):
        row = _row(own, sentence)
        assert own.pad([row]).tolist() == [ids]
        assert [i < len(row) for i in range(made.CONTEXT)] == mask
    for sentence, (ids, length) in zip(made.SENTENCES, tokens["clip"]):
        row = _row(clip, sentence)
        assert (clip.pad([row]).tolist(), len(row)) == ([ids], length)


def _row(codec: TextCodec, sentence: str) -> list[int]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of the sentences is longer than the context
        return codec.prompt_row(sentence)


def test_published_checkpoints_have_the_names_and_shapes_we_read() -> None:
    expected = json.loads((checkpoints.GOLDEN / "glide_shapes.json").read_text("utf-8"))
    assert {kind: made.digest(shapes) for kind, shapes in checkpoints.published_shapes().items()} == {
        kind: described["digest"] for kind, described in expected.items()
    }


def test_missing_checkpoint_and_wrong_sizes_are_named(tmp_path: Path) -> None:
    request = checkpoints.save(tmp_path / "glide", clip=False)
    (tmp_path / "glide" / "upsample.pt").unlink()
    with pytest.raises(VlrtError, match=r"lacks `upsample\.pt`"):
        family.build(request)
    config = checkpoints.config()
    config["base"]["text_width"] = 64
    (tmp_path / "glide" / "config.json").write_text(json.dumps(config), "utf-8")
    (tmp_path / "glide" / "upsample.pt").write_bytes((tmp_path / "glide" / "base.pt").read_bytes())
    with pytest.raises(VlrtError, match=r"has shape .* expected"):
        family.build(request)
    config["base"]["legs"] = 4
    (tmp_path / "glide" / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(VlrtError, match="unknown sizes"):
        family.build(request)


def test_random_weights_need_no_checkpoint() -> None:
    options = {"config": checkpoints.config(), "inpaint": True}
    entry = checkpoints.Entry("glide", ("inpaint",), "", options=options)
    plan = family.build(Request("random", entry, random=True, seed=3, options=options))
    assert [graph.role for graph in plan.graphs] == [
        "base_text_encoder",
        "base",
        "upsampler_text_encoder",
        "upsampler",
    ]
    assert plan.source.note.startswith("random weights")
