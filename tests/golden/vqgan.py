"""Makes `vqgan.npz`: codes and pictures of taming-transformers' VQGAN, nearest code and Gumbel, with seeded weights.

Run with the package `taming-transformers-rom1504` 0.0.6 on the path (a packaged taming-transformers):
    python tests/golden/vqgan.py
Its training framework is replaced by a stand-in. Gumbel's codes are the likeliest ones, without its noise.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from seeded_weights import seeded

CONFIG = {
    "double_z": False,
    "z_channels": 8,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.0,
}
CODES, WIDTH = 48, 8


def models() -> dict[str, torch.nn.Module]:
    lightning = ModuleType("pytorch_lightning")
    lightning.LightningModule = torch.nn.Module  # type: ignore[attr-defined]
    sys.modules["pytorch_lightning"] = lightning
    sys.modules["taming.main"] = MagicMock()
    from taming.models import vqgan

    vqgan.instantiate_from_config = lambda config: torch.nn.Module()
    given = {"ddconfig": CONFIG, "lossconfig": None, "n_embed": CODES, "embed_dim": WIDTH}
    return {"nearest": vqgan.VQModel(**given), "gumbel": vqgan.GumbelVQ(**given, temperature_scheduler_config=None)}


def main() -> None:
    found: dict[str, np.ndarray] = {"config": np.array(json.dumps(CONFIG))}
    for name, model in models().items():
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        model.load_state_dict({key: torch.from_numpy(value) for key, value in seeded(shapes).items()})
        model.eval()
        pixels = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            states = model.quant_conv(model.encoder(2 * pixels - 1))
            if name == "nearest":
                codes = model.quantize(states)[2][2].reshape(2, *states.shape[2:])
                vectors = model.quantize.embedding(codes)
            else:
                codes = model.quantize.proj(states).argmax(1)
                vectors = model.quantize.embed(codes)
            painted = ((model.decode(vectors.permute(0, 3, 1, 2)) + 1) / 2).clamp(0, 1)
        print(name, len(codes.unique()), "codes used;", painted.std().item(), "deviation of pixels")
        more = {"pixels": pixels, "codes": codes, "painted": painted}
        found |= {f"{name}/{key}": value.numpy() for key, value in more.items()}
        found[f"{name}/shapes"] = np.array(json.dumps(shapes))
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)


if __name__ == "__main__":
    main()
