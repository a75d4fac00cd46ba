"""Our own checkpoint folder: what it must hold, and the plans and random captioners beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from vlrt.errors import UsageError, VlrtError
from vlrt.zoo import Entry
from vlrt_export.captioner import word_level
from vlrt_export.captioner_layout import load_show_and_tell, load_show_attend_tell, open_captioner_folder
from vlrt_export.families import show_and_tell, show_attend_tell
from vlrt_export.image_encoders import encoder_choice
from vlrt_export.modules.dual_encoder import DualEncoder, DualEncoderSizes
from vlrt_export.modules.show_and_tell import ShowAndTell, ShowAndTellSizes
from vlrt_export.modules.show_attend_tell import ShowAttendTell, ShowAttendTellSizes
from vlrt_export.request import Request

CONFIG: dict[str, Any] = {
    "image": {"size": 64, "mean": 127.0, "std": [128.0, 127.0, 126.0]},
    "encoder": {"name": "efficientnet-lite0"},
    "show_attend_tell": {"annotation": 8, "hidden": 6, "embedding": 7, "attention": 5, "vocabulary": 6},
    "show_and_tell": {"hidden": 6, "embedding": 7, "vocabulary": 6},
    "dual_encoder": {
        "width": 8,
        "heads": 2,
        "text_layers": 1,
        "feed_forward": 12,
        "context": 9,
        "dimensions": 4,
        "vocabulary": 6,
    },
    "tokens": {"pad": 0, "start": 1, "end": 2, "unk": 3, "never_generate": [0, 1, 3]},
    "decode": {"beams": 3, "length_penalty": 0.7, "early_stopping": True, "max_new_tokens": 25},
}


@pytest.fixture(scope="module")
def encoder_weights() -> dict[str, torch.Tensor]:
    return _halves(encoder_choice("efficientnet-lite0").build(64))


@pytest.fixture
def folder(tmp_path: Path, encoder_weights: dict[str, torch.Tensor]) -> Path:
    """A whole checkpoint of tiny decoders, in fp16 where it is a matrix."""
    torch.manual_seed(0)
    save_file(encoder_weights, tmp_path / "encoder.safetensors")
    attend = ShowAttendTell(ShowAttendTellSizes(1280, **CONFIG["show_attend_tell"]))
    tell = ShowAndTell(ShowAndTellSizes(1280, **CONFIG["show_and_tell"]))
    dual = DualEncoder(DualEncoderSizes(1280, **CONFIG["dual_encoder"]), end_id=2)
    for name, module in (("show_attend_tell", attend), ("show_and_tell", tell), ("dual_encoder", dual)):
        save_file(_halves(module), tmp_path / f"{name}.safetensors")
    vocabulary = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "dog": 4, "man's": 5}
    tokenizer = json.loads(word_level(vocabulary, "<unk>", ("<pad>", "<start>", "<end>", "<unk>")))
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    (tmp_path / "CARD.md").write_text("# Card\n## What they do not know\nFood,\nor text.\n\n## More\nx\n", "utf-8")
    _configure(tmp_path, lambda config: None)
    return tmp_path


def _halves(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = {name: tensor for name, tensor in module.state_dict().items() if "num_batches" not in name}
    return {name: tensor.half() if tensor.dim() > 1 else tensor for name, tensor in state.items()}


def _configure(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads(json.dumps(CONFIG))
    change(config)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def _request(family: str, **changes: Any) -> Request:
    return Request("tiny", Entry(family, ("caption",), ""), **changes)


def test_the_plan_describes_everything(folder: Path) -> None:
    plan = show_attend_tell.build(_request("show-attend-tell", source=str(folder)))
    assert [g.role for g in plan.graphs] == [
        *("image_encoder", "caption_memory", "caption_step"),
        *("image_embedding", "text_encoder"),
    ]
    assert plan.tasks == ("caption", "match", "search", "embed", "classify")
    assert plan.image is not None
    assert (plan.image.size, plan.image.mean, plan.image.std) == ((64, 64), (127,) * 3, (128, 127, 126))
    assert plan.decode is not None
    assert plan.decode.records[0].grid == (2, 2)
    assert plan.decode.defaults["num_beams"] == 3
    assert plan.text is not None
    assert plan.text.context == 9
    assert plan.embed is not None
    assert plan.embed.dimension == 4
    assert plan.source.revision.startswith("sha256:")
    assert str(folder) not in plan.source.origin
    assert plan.card == "Food, or text."


def test_without_a_dual_encoder_it_only_captions(folder: Path) -> None:
    (folder / "dual_encoder.safetensors").unlink()
    plan = show_attend_tell.build(_request("show-attend-tell", source=str(folder)))
    assert plan.tasks == ("caption",)
    assert plan.embed is None
    assert len(plan.graphs) == 3


def test_show_and_tell_searches_as_the_paper(folder: Path) -> None:
    plan = show_and_tell.build(_request("show-and-tell", source=str(folder)))
    assert plan.decode is not None
    assert plan.decode.defaults == {"rule": "classic", "num_beams": 20, "length_penalty": 0.0, "max_new_tokens": 25}
    assert not plan.decode.records
    assert [state.kind for state in plan.decode.states] == ["recurrent", "recurrent"]


@pytest.mark.parametrize("attention", ["soft", "hard", "hard-sampled"])
def test_sampled_attention_asks_for_noise(folder: Path, attention: str) -> None:
    plan = show_attend_tell.build(_request("show-attend-tell", source=str(folder), options={"attention": attention}))
    assert plan.decode is not None
    noise = [state.input for state in plan.decode.states if state.kind == "noise"]
    assert noise == (["uniforms"] if attention == "hard-sampled" else [])
    assert ("uniforms" in plan.graphs[2].inputs) == bool(noise)


def test_words_never_generated_have_no_probability(folder: Path) -> None:
    opened = open_captioner_folder(folder)
    for captioner in (load_show_attend_tell(opened), load_show_and_tell(opened)):
        bias = captioner.decoder.output.bias
        assert bias.isinf().nonzero().flatten().tolist() == [0, 1, 3]


def test_fp16_values_are_widened_unchanged(folder: Path) -> None:
    stored = load_file(folder / "show_attend_tell.safetensors")["gate.weight"]
    loaded = load_show_attend_tell(open_captioner_folder(folder)).decoder.gate.weight
    assert stored.dtype == torch.float16
    assert torch.equal(loaded, stored.float())


def test_the_tokenizer_drops_punctuation(folder: Path) -> None:
    words = load_show_attend_tell(open_captioner_folder(folder)).words
    tokenizer = Tokenizer.from_str(words.tokenizer.decode())
    assert tokenizer.encode("Dog, the man's dog!", add_special_tokens=False).ids == [4, 3, 5, 4]


@pytest.mark.parametrize(
    ("name", "message"),
    [("show_attend_tell.safetensors", "lacks `show_attend_tell.safetensors`"), ("tokenizer.json", "tokenizer.json")],
)
def test_a_missing_file_is_named(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(VlrtError, match=message):
        show_attend_tell.build(_request("show-attend-tell", source=str(folder)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("image"), "lacks the section `image`"),
        (lambda c: c["image"].__setitem__("size", 0), "`image.size` in `config.json` is 0"),
        (lambda c: c["image"].__setitem__("size", 9000), "outside 1 to 8192"),
        (lambda c: c["image"].__setitem__("std", 0), "must not be zero"),
        (lambda c: c["image"].__setitem__("mean", [1, 2]), "expected a number or three"),
        (lambda c: c["encoder"].__setitem__("name", "vgg13"), "no image encoder `vgg13`"),
        (lambda c: c["show_attend_tell"].pop("hidden"), "`show_attend_tell.hidden` in `config.json` is None"),
        (lambda c: c["show_attend_tell"].__setitem__("hidden", 7), "shape"),
        (lambda c: c["tokens"].__setitem__("end", 99), "`end_id` is 99"),
        (lambda c: c["tokens"].__setitem__("start", None), "`tokens.start`"),
        (lambda c: c["tokens"].__setitem__("never_generate", "all"), "never_generate"),
        (lambda c: c["tokens"].__setitem__("never_generate", [6]), "never_generate"),
        (lambda c: c["decode"].__setitem__("max_new_tokens", True), "`decode.max_new_tokens`"),
        (lambda c: c["decode"].__setitem__("length_penalty", "long"), "`decode.length_penalty`"),
    ],
)
def test_a_wrong_configuration_is_one_clear_error(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    _configure(folder, change)
    with pytest.raises(VlrtError, match=message):
        show_attend_tell.build(_request("show-attend-tell", source=str(folder)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("gate.bias"), "lacks the tensor `gate.bias`"),
        (lambda tensors: tensors.__setitem__("surplus", torch.zeros(1)), "unexpected tensor `surplus`"),
    ],
)
def test_wrong_tensors_are_named(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    path = folder / "show_attend_tell.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(VlrtError, match=message):
        show_attend_tell.build(_request("show-attend-tell", source=str(folder)))


def test_an_unknown_attention_names_those_there_are(folder: Path) -> None:
    with pytest.raises(UsageError, match="no attention `firm`") as caught:
        show_attend_tell.build(_request("show-attend-tell", source=str(folder), options={"attention": "firm"}))
    assert "hard-sampled" in caught.value.hint


def test_a_checkpoint_brings_its_own_encoder(folder: Path) -> None:
    for family in (show_attend_tell, show_and_tell):
        with pytest.raises(UsageError, match="--random"):
            family.build(_request("show-attend-tell", source=str(folder), options={"encoder": "vgg16"}))


def test_a_folder_of_another_kind_says_what_was_expected(tmp_path: Path) -> None:
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(VlrtError, match="no layout we know") as caught:
        show_attend_tell.build(_request("show-attend-tell", source=str(tmp_path)))
    assert "encoder.safetensors" in caught.value.hint
    with pytest.raises(VlrtError, match="not a captioner's folder"):
        show_and_tell.build(_request("show-and-tell", source=str(tmp_path)))


def test_random_weights_depend_on_the_seed_alone() -> None:
    def bias(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.initial_seed() + 1)
        plan = show_attend_tell.build(
            _request("show-attend-tell", random=True, seed=seed, options={"encoder": "efficientnet-lite0"})
        )
        return plan.graphs[2].module.gates.weight

    first, again, other = bias(1), bias(1), bias(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
