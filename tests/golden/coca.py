"""Makes `coca.npz`: embeddings, logits and captions of open_clip's own CoCa modules with tiny random weights.

Run with a checkout of https://github.com/mlfoundations/open_clip (its package imports torchvision, which these modules
do not use; a stand-in takes its place), and transformers 4.57:
    python tests/golden/coca.py PATH_OF_THE_CHECKOUT
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import torch

START, END, PAD, WORDS, CONTEXT = 518, 519, 0, 520, 16
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32, "layers": 2, "width": 48, "patch_size": 8, "head_width": 16, "attentional_pool": True,
        "attn_pooler_queries": 9, "attn_pooler_heads": 4, "output_tokens": True,
    },
    "text_cfg": {
        "context_length": CONTEXT, "vocab_size": WORDS, "width": 32, "heads": 4, "layers": 2, "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": CONTEXT, "vocab_size": WORDS, "width": 32, "heads": 4, "layers": 3, "attn_pooler_heads": 4,
    },
    "custom_text": True,
}  # fmt: skip
SETTINGS = {
    "greedy": {"num_beams": 1, "max_new_tokens": 10},
    "beam 3": {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 10},
    "beam 6": {"num_beams": 6, "num_return_sequences": 2, "max_new_tokens": 10, "min_length": 5},
}


def widen(model: torch.nn.Module) -> None:
    """Random weights that half precision holds exactly, so wide that the image decides the words."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "logit_scale":
                parameter.fill_(2.5)
            elif parameter.ndim > 1:
                parameter.normal_(0.0, 1.3 * parameter.shape[-1] ** -0.5)
            else:
                parameter.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.2)
        bias, head = model.text_decoder.ln_final.bias, model.text_decoder.text_projection
        bias.normal_()
        head.normal_(0.0, 0.3)
        head[:, PAD] = -bias  # what follows a padding id is masked, and no caption should hang on that
        head[:, END] += 0.27 * bias
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())


def main(checkout: Path) -> None:
    import transformers.generation  # noqa: F401 - it looks for torchvision, so before the stand-in is there

    for absent in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
        sys.modules[absent] = MagicMock()
    package = ModuleType("open_clip")
    package.__path__ = [str(checkout / "src" / "open_clip")]  # without its `__init__`, which imports everything
    sys.modules["open_clip"] = package
    coca = importlib.import_module("open_clip.coca_model")
    generation = importlib.import_module("open_clip.generation")
    torch.manual_seed(8)
    model = coca.CoCa(**{k: v for k, v in CONFIG.items() if k != "custom_text"}).eval()
    widen(model)
    pixels = torch.randn(3, 3, 32, 32)
    texts = torch.full((3, CONTEXT), PAD)
    for row, length in enumerate((3, 7, CONTEXT - 2)):
        texts[row, : length + 2] = torch.tensor([START, *torch.randint(1, START, (length,)).tolist(), END])
    found: dict[str, np.ndarray] = {"config": np.array(json.dumps(CONFIG)), "pixels": pixels.numpy()}
    with torch.no_grad():
        out = model(pixels, texts)
        _, states = model._encode_image(pixels)
    found |= {"texts": texts.numpy(), "image": out["image_features"].numpy(), "text": out["text_features"].numpy()}
    found |= {"logits": out["logits"][2].numpy(), "states": states.numpy()}
    for name, setting in SETTINGS.items():
        wrapper = generation.MultimodalGenerationWrapper(
            lambda ids: model._encode_text(ids)[1], model.text_decoder, states, WORDS, PAD, END, START
        )
        options = {**setting, "do_sample": False, "use_cache": False, "return_dict_in_generate": True}
        start = torch.full((3, 1), START)
        with torch.no_grad():
            made = wrapper.generate(start, image_embs=states, output_scores=True, **options)
        found[name] = made.sequences.numpy()
        print(name, made.sequences.tolist())
        if setting["num_beams"] > 1:
            found[f"{name}, scores"] = made.sequences_scores.numpy()
    found |= {f"weights/{name}": value.half().numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
