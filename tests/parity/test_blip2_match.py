"""BLIP-2's matching head and contrastive scores against `Blip2ForImageTextRetrieval` of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from vlrt.bundle import Bundle
from vlrt.errors import VlrtError
from vlrt.tasks.match import Matcher
from vlrt.verify import verify
from vlrt.zoo import Entry
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.families import blip2
from vlrt_export.request import Request
from vlrt_export.text_files import stand_in

VOCABULARY, SIDE, QUERIES = 90, 28, 4
SENTENCES = ["a dog", "two cats on grass", "how many?"]


@pytest.fixture(scope="module")
def model() -> Any:
    """Every weight is wide, so that image and sentence matter; the queries are zero as the library initialises them."""
    vision = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2, "num_hidden_layers": 1}
    qformer = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_hidden_layers": 3}
    qformer |= {"vocab_size": VOCABULARY, "max_position_embeddings": 60, "use_qformer_text_input": True}
    config = transformers.Blip2Config(
        vision_config=vision | {"image_size": SIDE, "patch_size": 14},
        qformer_config=qformer | {"encoder_hidden_size": 24},
        num_query_tokens=QUERIES,
        image_text_hidden_size=12,
    )
    torch.manual_seed(0)
    found = transformers.Blip2ForImageTextRetrieval(config).eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            parameter.normal_(0.0, 0.3 if parameter.ndim > 1 else 0.1)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1.0
    return found


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("itm")
    model.save_pretrained(folder)
    special = {0: "[PAD]", VOCABULARY - 2: "[CLS]", VOCABULARY - 1: "[SEP]"}
    stand_in(VOCABULARY, special).save(str(folder / "tokenizer.json"))
    transformers.BlipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bundle") / "itm"
    write_bundle(blip2.build(Request("itm", Entry("blip2", ("match",), ""), str(checkpoint))), folder)
    return Bundle.open(folder)


def test_matches_and_cosines(bundle: Bundle, model: Any, photograph: Callable[..., Image.Image]) -> None:
    matcher = Matcher(bundle)
    processor = transformers.BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    probabilities, scores = [], []
    for seed in range(4):
        picture = photograph(40, 30, seed=seed)
        pixels = torch.from_numpy(np.stack(processor(picture)["pixel_values"]))
        found = matcher(picture, SENTENCES)
        for match in found:
            ids = torch.tensor([matcher.encoder.codec.ids(match.text)])
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
            with torch.no_grad():
                head = model(**given, use_image_text_matching_head=True).logits_per_image.softmax(-1)[0, 1]
                cosine = model(**given).logits_per_image
            assert match.judged
            assert match.probability == pytest.approx(float(head), abs=1e-5)
            assert match.score == pytest.approx(float(cosine), abs=1e-5)
        probabilities.append([match.probability for match in found])
        scores.append([match.score for match in found])
    for values in (probabilities, scores):
        assert np.ptp(values, axis=0).min() > 1e-4, "the image must matter, or nothing is proven"
        assert np.ptp(values, axis=1).min() > 1e-4, "the sentence must matter, or nothing is proven"


def test_what_the_bundle_says_of_itself(bundle: Bundle) -> None:
    assert bundle.manifest.tasks == ("match",)
    assert all(line.passed for line in verify(bundle))
    with pytest.raises(VlrtError, match="match"):
        bundle.require("search")
