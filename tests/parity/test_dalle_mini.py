"""DALL·E mini against min-dalle's own modules: goldens made by `tests/golden/dalle_mini.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from vlrt import zoo
from vlrt.bundle import Bundle
from vlrt.codec import PictureCodec
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.engines import Sessions
from vlrt.errors import VlrtError
from vlrt.tasks.detokenize import Detokenizer
from vlrt.tasks.draw import Drawer
from vlrt.text import TextCodec
from vlrt.verify import verify
from vlrt.zoo import Entry
from vlrt_export import vqgan_layout, weight_layout
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.calibration import synthetic
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.dalle_mini_checkpoint import START, load_dalle_mini, open_files
from vlrt_export.dalle_mini_reference import plain_ids, plain_states
from vlrt_export.dalle_mini_tokenizer import EmojiWarning, emoji_names, make_tokenizer, open_tokenizer
from vlrt_export.families import dalle_mini as family
from vlrt_export.gate_metrics import metrics_of
from vlrt_export.hub import Snapshot
from vlrt_export.request import Request
from vlrt_export.trial import TrialSessions
from vlrt_export.vqgan_checkpoint import load_vqgan, random_vqgan

# Whether the package `emoji` is there decides what an exported tokenizer does with emoji, and nothing else here.
pytestmark = pytest.mark.filterwarnings("ignore::vlrt_export.dalle_mini_tokenizer.EmojiWarning")
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "dalle_mini.npz"
HEADS, SCALE = 2, 4.0


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    with np.load(GOLDEN) as every:
        return {name: every[name] for name in every.files}


def weights(stored: Mapping[str, Any], seeded: ModuleType, half: str) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(shape) for name, shape in json.loads(str(stored["shapes"]))[half].items()}
    return {name: torch.from_numpy(value) for name, value in seeded.seeded(shapes).items()}


def tiny_detoker() -> dict[str, torch.Tensor]:
    """A small detokenizer under the published names; its first weights are those of any VQGAN."""
    sizes = {"channels": [32, 32], "blocks": 1, "attended": [1], "latent": 8, "width": 8}
    codec = random_vqgan({"codebook": 2**14} | sizes, 3)
    decoder: Any = codec.detokenizer.decoder
    shape = vqgan_layout.VqGanSizes((32, 32), 1, (1,), 8)
    named = weight_layout.invert(decoder, vqgan_layout.decoder_layout(shape, vqgan_layout.TAMING))
    return named | {"embedding.weight": codec.detokenizer.codebook.detach()}


@pytest.fixture(scope="module")
def folder(stored: dict[str, Any], seeded: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of min-dalle, as `torch.save` writes them."""
    made = tmp_path_factory.mktemp("dalle") / "dalle_bart_tiny"
    made.mkdir()
    for half in ("encoder", "decoder"):
        torch.save(weights(stored, seeded, half), made / f"{half}.pt")
    torch.save(tiny_detoker(), made / "detoker.pt")
    said = json.loads(str(stored["tokenizer"]))
    (made / "vocab.json").write_text(json.dumps(said["vocabulary"]), "utf-8")
    (made / "merges.txt").write_text("\n".join(["#version: 0.2", *said["merges"], ""]), "utf-8")
    return made


def request(folder: Path, **options: Any) -> Request:
    return Request("tiny", Entry("dalle-mini", ("generate",), ""), str(folder), options={"heads": HEADS} | options)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    torch.set_num_threads(1)
    target = folder.parent / "tiny"
    write_bundle(family.build(request(folder)), target)
    return Bundle.open(target)


def test_the_hub_s_files_of_one_size_are_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(source: str, patterns: tuple[str, ...], weights: bool) -> Snapshot:
        asked.extend(patterns)
        for name in ("encoder.pt", "decoder.pt", "vocab.json", "merges.txt"):
            (tmp_path / name.replace(".", "_mini.")).write_bytes((folder / name).read_bytes())
        (tmp_path / "detoker.pt").write_bytes((folder / "detoker.pt").read_bytes())
        return Snapshot(source, tmp_path, "c0ffee")

    monkeypatch.setattr("vlrt_export.hub.fetch", fetch)
    files = open_files("kuprel/min-dalle", "_mini")
    assert asked == ["encoder_mini.pt", "decoder_mini.pt", "vocab_mini.json", "merges_mini.txt", "detoker.pt"]
    assert (files.suffix, files.detokenizer) == ("_mini", tmp_path / "detoker.pt")
    assert (files.encoder.origin, files.encoder.revision) == ("kuprel/min-dalle", "c0ffee")
    assert load_dalle_mini(files, HEADS).decoder.sizes.codes == 2**14


def test_text_becomes_the_reference_s_ids(stored: dict[str, Any]) -> None:
    said = json.loads(str(stored["tokenizer"]))
    tokenizer = make_tokenizer(said["vocabulary"], said["merges"])
    pairs = [tuple(merge.split()) for merge in said["merges"]]
    for text, expected in json.loads(str(stored["texts"])):
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected[1:-1], text
        assert plain_ids(said["vocabulary"], [(a, b) for a, b in pairs], text) == expected


def test_emoji_become_their_names_where_these_are_known(
    stored: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, names = json.loads(str(stored["tokenizer"])), json.loads(str(stored["emoji_names"]))
    tokenizer = make_tokenizer(said["vocabulary"], said["merges"], names)
    for text, expected in json.loads(str(stored["emoji"])):
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected[1:-1], text
    package = ModuleType("emoji")
    monkeypatch.setattr(package, "EMOJI_DATA", {s: {"en": f":{n}:"} for s, n in names.items()}, raising=False)
    package.__spec__ = ModuleSpec("emoji", None)
    monkeypatch.setitem(sys.modules, "emoji", package)
    assert emoji_names() == names
    monkeypatch.setattr("vlrt_export.dalle_mini_tokenizer.find_spec", lambda name: None)
    with pytest.warns(EmojiWarning, match="pip install emoji"):
        open_tokenizer(open_files(folder).encoder)


def test_random_text_becomes_the_reference_s_ids(stored: dict[str, Any]) -> None:
    said = json.loads(str(stored["tokenizer"]))
    tokenizer = make_tokenizer(said["vocabulary"], said["merges"])
    pairs = [(merge.split()[0], merge.split()[1]) for merge in said["merges"]]
    generator = np.random.default_rng(4)
    letters = np.array([*"aaabbbccehinoxtqz.,  ÉßİK\u2003\t"])
    for _ in range(300):
        text = "".join(generator.choice(letters, generator.integers(0, 24)))
        assert tokenizer.encode(text, add_special_tokens=False).ids == plain_ids(said["vocabulary"], pairs, text)[1:-1]


def test_the_modules_give_the_reference_s_states(stored: dict[str, Any], folder: Path) -> None:
    model = load_dalle_mini(open_files(folder), HEADS)
    ids = torch.from_numpy(stored["ids"])
    seen = ids != 1
    with torch.no_grad():
        states, mask = model.encoder(ids)
        plain = plain_states(model.weights()[0], ids, HEADS)
    np.testing.assert_allclose(states[seen], stored["states"][seen], atol=2e-5)
    np.testing.assert_allclose(plain[seen], stored["states"][seen], atol=2e-5)
    assert ((mask == 0) == seen).all()
    assert not seen.all()


def conditions(bundle: Bundle, stored: dict[str, Any], count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the chain makes of the golden's prompt and of none, for `count` pictures."""
    spec, codec = bundle.manifest.decode, TextCodec.open(bundle)
    assert spec is not None
    assert spec.start_ids == (START,)
    text = json.loads(str(stored["texts"]))[0][0]
    ids = codec.pad([codec.prompt_row(text), codec.prompt_row("")])
    np.testing.assert_array_equal(ids[0], stored["ids"][1][: ids.shape[1]])
    found = Sessions(bundle).run_chain(spec.chain, {codec.spec.input: ids})
    return tuple({name: value[[lane] * count] for name, value in found.items()} for lane in (0, 1))  # type: ignore[return-value]


def test_guided_greedy_codes_are_the_reference_s(bundle: Bundle, stored: dict[str, Any]) -> None:
    """All 256, by our loop over the exported graphs."""
    asked, nothing = conditions(bundle, stored, 1)
    spec = bundle.manifest.decode
    assert spec is not None
    options = DecodeOptions(max_new_tokens=256, guidance_scale=SCALE)
    step = StepModel.open(spec, Sessions(bundle).get)
    (found,) = generate(step, asked, options, unconditional=nothing)[0]
    assert list(found.tokens) == stored["greedy"].tolist()


def test_sampled_codes_are_those_that_torch_draws(bundle: Bundle, stored: dict[str, Any]) -> None:
    """Two pictures at once, the same seed, the same random numbers."""
    asked, nothing = conditions(bundle, stored, 2)
    spec = bundle.manifest.decode
    assert spec is not None
    options = DecodeOptions(
        max_new_tokens=256, guidance_scale=SCALE, do_sample=True, top_k=50, temperature=0.7, seed=11
    )
    found = generate(StepModel.open(spec, Sessions(bundle).get), asked, options, unconditional=nothing)
    assert [list(hypotheses[0].tokens) for hypotheses in found] == stored["sampled"].tolist()


def test_the_detokenizer_paints_what_the_reference_paints(stored: dict[str, Any], seeded: ModuleType) -> None:
    shapes = {name: tuple(shape) for name, shape in json.loads(str(stored["detoker"])).items()}
    named = {name: torch.from_numpy(value) for name, value in seeded.seeded(shapes).items()}
    codec = load_vqgan(Checkpoint(named, {}, None, (Path("detoker.pt"),), "golden"))
    assert (codec.tokenizer, codec.factor, codec.grid, codec.codebook) == (None, 16, (16, 16), 2**14)
    with torch.no_grad():
        painted = codec.detokenizer(torch.from_numpy(stored["codes"]))
    assert stored["painted"].std() > 0.1
    np.testing.assert_allclose(painted, stored["painted"], atol=2e-5)


def test_candidates_of_one_prompt_are_the_reference_s_pictures(bundle: Bundle, stored: dict[str, Any]) -> None:
    """Both share one text: its memory is computed once, and their codes are those of the reference's two rows."""
    codec, rows = PictureCodec(bundle), []
    expected = codec.pictures(stored["sampled"].reshape(2, 16, 16))
    painted = Drawer(bundle).batch(
        json.loads(str(stored["texts"]))[0][0],
        seed=11,
        candidates=2,
        keep=2,
        temperature=0.7,
        top_k=50,
        guidance=SCALE,
        on_step=lambda step: rows.append(step),
    )
    order = [painting.parameters["candidate"] for painting in painted]
    assert sorted(order) == [0, 1]
    for place, painting in zip(order, painted):
        np.testing.assert_array_equal(np.asarray(painting.picture), np.asarray(expected[place]))
    assert [step.step for step in rows][:3] == [1, 2, 3]


def test_random_weights_have_any_size() -> None:
    """A smaller codebook begins with its own last code; a codec that also reads pictures is served."""
    sizes = {"width": 16, "layers": 1, "heads": 1, "inner": 24, "vocabulary": 90, "codes": 48}
    codec = {"channels": [32], "blocks": 1, "attended": [], "latent": 4, "width": 4, "side": 16}
    options = {"sizes": sizes, "codec_sizes": codec}
    plan = family.build(Request("random", Entry("dalle-mini", (), ""), random=True, options=options))
    assert plan.decode is not None
    assert (plan.decode.start_ids, plan.decode.vocabulary) == ((47,), 48)
    assert set(plan.tasks) == {"generate", "tokenize", "detokenize", "reconstruct"}


def test_reduced_precision_is_judged_by_the_codes_that_follow(bundle: Bundle) -> None:
    metrics = metrics_of(bundle.manifest)
    assert set(metrics) == {"codec", "image_tokens"}
    data, metric, limits = synthetic(), metrics["image_tokens"], zoo.zoo().gate
    expected = metric.observe(bundle, TrialSessions(bundle), data, None)
    assert expected.greedy == [[choice.token for choice in choices] for choices in expected.followed]
    again = metric.observe(bundle, TrialSessions(bundle), data, expected)
    (line,) = metric.compare(expected, again, data, limits)
    assert (line.value, line.passed) == (1, True)
    other = replace(again, followed=[[replace(choice, token=choice.token + 1) for choice in c] for c in again.followed])
    (line,) = metric.compare(expected, other, data, limits)
    assert (line.value, line.passed) == (0, False)


def test_photographs_cannot_be_completed_without_a_tokenizer(bundle: Bundle) -> None:
    with pytest.raises(VlrtError, match="has no tokenizer"):
        Drawer(bundle).batch("a fox", complete=np.zeros((32, 32, 3), np.uint8), seed=1)


def test_a_prompt_that_is_too_long_is_told_with_both_lengths(bundle: Bundle) -> None:
    with pytest.raises(VlrtError, match=r"the prompt has \d+ tokens, `tiny` reads 64"):
        Drawer(bundle).batch("owls " * 40, seed=1)


def test_the_bundle_s_goldens_are_verified_without_torch(bundle: Bundle) -> None:
    measured = {m.stage: m for m in verify(bundle)}
    assert {"token ids", "text.text_states", "decode", "codec.pixels"} <= set(measured)
    assert all(m.passed for m in measured.values())


def test_the_bundle_draws_codes_but_reads_no_photographs(bundle: Bundle) -> None:
    picture = Detokenizer(bundle)(np.arange(256).reshape(16, 16))
    assert picture.size == (32, 32)
    assert bundle.manifest.image_tokens is not None
    assert bundle.manifest.image_tokens.text == "encoder"
    with pytest.raises(VlrtError, match="does not serve `tokenize`"):
        bundle.require("tokenize")


def test_a_codec_that_does_not_fit_the_decoder_is_named(bundle: Bundle) -> None:
    described = bundle.manifest
    assert described.image_tokens is not None
    assert described.codec is not None
    with pytest.raises(VlrtError, match="decoder writes 512 codes, the codec has 16384"):
        replace(described, image_tokens=replace(described.image_tokens, codebook=512))
    with pytest.raises(VlrtError, match=r"writes a grid of \[16, 16\], the codec takes \[8, 8\]"):
        replace(described, codec=replace(described.codec, grid=(8, 8), fixed=True))


def test_what_is_missing_or_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VlrtError, match="no folder"):
        family.build(request(tmp_path / "nowhere.pt"))
    small = random_vqgan({"codebook": 32, "channels": [32], "blocks": 1, "attended": [], "latent": 4, "width": 4}, 0)
    model = load_dalle_mini(open_files(folder), HEADS)
    with pytest.raises(VlrtError, match=r"writes 16384 codes, the codec has 32"):
        family._check_fit(model, small)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("encoder.pt", "decoder.pt", "vocab.json"):
        (copy / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(VlrtError, match=r"no file `merges\.txt`"):
        family.build(request(copy))
    (copy / "merges.txt").write_bytes((folder / "merges.txt").read_bytes())
    with pytest.raises(VlrtError, match=r"no detoker\.pt"):
        family.build(request(copy))
    (copy / "decoder.pt").write_bytes((folder / "encoder.pt").read_bytes())
    with pytest.raises(VlrtError, match=r"lm_head\.weight"):
        load_dalle_mini(open_files(copy), HEADS)
