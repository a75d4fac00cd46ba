"""A checkpoint as the public PyTorch tutorial saves it, read without running it; it captions as its own search does.

The classes below stand for the reference's: they are written from its published behaviour, and pickled whole, as it
does. ResNet-101 is cut to one block a stage; everything else has the reference's sizes where the test can afford it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vlrt.bundle import Bundle
from vlrt.errors import VlrtError
from vlrt.tasks.caption import Captioner as CaptionTask
from vlrt.zoo import Entry
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.families import show_attend_tell
from vlrt_export.image_encoders import randomise
from vlrt_export.modules.resnet import ResNet101
from vlrt_export.request import Request
from vlrt_export.tutorial_layout import load_tutorial, open_tutorial

WORDS = ["a", "dog", "runs", "on", "the", "grass", "two", "men", "sit", "red", "boat", "Ball"]
WORD_MAP = {word: i + 1 for i, word in enumerate(WORDS)}
WORD_MAP |= {"<unk>": 13, "<start>": 14, "<end>": 15, "<pad>": 0}


class TutorialEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet101(blocks=(1, 1, 1, 1)).resnet
        self.adaptive_pool = nn.AdaptiveAvgPool2d((14, 14))

    def forward(self, images: Tensor) -> Tensor:
        return self.adaptive_pool(self.resnet(images)).permute(0, 2, 3, 1)


class TutorialAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder_att, self.decoder_att, self.full_att = nn.Linear(2048, 24), nn.Linear(32, 24), nn.Linear(24, 1)


class TutorialDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = TutorialAttention()
        self.embedding = nn.Embedding(16, 20)
        self.decode_step = nn.LSTMCell(20 + 2048, 32)
        self.init_h, self.init_c = nn.Linear(2048, 32), nn.Linear(2048, 32)
        self.f_beta, self.fc = nn.Linear(32, 2048), nn.Linear(32, 16)

    def step(self, regions: Tensor, word: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a = self.attention
        energies = a.full_att((a.encoder_att(regions) + a.decoder_att(h)[:, None]).relu())[..., 0]
        alpha = energies.softmax(1)
        context = (regions * alpha[..., None]).sum(1) * self.f_beta(h).sigmoid()
        h, c = self.decode_step(torch.cat([self.embedding(word), context], 1), (h, c))
        return self.fc(h).log_softmax(1), h, c, alpha


def reference_search(decoder: TutorialDecoder, regions: Tensor, beams: int) -> tuple[list[int], float]:
    """The reference's search for one image: a finished sentence leaves and narrows the beam."""
    regions = regions.expand(beams, -1, -1)
    h, c = decoder.init_h(regions.mean(1)), decoder.init_c(regions.mean(1))
    sentences: list[list[int]] = [[WORD_MAP["<start>"]]] * beams
    sums = torch.zeros(beams, 1)
    complete: list[tuple[float, list[int]]] = []
    for step in range(51):
        words = torch.tensor([s[-1] for s in sentences])
        scores, h, c, _ = decoder.step(regions[: len(words)], words, h, c)
        scores = sums + scores
        best, flat = (scores[0] if step == 0 else scores.flatten()).topk(len(words))
        rows, words = flat // len(WORD_MAP), flat % len(WORD_MAP)
        sentences = [[*sentences[r], int(w)] for r, w in zip(rows, words)]
        ended = words == WORD_MAP["<end>"]
        complete += [(float(best[i]), sentences[i]) for i in range(len(words)) if ended[i]]
        keep = [i for i in range(len(words)) if not ended[i]]
        if not keep:
            break
        sentences, sums = [sentences[i] for i in keep], best[keep][:, None]
        h, c = h[rows[keep]], c[rows[keep]]
    score, tokens = max(complete)
    return tokens[1:], score


@pytest.fixture(scope="module")
def reference() -> tuple[TutorialEncoder, TutorialDecoder]:
    torch.manual_seed(0)
    encoder = TutorialEncoder()
    randomise(encoder, torch.randn(1, 3, 256, 256))
    torch.manual_seed(1)  # with these, sentences of eight words or so end on their own
    decoder = TutorialDecoder()
    for layer, spread in ((decoder.fc, 1.0), (decoder.embedding, 1.0), (decoder.attention.full_att, 2.0)):
        nn.init.normal_(layer.weight, std=spread)
    with torch.no_grad():
        decoder.fc.bias[WORD_MAP["<end>"]] = -1.0
        decoder.init_h.weight.mul_(40)  # random encoders see little difference between pictures
    return encoder.eval().requires_grad_(False), decoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(
    reference: tuple[TutorialEncoder, TutorialDecoder], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The file and its word map; the classes that it names exist only while it is written."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "WORDMAP_flickr8k_5_cap_per_img_5_min_word_freq.json").write_text(json.dumps(WORD_MAP), "utf-8")
    path = folder / "BEST_checkpoint_flickr8k_5_cap_per_img_5_min_word_freq.pth.tar"
    module: Any = ModuleType("tutorial_models")
    before = {}
    for kind in (TutorialEncoder, TutorialDecoder, TutorialAttention):
        before[kind] = kind.__module__
        kind.__module__ = module.__name__
        setattr(module, kind.__qualname__, kind)
    sys.modules[module.__name__] = module
    encoder, decoder = reference
    torch.save({"epoch": 3, "bleu-4": 0.2, "encoder": encoder, "decoder": decoder}, path)
    del sys.modules[module.__name__]
    for kind, name in before.items():
        kind.__module__ = name
    return path


def _pixels(picture: Image.Image) -> Tensor:
    """The reference's preprocessing: stretched to 256, bilinear, 0 to 1, ImageNet's mean and deviation."""
    values = np.asarray(picture.resize((256, 256), Image.Resampling.BILINEAR)) / 255.0
    normalised = (values - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(normalised.transpose(2, 0, 1)).float()[None]


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target = tmp_path_factory.mktemp("bundles") / "tutorial"
    entry = Entry("show-attend-tell", ("caption",), "")
    write_bundle(show_attend_tell.build(Request("tutorial", entry, source=str(checkpoint))), target)
    return Bundle.open(target)


def test_modules_agree_with_the_reference(
    reference: tuple[TutorialEncoder, TutorialDecoder], checkpoint: Path, photograph: Any
) -> None:
    encoder, decoder = reference
    captioner = load_tutorial(open_tutorial(checkpoint))
    pixels = _pixels(photograph(90, 70))
    with torch.no_grad():
        regions = encoder(pixels).reshape(1, 196, 2048)
        torch.testing.assert_close(captioner.encoder(pixels), regions, atol=1e-4, rtol=1e-4)
        annotations, keys, hidden, cell = captioner.decoder.memory(regions)
        word = torch.tensor([WORD_MAP["<start>"]])
        expected = decoder.step(regions, word, decoder.init_h(regions.mean(1)), decoder.init_c(regions.mean(1)))
        logits, *rest = captioner.decoder.step(word, hidden, cell, (annotations, keys))
        torch.testing.assert_close((F.log_softmax(logits, 1), *rest), expected, atol=1e-4, rtol=1e-4)


def test_the_bundle_captions_as_the_references_search_or_finds_a_likelier_sentence(
    reference: tuple[TutorialEncoder, TutorialDecoder], bundle: Bundle, photograph: Any
) -> None:
    encoder, decoder = reference
    task = CaptionTask(bundle)
    assert bundle.manifest.decode is not None
    assert bundle.manifest.decode.defaults["num_beams"] == 5
    texts, equal = set(), 0
    for seed in range(6):
        picture = photograph(120, 80, seed=seed)
        with torch.no_grad():
            tokens, score = reference_search(decoder, encoder(_pixels(picture)).reshape(1, 196, 2048), 5)
        found = task(picture)
        # The reference's beam narrows with every finished sentence; ours keeps its width, so it may see more.
        assert found.score > score - 1e-3
        if found.score < score + 1e-3:
            assert list(found.tokens) == tokens
            equal += 1
        assert found.attention is not None
        assert found.attention.shape == (len(found.words), 14, 14)
        texts.add(found.text)
    assert equal >= 4
    assert len(texts) > 1, "the pictures must be told apart"


def test_words_are_the_word_maps_own(bundle: Bundle) -> None:
    codec = CaptionTask(bundle).codec
    assert codec.decode([1, 2, 13, 9, 15, 0]) == "a dog <unk> sit"
    assert codec.tokenizer.encode("A dog, zebra!", add_special_tokens=False).ids == [1, 2, 13]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda words: words.pop("<end>"), "lacks the word `<end>`"),
        (lambda words: words.__setitem__("dog", 1), "each once"),
        (lambda words: words.pop("dog"), "its ids are not 0 to 14"),
        (lambda words: words.__setitem__("more", 16), "has 17 words, the checkpoint 16"),
        (lambda words: words.__setitem__("dog", "2"), "not a word map"),
    ],
)
def test_a_wrong_word_map_is_refused(checkpoint: Path, tmp_path: Path, change: Any, message: str) -> None:
    words = dict(WORD_MAP)
    change(words)
    path = tmp_path / "WORDMAP.json"
    path.write_text(json.dumps(words), "utf-8")
    with pytest.raises(VlrtError, match=message):
        load_tutorial(open_tutorial(checkpoint, path))


def test_a_missing_word_map_says_how_to_give_it(checkpoint: Path, tmp_path: Path) -> None:
    alone = tmp_path / checkpoint.name
    alone.write_bytes(checkpoint.read_bytes())
    with pytest.raises(VlrtError, match="no word map") as caught:
        open_tutorial(alone)
    assert "--tokenizer" in caught.value.hint


def test_a_decoder_without_its_encoder_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = open_tutorial(checkpoint).checkpoint.tensors
    path = tmp_path / "decoder.safetensors"
    save_file({name: tensors[name].contiguous() for name in tensors if name.startswith("decoder.")}, path)
    (tmp_path / "WORDMAP.json").write_text(json.dumps(WORD_MAP), "utf-8")
    with pytest.raises(VlrtError, match="no encoder"):
        load_tutorial(open_tutorial(path))
