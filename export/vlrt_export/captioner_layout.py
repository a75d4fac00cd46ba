"""Our own layout of captioner checkpoints: a folder of safetensors, `config.json` and `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from vlrt.errors import BundleError, VlrtError
from vlrt.manifest import ImageSpec, Source
from vlrt_export.captioner import Captioner, Words, forbid, load_weights, words_only
from vlrt_export.checkpoints import Checkpoint, open_checkpoint
from vlrt_export.image_encoders import encoder_choice
from vlrt_export.modules.attention import SOFT
from vlrt_export.modules.dual_encoder import DualEncoder, DualEncoderSizes
from vlrt_export.modules.show_and_tell import ShowAndTell, ShowAndTellSizes
from vlrt_export.modules.show_attend_tell import ShowAttendTell, ShowAttendTellSizes

ENCODER, DUAL_ENCODER = "encoder.safetensors", "dual_encoder.safetensors"
SHOW_ATTEND_TELL, SHOW_AND_TELL = "show_attend_tell.safetensors", "show_and_tell.safetensors"

Sizes = TypeVar("Sizes")


@dataclass(frozen=True)
class CaptionerFolder:
    """A checkpoint folder in our layout, opened: its image encoder's file and its configuration."""

    encoder: Checkpoint

    @property
    def config(self) -> Mapping[str, Any]:
        return self.encoder.config

    def weights(self, name: str) -> Checkpoint | None:
        """The weight file of that plain name, or `None`."""
        path = self.encoder.file(name)
        return open_checkpoint(path) if path else None

    def need(self, name: str) -> Checkpoint:
        found = self.weights(name)
        if found is None:
            raise VlrtError(f"`{self.encoder.origin}` lacks `{name}`", "check that this is the right checkpoint folder")
        return found

    def section(self, name: str) -> Mapping[str, Any]:
        value = self.config.get(name)
        if not isinstance(value, dict):
            raise VlrtError(f"`config.json` of `{self.encoder.origin}` lacks the section `{name}`")
        return value

    def sizes(self, name: str, kind: Callable[..., Sizes], **known: int) -> Sizes:
        """A sizes dataclass from the section of that name and from what is known already."""
        fields = {field: _positive(self.section(name), field, name) for field in _names(kind) if field not in known}
        return kind(**fields, **known)


def is_captioner_folder(source: str | Path) -> bool:
    """Whether a local folder is in our layout."""
    return (Path(source).expanduser() / ENCODER).is_file()


def open_captioner_folder(source: str | Path) -> CaptionerFolder:
    """Opens a folder or hub repository in our layout.

    Raises:
        VlrtError: it is none, or something in it is missing or damaged.
    """
    path = Path(source).expanduser()
    if path.exists() and not is_captioner_folder(path):
        what = f"`{path.name}` is not a captioner's folder: it lacks `{ENCODER}`"
        raise VlrtError(what, f"expected `{ENCODER}`, the decoder's safetensors, `config.json` and `tokenizer.json`")
    return CaptionerFolder(open_checkpoint(source, weights=ENCODER, patterns=("*.safetensors", "*.json", "*.md")))


def load_show_attend_tell(folder: CaptionerFolder, attention: str = SOFT) -> Captioner:
    """Show, Attend and Tell, with the dual encoder where the folder has one."""
    checkpoint = folder.need(SHOW_ATTEND_TELL)
    channels = _channels(folder, pooled=False)
    sizes = folder.sizes("show_attend_tell", ShowAttendTellSizes, regions=channels)
    decoder = load_weights(ShowAttendTell(sizes, attention), checkpoint.tensors, SHOW_ATTEND_TELL)
    forbid(decoder.output.bias, _never(folder, sizes.vocabulary))
    return _captioner(folder, decoder, checkpoint, sizes.vocabulary, dual_encoder=_dual_encoder(folder, channels))


def load_show_and_tell(folder: CaptionerFolder) -> Captioner:
    """Show and Tell."""
    checkpoint = folder.need(SHOW_AND_TELL)
    sizes = folder.sizes("show_and_tell", ShowAndTellSizes, regions=_channels(folder, pooled=True))
    decoder = load_weights(ShowAndTell(sizes), checkpoint.tensors, SHOW_AND_TELL)
    forbid(decoder.output.bias, _never(folder, sizes.vocabulary))
    return _captioner(folder, decoder, checkpoint, sizes.vocabulary, pooled=True)


def _dual_encoder(folder: CaptionerFolder, channels: int) -> DualEncoder | None:
    checkpoint = folder.weights(DUAL_ENCODER)
    if checkpoint is None:
        return None
    sizes = folder.sizes("dual_encoder", DualEncoderSizes, regions=channels)
    model = DualEncoder(sizes, end_id=_identity(folder, "end"))
    return load_weights(model, checkpoint.tensors, DUAL_ENCODER)


def _captioner(
    folder: CaptionerFolder,
    decoder: nn.Module,
    checkpoint: Checkpoint,
    vocabulary: int,
    *,
    pooled: bool = False,
    dual_encoder: DualEncoder | None = None,
) -> Captioner:
    choice = encoder_choice(str(folder.section("encoder").get("name")), pooled=pooled)
    image = _image(folder, choice.image)
    encoder = load_weights(choice.build(image.size[0]), choice.own_tensors(folder.encoder.tensors), ENCODER)
    decode = folder.section("decode")
    longest = _positive(decode, "max_new_tokens", "decode")
    return Captioner(
        encoder=encoder,
        decoder=decoder,
        image=image,
        grid=choice.grid(image.size[0]),
        region_channels=choice.channels,
        words=_words(folder, vocabulary),
        max_new_tokens=longest,
        source=_source(folder, checkpoint),
        defaults=_defaults(decode, longest),
        dual_encoder=dual_encoder,
        card=_card(folder),
    )


def _channels(folder: CaptionerFolder, *, pooled: bool) -> int:
    return encoder_choice(str(folder.section("encoder").get("name")), pooled=pooled).channels


def _image(folder: CaptionerFolder, base: ImageSpec) -> ImageSpec:
    """Stretched, bicubic, (value - mean) / std on 0 to 255: this layout knows no other preprocessing."""
    section = folder.section("image")
    size = _positive(section, "size", "image")
    mean, std = (_three(section, name) for name in ("mean", "std"))
    try:
        return ImageSpec((size, size), mean, std)
    except BundleError as error:
        raise VlrtError(f"`config.json`: {error.what}", "correct the section `image`") from None


def _three(section: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    value = section.get(name)
    values = [value] * 3 if isinstance(value, (int, float)) else value
    if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, (int, float)) for v in values):
        raise VlrtError(f"`image.{name}` in `config.json` is {value!r}, expected a number or three")
    return float(values[0]), float(values[1]), float(values[2])


def _words(folder: CaptionerFolder, vocabulary: int) -> Words:
    if folder.encoder.file("tokenizer.json") is None:
        raise VlrtError(f"`{folder.encoder.origin}` lacks `tokenizer.json`")
    tokenizer = folder.encoder.json("tokenizer.json")
    if tokenizer.get("pre_tokenizer") == {"type": "Whitespace"}:
        # The models were trained on words without punctuation, which that rule would read as unknown words.
        tokenizer["pre_tokenizer"] = words_only()
    pad, start, end = (_identity(folder, name) for name in ("pad", "start", "end"))
    return Words(json.dumps(tokenizer, ensure_ascii=False).encode(), vocabulary, pad, start, end)


def _identity(folder: CaptionerFolder, name: str) -> int:
    value = folder.section("tokens").get(name)
    if not isinstance(value, int):
        raise VlrtError(f"`tokens.{name}` in `config.json` is {value!r}, expected an id")
    return value


def _never(folder: CaptionerFolder, vocabulary: int) -> list[int]:
    value = folder.section("tokens").get("never_generate", [])
    if not isinstance(value, list) or not all(isinstance(i, int) and 0 <= i < vocabulary for i in value):
        what = f"`tokens.never_generate` in `config.json` is {value!r}"
        raise VlrtError(f"{what}, expected a list of ids from 0 to {vocabulary - 1}")
    return value


def _defaults(decode: Mapping[str, Any], longest: int) -> dict[str, Any]:
    penalty = decode.get("length_penalty", 1.0)
    if not isinstance(penalty, (int, float)):
        raise VlrtError(f"`decode.length_penalty` in `config.json` is {penalty!r}, expected a number")
    return {
        "num_beams": _positive(decode, "beams", "decode"),
        "length_penalty": float(penalty),
        "early_stopping": bool(decode.get("early_stopping", True)),
        "max_new_tokens": longest,
    }


def _positive(section: Mapping[str, Any], name: str, where: str) -> int:
    value = section.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise VlrtError(f"`{where}.{name}` in `config.json` is {value!r}, expected a positive whole number")
    return value


def _names(sizes: Any) -> list[str]:
    return [field.name for field in fields(sizes)]


def _source(folder: CaptionerFolder, checkpoint: Checkpoint) -> Source:
    return Source(
        origin=folder.encoder.origin,
        revision=folder.encoder.commit or checkpoint.revision,
        license="see the checkpoint's card",
    )


def _card(folder: CaptionerFolder) -> str:
    """The paragraph of the checkpoint's card that says what the models do not know."""
    path = folder.encoder.file("CARD.md")
    if path is None:
        return ""
    _, found, rest = path.read_text("utf-8").partition("## What they do not know")
    return " ".join(rest.partition("\n## ")[0].split()) if found else ""
