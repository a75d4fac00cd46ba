"""Makes ``clip_original.npz`` and ``clip_original_tokens.json`` with the original implementation of CLIP.

    python tests/golden/clip_original.py PATH_OF_A_CHECKOUT_OF_OPENAI_CLIP

The goldens in the repository were made with github.com/openai/CLIP at d05afc4, torch 2.13.0, ftfy 6.3.1. Weights
and pictures follow formulas that the tests compute again; only results are stored. The tokens need `ftfy` and `regex`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

HERE = Path(__file__).parent
CONTEXT, VOCABULARY = 16, 640
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"image_resolution": 32, "vision_layers": 2, "vision_width": 128, "vision_patch_size": 8, "embed_dim": 48},
    "rn-narrow": {"image_resolution": 64, "vision_layers": (1, 2, 1, 1), "vision_width": 16, "embed_dim": 48},
    "rn-wide": {"image_resolution": 96, "vision_layers": (2, 1, 2, 1), "vision_width": 24, "embed_dim": 32},
}
TEXT = {
    "context_length": CONTEXT,
    "vocab_size": VOCABULARY,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 2,
}
LOGIT_SCALE = 3.0

MERGES = (
    "t h\na n\ni n\nth e</w>\nan d</w>\nd o\ndo g</w>\no f</w>\np h\nph o\npho t\nphot o</w>\na</w> b\nc a\nca t</w>"
)
SENTENCES = [
    "a photo of the dog",
    "A  PHOTO of the\tDog and THE cat!!",
    "it's 42 dogs; they'll see the cat's hat",
    "naïve café — 犬 🐕",
    "x & y <b>",
    "  the  ",
    "<|startoftext|>a cat<|endoftext|>",
    "the dog and the cat of the photo and the dog and the cat of the photo again",
]


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A weight by formula: uniform numbers seeded by the tensor's name, of a spread that keeps inputs apart."""
    if name == "logit_scale":
        return np.asarray(LOGIT_SCALE, np.float32)
    if name.endswith("num_batches_tracked"):
        return np.zeros((), np.float32)
    uniform = np.random.default_rng(zlib.crc32(name.encode())).random(shape) * 2 - 1
    if name.endswith("running_var"):
        spread, centre = 0.5, 1.0
    elif "embedding" in name:
        spread, centre = 0.1 if "attnpool" in name else 1.0, 0.0
    elif len(shape) >= 2:
        inputs = shape[0] if name.endswith(("proj", "text_projection")) else int(np.prod(shape[1:]))
        spread, centre = 2.0 * inputs**-0.5, 0.0
    else:
        norm = name.endswith("weight")
        spread, centre = (0.3, 1.0) if norm else (0.3, 0.0)
    return (uniform * spread + centre).astype(np.float32)


def pictures(size: int) -> NDArray[np.float32]:
    """Three pictures [3, 3, size, size] of waves and checks, already normalised."""
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(9 * x + 2 * y), np.cos(14 * x * y), np.sign(np.sin(20 * x) * np.sin(25 * y))]
    return np.stack(
        [np.stack([np.roll(waves[(i + c) % 3], 3 * i) * (1 + 0.3 * c) for c in range(3)]) for i in range(3)]
    )


def token_ids() -> NDArray[np.int64]:
    """Four rows of ids; the end, the largest id, stands at another place in each, with zeros or ids behind it."""
    ids = np.random.default_rng(7).integers(1, VOCABULARY - 2, (4, CONTEXT))
    ids[:, 0] = VOCABULARY - 2
    for row, end in enumerate((2, 5, CONTEXT - 1, 9)):
        ids[row, end] = VOCABULARY - 1
        if row % 2 == 0:
            ids[row, end + 1 :] = 0
    return ids


def merges_file() -> bytes:
    """A vocabulary file in the original's form, with a handful of merges."""
    return gzip.compress(f"#version: 0.2\n{MERGES}\n".encode(), mtime=0)


def main(checkout: Path) -> None:
    model_code = _module(checkout / "clip" / "model.py")
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, config in CONFIGS.items():
        original = model_code.CLIP(**{"vision_patch_size": None} | config, **TEXT).eval()
        state = {key: torch.from_numpy(weight(key, tuple(t.shape))) for key, t in original.state_dict().items()}
        original.load_state_dict(state)
        pixels = torch.from_numpy(pictures(config["image_resolution"]).astype(np.float32))
        with torch.no_grad():
            image, text = original.encode_image(pixels), original.encode_text(torch.from_numpy(token_ids()))
            logits, _ = original(pixels, torch.from_numpy(token_ids()))
        found = {
            "image": image / image.norm(dim=1, keepdim=True),
            "text": text / text.norm(dim=1, keepdim=True),
            "logits": logits,
        }
        for key, value in found.items():
            arrays[f"{name}/{key}"] = value.numpy()
        cosines = found["image"] @ found["image"].t()
        print(name, "cosines between the pictures", cosines[0, 1:].tolist(), cosines[1, 2].item())
        names = {key: list(t.shape) for key, t in original.state_dict().items()}
        arrays[f"{name}/shapes"] = np.frombuffer(json.dumps(names).encode(), np.uint8)
    np.savez_compressed(HERE / "clip_original.npz", **arrays)
    _write_tokens(checkout)


def _write_tokens(checkout: Path) -> None:
    code = _module(checkout / "clip" / "simple_tokenizer.py")
    vocabulary = HERE / "clip_original_merges.txt.gz"
    vocabulary.write_bytes(merges_file())
    tokenizer = code.SimpleTokenizer(str(vocabulary))
    vocabulary.unlink()
    start, end = tokenizer.encoder["<|startoftext|>"], tokenizer.encoder["<|endoftext|>"]
    rows = {}
    for sentence in SENTENCES:
        tokens = [start, *tokenizer.encode(sentence), end]
        if len(tokens) > CONTEXT:
            tokens = [*tokens[: CONTEXT - 1], end]
        rows[sentence] = tokens
    golden = {"ids": rows, "size": len(tokenizer.encoder)}
    (HERE / "clip_original_tokens.json").write_text(json.dumps(golden, indent=1) + "\n", "utf-8")


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        sys.exit(f"{path} is not there; give a checkout of github.com/openai/CLIP")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]))
