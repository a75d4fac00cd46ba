"""Bundles of DALL-E: exported from DALLE-pytorch's own file, drawn from, and everything that cannot be meant."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from vlrt import cli, engines
from vlrt.bundle import Bundle
from vlrt.commands.repeat import repeat_command
from vlrt.decode import DecodeOptions
from vlrt.diffusion.request import CancelledError
from vlrt.engines import EngineOptions
from vlrt.engines.cuda import CudaSession
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt.errors import VlrtError
from vlrt.picture_file import read_parameters
from vlrt.tasks.draw import Drawer
from vlrt.zoo import Entry
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.checkpoints import open_checkpoint
from vlrt_export.dalle_checks import draw
from vlrt_export.dalle_pytorch_checkpoint import load_dalle_pytorch
from vlrt_export.families import dalle
from vlrt_export.request import Request
from vlrt_export.rudalle_checkpoint import load_rudalle

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(dalle_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four kinds of attention, as `train_dalle.py` saves them."""
    saved: Path = dalle_models.save("lucid/kinds", tmp_path_factory.mktemp("dalle") / "dalle.pt")
    return saved


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One id a word: `w1` to `w19`."""
    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Four kinds of attention, exported with the codec that the checkpoint holds."""
    target = tmp_path_factory.mktemp("bundles") / "kinds"
    write_bundle(dalle.build(request(checkpoint, tokenizer)), target)
    return Bundle.open(target)


def request(source: Path, tokenizer: Path | None, **options: Any) -> Request:
    given = {"tokenizer": str(tokenizer)} if tokenizer else {}
    return Request("kinds", Entry("dalle", ("generate",), ""), str(source), options=given | options)


def test_a_bundle_draws_the_package_s_pictures(bundle: Bundle, dalle_models: ModuleType) -> None:
    ids = torch.cat([dalle_models.TEXTS, dalle_models.TEXTS[:1] * 0])
    found = draw(bundle, ids, DecodeOptions(max_new_tokens=64))
    assert [list(image[0]) for image in found] == dalle_models.golden("lucid/kinds", "greedy").tolist()
    certificate = {m.metric: m for m in bundle.manifest.certificate if m.stage == "codes"}
    assert set(certificate) == {"codes of 128 that differ, guidance 1", "codes of 128 that differ, guidance 3"}
    assert all(m.value == 0 for m in certificate.values())


def test_a_bundle_s_caches_hold_what_is_seen(bundle: Bundle) -> None:
    """Of 71 positions: the text's seven and, by kind, up to a row, a column, or a square of 5 x 5, and one more."""
    graph = bundle.manifest.graphs["decoder_step"]
    assert [graph.input(f"key.{n}").shape[2] for n in range(5)] == ["positions", 15, 15, 32, "positions"]


@pytest.fixture(scope="session")
def drawer(bundle: Bundle) -> Drawer:
    return Drawer(bundle)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_drawing_with_states_on_a_device(
    bundle: Bundle, drawer: Drawer, fake_device: ModuleType, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    """Whole caches stay there, with both lanes of guidance; compact ones are the loop's and cross."""
    memories = []

    def open_there(opened: Bundle, role: str, options: EngineOptions) -> CudaSession:
        memories.append(fake_device.FakeMemory())
        loaded = fake_device.session_on(OnnxRuntimeSession(*opened.graph(role), options), memories[-1])
        return CudaSession(loaded, memories[-1], onnxruntime, captures=False)

    expected = drawer.batch("w3 w7 w2", count=2, seed=5, guidance=guidance)
    monkeypatch.setattr(engines, "open_session", open_there)
    found = Drawer(bundle).batch("w3 w7 w2", count=2, seed=5, guidance=guidance)
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one.pixels, other.pixels)
    assert any(memory.held for memory in memories)


def test_drawing(drawer: Drawer, dalle_models: ModuleType) -> None:
    """Greedy is the package's picture; samples repeat with their seed and differ without."""
    (painting,) = drawer.batch("w3 w7 w2 w11", greedy=True)
    pixels = ((dalle_models.golden("lucid/kinds", "pixels")[0] + 1) / 2).clamp(0, 1)
    wanted = np.rint(pixels.permute(1, 2, 0).numpy() * 255)
    assert np.abs(painting.pixels.astype(int) - wanted).max() <= 1
    first, again = (drawer.batch("w3", seed=5, candidates=4, keep=2) for _ in range(2))
    assert [p.parameters for p in first] == [p.parameters for p in again]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, again))
    assert first[0].parameters["score"] >= first[1].parameters["score"]
    assert not np.array_equal(first[0].pixels, drawer("w3", seed=6).pixels)


def test_rows_are_told_with_a_preview(drawer: Drawer) -> None:
    rows, previews = [], []

    def on_step(step: Any) -> None:
        rows.append((step.step, step.steps))
        previews.append(np.asarray(step.preview()))

    (painting,) = drawer.batch("w3 w9", seed=1, on_step=on_step)
    assert rows == [(row, 8) for row in range(1, 8)]
    assert (previews[2][12:] == 128).all()
    # What a decoder paints depends on neighbours, so only what is far from the grey is final.
    assert np.abs(previews[6][:16].astype(int) - painting.pixels[:16]).max() <= 1


def test_a_photograph_is_continued(drawer: Drawer) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)
    photograph = Image.fromarray(colours)
    given = drawer.codec.encode([drawer.codec.fit(photograph, (32, 32))])[0]
    seen: list[NDArray[Any]] = []
    options = {"complete": photograph, "rows": 3, "seed": 2, "candidates": 2}
    drawer.batch("w3", **options, on_step=lambda step: seen.append(step.sample))
    assert len(seen) == 4
    assert (seen[-1][:, :3] == given[:3]).all()
    assert (seen[-1][0, 3:7] != seen[-1][1, 3:7]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "w1 w2 w3 w4 w5 w6 w7"}, "the prompt has 7 tokens, `kinds` reads 6"),
        ({"candidates": 2, "keep": 3}, "3 pictures are to be kept of 2 candidates"),
        ({"complete": Image.new("RGB", (32, 32)), "rows": 8}, "8 rows of the photograph are to be kept"),
        ({"rows": 3}, "add `complete`"),
        ({"steps": 20}, "there is no option `steps` here"),
        ({"rank": "kinds", "prompt": " "}, "there is no prompt to rank"),
        ({"temperature": 0.0}, "`temperature` is 0"),
        ({"greedy": True, "candidates": 2}, "would all be the likeliest"),
        ({"seed": -1}, "does not fit 64 bits"),
    ],
)
def test_what_cannot_be_meant(drawer: Drawer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(VlrtError, match=message):
        drawer.batch(**({"prompt": "w1"} | options))


def test_candidates_beyond_memory(drawer: Drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says how many fit, before anything is allocated; and so many do."""
    monkeypatch.setattr("vlrt.tasks.draw.available", lambda: 600_000)
    with pytest.raises(VlrtError, match=r"900 candidates need 0\.1 GB .*\n?hint: --candidates \d+") as refused:
        drawer.batch("w1", candidates=900)
    fit = int(str(refused.value).rpartition(" ")[2])
    assert 1 <= fit < 900
    assert drawer.batch("w1", candidates=fit, keep=1)
    monkeypatch.setattr("vlrt.tasks.draw.available", lambda: 0)
    assert drawer.batch("w1", candidates=fit, keep=1), "its memory is there already"
    monkeypatch.setattr("vlrt.tasks.draw.available", lambda: 600_000)
    with pytest.raises(VlrtError, match=f"{fit + 1} candidates"):
        drawer.batch("w1", candidates=fit + 1, keep=1)


def test_a_codec_that_does_not_fit(checkpoint: Path, tokenizer: Path, dalle_models: ModuleType) -> None:
    """Both sizes are named."""
    values = dalle_models.weights("lucid/kinds")
    values = {name.removeprefix("vae."): value for name, value in values.items() if name.startswith("vae.")}
    values["codebook.weight"] = torch.zeros(25, 6).half()
    for name in ("encoder.3.weight", "encoder.3.bias"):
        values[name] = torch.cat([values[name], values[name][:1]])
    other = checkpoint.parent / "other.pt"
    torch.save(values, other)
    with pytest.raises(VlrtError, match="has 25 codes, the transformer writes 24"):
        dalle.build(request(checkpoint, tokenizer, codec=str(other)))


def test_a_checkpoint_without_a_codec_asks_for_one(tokenizer: Path, dalle_models: ModuleType, tmp_path: Path) -> None:
    saved = dalle_models.save("sber/v3", tmp_path / "pytorch_model.bin")
    with pytest.raises(VlrtError, match="brings no codec"):
        dalle.build(request(saved, tokenizer, heads=2))


def test_other_checkpoints_are_refused(dalle_models: ModuleType, tmp_path: Path) -> None:
    bare = dalle_models.weights("lucid/kinds")
    sparse = {**dalle_models.DESCRIBED["lucid"]["kinds"], "attn_types": ("full", "sparse")}
    torch.save({"hparams": sparse, "weights": bare}, tmp_path / "sparse.pt")
    with pytest.raises(VlrtError, match="layers of the attention `sparse` are not served"):
        load_dalle_pytorch(open_checkpoint(tmp_path / "sparse.pt"), {})
    torch.save({"x.weight": torch.zeros(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(VlrtError, match="neither DALLE-pytorch's nor ru-dalle's"):
        dalle.build(request(tmp_path / "x.pt", None))
    missing = {
        name: value for name, value in dalle_models.weights("sber/v3").items() if "layers.2.mlp.dense_h" not in name
    }
    torch.save(missing, tmp_path / "short.pt")
    with pytest.raises(VlrtError, match=r"lacks the tensor `transformer.layers.2.mlp.dense_h_to_4h.weight`"):
        load_rudalle(open_checkpoint(tmp_path / "short.pt"), {"heads": 2})
    torch.save(bare | {"more.weight": torch.zeros(3)}, tmp_path / "more.pt")
    with pytest.raises(VlrtError, match=r"unexpected tensor `more.weight`"):
        load_dalle_pytorch(open_checkpoint(tmp_path / "more.pt"), {"hparams": sparse | {"attn_types": ("full",)}})


def test_the_command_line(
    bundle: Bundle, tiny_bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Candidates ranked by a dual encoder, as a grid and one by one; each file says how it is made again."""
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "generate", "w3 w7", "--model", str(bundle.path), "--seed", "5"]
    wanted = [*arguments, "--candidates", "6", "--keep", "4", "--rank", str(tiny_bundle_folder), "-o", "grid.png"]
    cli.main([*wanted, "--preview", "2", "--progress"])
    told = capsys.readouterr()
    assert "codes: step 7/8" in told.err
    names = ["grid.png", *(f"grid-{n}.png" for n in range(1, 5))]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    scores = [read_parameters(tmp_path / name)["score"] for name in names[1:]]
    assert scores == sorted(scores, reverse=True)
    again = shlex.split(repeat_command(read_parameters(tmp_path / "grid.png")))[1:]
    cli.main([*again, "-o", "again.png"])
    with Image.open("grid.png") as first, Image.open("again.png") as second:
        assert first.size == (64, 64)
        assert np.array_equal(np.asarray(first), np.asarray(second))


def test_cancelling_leaves_nothing(drawer: Drawer) -> None:
    asked = iter(range(100))
    with pytest.raises(CancelledError, match="cancelled"):
        drawer.batch("w3", should_cancel=lambda: next(asked) > 9)
