"""CoCa against open_clip's own modules: goldens made by `tests/golden/coca.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.embedding import DualEncoder
from vlrt.engines import Sessions
from vlrt.errors import VlrtError
from vlrt.tasks.caption import Captioner
from vlrt.tasks.match import Matcher
from vlrt.zoo import Entry
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.checkpoints import open_checkpoint
from vlrt_export.clip_tokenizer import stand_in
from vlrt_export.coca_checkpoint import load_coca, sizes_of
from vlrt_export.coca_reference import plain_logits
from vlrt_export.families import coca as family
from vlrt_export.modules.coca import Coca
from vlrt_export.request import Request

# The byte-level stand-in needs a token a letter, and the tiny model reads fourteen.
pytestmark = pytest.mark.filterwarnings("ignore::vlrt.text.TextTruncatedWarning")
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "coca.npz"
START, END = 518, 519
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1, "max_new_tokens": 10},
    "beam 3": {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 10},
    "beam 6": {"num_beams": 6, "num_return_sequences": 2, "max_new_tokens": 10, "min_length": 5},
}


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    with np.load(GOLDEN) as every:
        return {name: every[name] for name in every.files}


def config(stored: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(str(stored["config"]))
    return found


def save(stored: dict[str, Any], folder: Path, **change: Any) -> Request:
    """A state dict as open_clip writes it, its configuration, and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n.removeprefix("weights/"): torch.from_numpy(v) for n, v in stored.items() if n.startswith("weights/")}
    weights["text.attn_mask"] = torch.zeros(17, 17)  # a buffer that older versions keep among the weights
    torch.save(weights | change, folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config(stored)}), "utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()), "utf-8")
    return Request("tiny", Entry("coca", tuple(family.TASKS), ""), str(folder))


def tokenizer() -> dict[str, Any]:
    """A byte-level one whose start and end are the last ids of the golden's vocabulary."""
    value: dict[str, Any] = json.loads(stand_in(520).json())
    ids = {"<|startoftext|>": START, "<|endoftext|>": END}
    value["model"]["vocab"] |= ids
    for token in value["added_tokens"]:
        token["id"] = ids.get(token["content"], token["id"])
    return value


@pytest.fixture(scope="module")
def model(stored: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Coca:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("coca")
    save(stored, folder)
    return load_coca(open_checkpoint(folder), config(stored))


@pytest.fixture(scope="module")
def bundle(stored: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("coca")
    write_bundle(family.build(save(stored, folder / "checkpoint")), folder / "tiny")
    return Bundle.open(folder / "tiny")


def test_modules_give_what_open_clip_gives(model: Coca, stored: dict[str, Any]) -> None:
    image, states = model.visual(torch.from_numpy(stored["pixels"]))
    texts = torch.from_numpy(stored["texts"])
    np.testing.assert_allclose(image.detach(), stored["image"], atol=1e-5)
    np.testing.assert_allclose(states.detach(), stored["states"], atol=2e-5)
    np.testing.assert_allclose(model.text(texts).detach(), stored["text"], atol=1e-5)
    assert (stored["texts"][:2] == 0).any(), "the padding's mask should matter"
    logits = plain_logits(model, states[2:], texts[2:])[0]
    np.testing.assert_allclose(logits.detach(), stored["logits"], atol=5e-5)


def test_graphs_embed_what_open_clip_embeds(bundle: Bundle, stored: dict[str, Any]) -> None:
    encoder = DualEncoder(bundle)
    found = encoder.sessions.run_chain(encoder.spec.image, {"pixels": stored["pixels"]})
    np.testing.assert_allclose(found["image_embedding"], stored["image"], atol=1e-5)
    np.testing.assert_allclose(encoder.token_ids(stored["texts"]), stored["text"], atol=1e-5)
    assert encoder.spec.scale == pytest.approx(np.exp(2.5), rel=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_captions_are_those_of_open_clip(bundle: Bundle, stored: dict[str, Any], setting: str) -> None:
    spec = bundle.manifest.decode
    assert spec is not None
    sessions, options = Sessions(bundle), DecodeOptions(**SETTINGS[setting])
    initial = sessions.run_chain(spec.chain, {"pixels": stored["pixels"]})
    found = [h for image in generate(StepModel.open(spec, sessions.get), initial, options) for h in image]
    expected = [trimmed(row[1:].tolist()) for row in stored[setting]]
    assert [list(h.tokens) for h in found] == expected
    if options.num_beams > 1:
        np.testing.assert_allclose([h.score for h in found], stored[f"{setting}, scores"], atol=1e-4)


def trimmed(row: list[int]) -> list[int]:
    return row[: row.index(END) + 1] if END in row else row


def test_the_golden_tells_models_apart(stored: dict[str, Any]) -> None:
    assert len({tuple(row) for row in stored["greedy"].tolist()}) == 3
    ends = [END in row for name in SETTINGS for row in stored[name].tolist()]
    assert any(ends)
    assert not all(ends)


def test_one_bundle_captions_and_matches(bundle: Bundle, photograph: Callable[..., Image.Image]) -> None:
    captioner = Captioner(bundle)
    assert captioner.options().num_beams == 6
    assert captioner.options().suppress_tokens == (0,)
    assert captioner(photograph(50, 40), max_new_tokens=4, min_length=1).tokens
    assert len(Matcher(bundle)(photograph(50, 40), ["a dog", "a cat"])) == 2


def test_the_certificate_holds_the_sequences(bundle: Bundle) -> None:
    stages = {line.stage for line in bundle.manifest.certificate}
    assert {"captions, greedy", "captions, beam 3", "captions, beam 5"} <= stages


@pytest.mark.parametrize(
    ("section", "change", "match"),
    [
        ("vision_cfg", {"attentional_pool": "parallel"}, "`attentional_pool` of `vision_cfg` is 'parallel'"),
        ("text_cfg", {"embed_cls": False}, "`embed_cls` of `text_cfg` is False"),
        ("multimodal_cfg", {"heads": 8}, "differ in width or heads"),
        ("multimodal_cfg", {"width": 30}, "does not split over|differ in width"),
    ],
)
def test_configurations_that_are_not_served_are_named(
    stored: dict[str, Any], section: str, change: dict[str, Any], match: str
) -> None:
    other = config(stored)
    other[section] |= change
    with pytest.raises(VlrtError, match=match):
        sizes_of(other)


def test_a_configuration_without_a_section_is_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(VlrtError, match="lacks `multimodal_cfg`"):
        sizes_of({name: part for name, part in config(stored).items() if name != "multimodal_cfg"})


def test_a_checkpoint_without_configuration_says_where_to_put_it(stored: dict[str, Any], tmp_path: Path) -> None:
    request = save(stored, tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(VlrtError, match="needs its model configuration"):
        family.build(request)


def test_damaged_checkpoints_name_the_tensor(stored: dict[str, Any], tmp_path: Path) -> None:
    request = save(stored, tmp_path, extra=torch.zeros(3))
    with pytest.raises(VlrtError, match="unexpected tensor `extra`"):
        family.build(request)
    request = save(stored, tmp_path, **{"visual.proj": torch.zeros(3, 3)})
    with pytest.raises(VlrtError, match=r"`visual.proj` of .* has shape .3, 3., expected .32, 32."):
        family.build(request)
