"""Makes `discrete_vae/`: DALLE-pytorch's discrete VAE with tiny random weights, as it saves it, and what it gives.

Run with a checkout of https://github.com/lucidrains/DALLE-pytorch and the package `einops` on the path:
    python tests/golden/discrete_vae.py PATH_OF_THE_CHECKOUT
Its files are imported, with stand-ins for what they import and this model does not use.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch

SIZES = {"image_size": 32, "num_layers": 2, "num_tokens": 20, "codebook_dim": 6, "hidden_dim": 8}
FOLDER = Path(__file__).with_suffix("")
ABSENT = ("axial_positional_embedding", "x_clip", "rotary_embedding_torch", "g_mlp_pytorch", "omegaconf", "taming")


def main(checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    for name in (*ABSENT, "taming.models", "taming.models.vqgan", "pkg_resources"):
        sys.modules[name] = MagicMock()
    for name in ("distributed_utils", "vae", "transformer", "tokenizer"):
        sys.modules[f"dalle_pytorch.{name}"] = MagicMock()
    sys.modules["dalle_pytorch.distributed_utils"].is_distributed = False
    library = importlib.import_module("dalle_pytorch.dalle_pytorch")
    FOLDER.mkdir(exist_ok=True)
    for name, blocks in (("plain", 0), ("blocks", 2)):
        torch.manual_seed(5)
        sizes = SIZES | {"num_resnet_blocks": blocks}
        model = library.DiscreteVAE(**sizes).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
            pixels = torch.rand(2, 3, 32, 32)
            last = model.encoder[-1].bias
            last -= model(pixels, return_logits=True).mean((0, 2, 3))
            codes = model.get_codebook_indices(pixels)
            painted = ((model.decode(codes) + 1) / 2).clamp(0, 1)
        print(name, len(codes.unique()), "codes used;", painted.std().item(), "deviation of pixels")
        torch.save({"hparams": sizes, "weights": model.state_dict()}, FOLDER / f"{name}.pt")
        found = {"pixels": pixels, "codes": codes.reshape(2, 8, 8), "painted": painted}
        np.savez_compressed(FOLDER / f"{name}.npz", **{key: value.numpy() for key, value in found.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
