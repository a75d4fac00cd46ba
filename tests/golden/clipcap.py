"""Makes `clipcap.npz`: prefixes and captions of the original ClipCap modules with tiny random weights.

Run with a checkout of https://github.com/rmokady/CLIP_prefix_caption:
    python tests/golden/clipcap.py PATH_OF_THE_CHECKOUT
Its files are imported, with stand-ins for what they import and these captions do not use.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import torch
import transformers

WORDS, FEATURES, WIDTH, HEADS, STOP = 40, 12, 16, 2, 7
MAPPERS = {
    "mlp": {"prefix_length": 4, "prefix_size": FEATURES},
    "transformer": {"prefix_length": 3, "clip_length": 5, "prefix_size": FEATURES, "num_layers": 2},
}


class Words:
    """Stands in for the tokenizer: ids are their own text."""

    def encode(self, text: str) -> list[int]:
        return [STOP] if text == "." else []

    def decode(self, ids: np.ndarray) -> list[int]:
        return [int(i) for i in np.atleast_1d(ids)]


def gpt2() -> transformers.GPT2LMHeadModel:
    config = transformers.GPT2Config(vocab_size=WORDS, n_positions=80, n_embd=WIDTH, n_layer=1, n_head=HEADS)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3 if "wte" in name or "wpe" in name else 0.9)
        model.transformer.wte.weight[STOP] += 0.5 * torch.randn(WIDTH)
    return model


def main(checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    for absent in ("cog", "clip", "skimage", "skimage.io"):
        sys.modules[absent] = MagicMock()
    sys.modules["cog"].Predictor = object
    sys.modules["cog"].input = lambda *_, **__: lambda function: function
    transformers.GPT2LMHeadModel.from_pretrained = classmethod(lambda cls, name: gpt2())
    sys.modules["transformers"].AdamW = torch.optim.AdamW  # later versions of the library have none
    train: ModuleType = importlib.import_module("train")
    predict: ModuleType = importlib.import_module("predict")
    found: dict[str, np.ndarray] = {}
    for name, options in MAPPERS.items():
        torch.manual_seed(11)
        kind = train.MappingType.MLP if name == "mlp" else train.MappingType.Transformer
        model = train.ClipCaptionModel(**options, mapping_type=kind).eval()
        features = torch.randn(4, FEATURES)
        with torch.no_grad():
            prefixes = model.clip_project(features).reshape(4, options["prefix_length"], -1)
        found[f"{name}/features"], found[f"{name}/prefix"] = features.numpy(), prefixes.numpy()
        for i, prefix in enumerate(prefixes):
            greedy = predict.generate2(model, Words(), embed=prefix[None])
            beams = predict.generate_beam(model, Words(), embed=prefix[None])
            print(name, i, greedy, beams[0])
            found[f"{name}/greedy {i}"] = np.array(greedy)
        found |= {f"{name}/weights/{key}": value.numpy() for key, value in model.state_dict().items()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
