"""Checkpoints of sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning, the most used public Show, Attend and Tell.

They are one torch file that holds the pickled modules `encoder` and `decoder` (or their state dicts), read without
running any of it, and a word map in a JSON file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vlrt.errors import UsageError, VlrtError
from vlrt.manifest import Source
from vlrt_export.captioner import Captioner, Words, load_weights, word_level
from vlrt_export.checkpoints import Checkpoint, open_checkpoint, read_json
from vlrt_export.image_encoders import imagenet_image
from vlrt_export.modules.attention import SOFT
from vlrt_export.modules.resnet import ResNet101, from_torchvision
from vlrt_export.modules.tutorial_decoder import TutorialDecoder, TutorialSizes

IMAGE_SIZE = 256
GRID = 14
_LONGEST = 51
"""Words after which the reference's search gives up."""

_BEAMS = 5
_START, _END, _PAD, _UNKNOWN = "<start>", "<end>", "<pad>", "<unk>"


def is_tutorial_checkpoint(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the decoder's names are the tutorial's."""
    return any(name.endswith("attention.full_att.weight") for name in tensors)


@dataclass(frozen=True)
class TutorialFiles:
    """Where the parts lie: the checkpoint, and the word map if it is not beside it."""

    checkpoint: Checkpoint
    word_map: Path


def open_tutorial(source: str | Path, word_map: str | Path | None = None) -> TutorialFiles:
    """Opens the checkpoint and finds its word map.

    Args:
        source: the `.pth.tar` file, a safetensors file of the same names, or a folder that holds one of them.
        word_map: JSON file of word -> id; looked for beside the checkpoint as `WORDMAP_*.json` if not given.

    Raises:
        VlrtError: not such a checkpoint, or no word map.
    """
    checkpoint = open_checkpoint(source, patterns=("WORDMAP_*.json",))
    if not is_tutorial_checkpoint(checkpoint.tensors):
        raise VlrtError(
            f"`{checkpoint.origin}` is in no layout we know for Show, Attend and Tell",
            "expected a folder with `encoder.safetensors` and `show_attend_tell.safetensors`, or the public PyTorch "
            "tutorial's checkpoint with `decoder.attention.full_att`",
        )
    return TutorialFiles(checkpoint, Path(word_map) if word_map else _find_word_map(checkpoint))


def load_tutorial(files: TutorialFiles, attention: str = SOFT) -> Captioner:
    """The captioner with the reference's preprocessing, stop rule and beam width."""
    words = _words(files.word_map)
    origin = files.checkpoint.origin
    decoder_tensors = _part(files.checkpoint.tensors, "decoder.", "attention.")
    sizes = _sizes(decoder_tensors)
    if sizes.vocabulary != words.size:
        what = f"`{files.word_map.name}` has {words.size} words, the checkpoint {sizes.vocabulary}"
        raise VlrtError(what, "give the word map the checkpoint was trained with: --tokenizer WORDMAP.json")
    encoder_tensors = _encoder_part(files.checkpoint.tensors, origin)
    return Captioner(
        encoder=load_weights(ResNet101(IMAGE_SIZE, GRID, _blocks(encoder_tensors)), encoder_tensors, origin),
        decoder=load_weights(TutorialDecoder(sizes, attention), decoder_tensors, origin),
        image=imagenet_image(IMAGE_SIZE, "bilinear"),
        grid=(GRID, GRID),
        region_channels=ResNet101.channels,
        words=words,
        max_new_tokens=_LONGEST,
        source=Source(origin, files.checkpoint.revision, "the checkpoint's; the implementation it is for is MIT"),
        defaults={"rule": "classic", "num_beams": _BEAMS, "length_penalty": 0.0, "max_new_tokens": _LONGEST},
    )


def _find_word_map(checkpoint: Checkpoint) -> Path:
    folder = checkpoint.folder or checkpoint.files[0].parent
    found = sorted(folder.glob("WORDMAP*.json"))
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} word maps `WORDMAP*.json`" if found else "no word map `WORDMAP*.json`"
    raise UsageError(f"there is {what} beside `{checkpoint.origin}`", "give it: --tokenizer WORDMAP.json")


def _words(path: Path) -> Words:
    """The word map as a tokenizer; the unknown word stays visible in captions, as in the reference."""
    if not path.is_file():
        raise UsageError(f"the word map `{path}` does not exist", "give it: --tokenizer WORDMAP.json")
    word_map = read_json(path)
    ids = list(word_map.values())
    if not all(type(i) is int for i in ids) or sorted(ids) != list(range(len(ids))):
        raise VlrtError(f"`{path.name}` is not a word map: its ids are not 0 to {len(ids) - 1}, each once")
    for word in (_START, _END, _PAD, _UNKNOWN):
        if word not in word_map:
            raise VlrtError(f"`{path.name}` lacks the word `{word}`", "give the word map of the checkpoint's training")
    tokenizer = word_level(word_map, _UNKNOWN, (_PAD, _START, _END))
    return Words(tokenizer, len(ids), word_map[_PAD], word_map[_START], word_map[_END])


def _part(tensors: Mapping[str, Tensor], prefix: str, alone: str) -> dict[str, Tensor]:
    """The tensors under `prefix` without it; all of them where a decoder's state dict was saved alone."""
    if any(name.startswith(alone) for name in tensors):
        return {name: tensors[name] for name in tensors if not name.startswith(("encoder.", "resnet."))}
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def _encoder_part(tensors: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The encoder under the tutorial's names, from them or from torchvision's."""
    found = {name.removeprefix("encoder."): name for name in tensors if not name.startswith("decoder.")}
    kept = {name: tensors[stored] for name, stored in found.items() if name.startswith("resnet.")}
    for name, stored in found.items():
        mapped = from_torchvision(name)
        if mapped:
            kept[mapped] = tensors[stored]
    if not kept:
        raise VlrtError(f"`{origin}` holds a decoder but no encoder `encoder.resnet.*`", "save both in one file")
    return kept


def _sizes(tensors: Mapping[str, Tensor]) -> TutorialSizes:
    try:
        vocabulary, embedding = tensors["embedding.weight"].shape
        attention, regions = tensors["attention.encoder_att.weight"].shape
        hidden = tensors["decode_step.weight_hh"].shape[1]
    except (KeyError, ValueError, IndexError) as error:
        raise VlrtError(f"the decoder's tensors are incomplete: {error}", "save the whole decoder") from None
    if regions != ResNet101.channels:
        what = f"the decoder reads regions of {regions} channels, ResNet-101 gives {ResNet101.channels}"
        raise VlrtError(what, "only the tutorial's ResNet-101 encoder is known in this layout")
    return TutorialSizes(regions, hidden, embedding, attention, vocabulary)


def _blocks(tensors: Mapping[str, Tensor]) -> tuple[int, int, int, int]:
    """Bottlenecks per stage, counted, so that the same network in another depth loads as well."""
    counts = [len({name.split(".")[2] for name in tensors if name.startswith(f"resnet.{i}.")}) for i in range(4, 8)]
    return counts[0], counts[1], counts[2], counts[3]
