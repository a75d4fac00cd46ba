"""Makes `dalle.npz`: texts, pictures and logits of DALLE-pytorch's and ru-dalle's own modules with tiny random weights.

Run in an environment with these packages, installed with --no-deps: dalle-pytorch 1.6.6, rotary-embedding-torch 0.1.5,
axial_positional_embedding 0.2.1, einops, rudalle 1.1.3 (what they import and these modules do not use has stand-ins):
    python tests/golden/dalle.py
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

STAND_INS = (
    *("omegaconf", "taming", "taming.models", "taming.models.vqgan", "torchvision", "torchvision.transforms"),
    *("youtokentome", "ftfy", "webdataset", "more_itertools", "matplotlib", "matplotlib.pyplot", "pytorch_lightning"),
    *("taming.modules", "taming.modules.diffusionmodules", "taming.modules.diffusionmodules.model", "dall_e"),
    *("torchvision.transforms.functional", "cv2", "realesrgan"),
)
VAE = {"image_size": 32, "num_tokens": 24, "codebook_dim": 6, "num_layers": 2, "num_resnet_blocks": 1, "hidden_dim": 8}
DALLE = {"dim": 16, "num_text_tokens": 20, "text_seq_len": 6, "heads": 2, "dim_head": 16}
LUCID: dict[str, dict[str, Any]] = {
    "kinds": {"depth": 5, "attn_types": ["full", "axial_row", "axial_col", "conv_like"], "shift_tokens": False,
              "rotary_emb": False},
    "turned": {"depth": 3, "attn_types": ["axial_row", "full"], "shift_tokens": True, "rotary_emb": True,
               "stable": True, "sandwich_norm": True},
    "reversed": {"depth": 2, "attn_types": ["axial_col", "conv_like"], "reversible": True, "shift_tokens": True,
                 "rotary_emb": False, "share_input_output_emb": True},
}  # fmt: skip
SBER = {
    "num_layers": 6, "hidden_size": 16, "num_attention_heads": 2, "embedding_dropout_prob": 0.1,
    "output_dropout_prob": 0.1, "attention_dropout_prob": 0.1, "image_tokens_per_dim": 12, "text_seq_length": 6,
    "cogview_sandwich_layernorm": True, "cogview_pb_relax": True, "vocab_size": 26, "image_vocab_size": 24,
    "mlp_activation": "gelu_jit",
}  # fmt: skip
TEXTS = [[3, 7, 2, 11, 0, 0], [5, 1, 9, 4, 12, 6]]


def randomise(model: torch.nn.Module) -> None:
    """Weights that half precision holds exactly, so wide that the text and every earlier code decide the next."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("scale"):
                parameter.normal_(0.5, 0.1)
            elif "emb" in name:
                parameter.normal_()
            elif parameter.ndim > 1:
                parameter.normal_(0.0, 1.2 * parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
            parameter.copy_(parameter.half().float())


def state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Weights in half precision; masks, which the checkpoints bring as well, stay out."""
    found = {name: value for name, value in model.state_dict().items() if not name.endswith("_mask")}
    return {name: (v if name.endswith("pos_emb") else v.half()).numpy() for name, v in found.items()}


def lucid(name: str, more: dict[str, Any]) -> dict[str, np.ndarray]:
    import dalle_pytorch

    torch.manual_seed(len(name))
    vae = dalle_pytorch.DiscreteVAE(**VAE)
    model = dalle_pytorch.DALLE(vae=vae, **DALLE, **more).eval()
    randomise(model)
    text, words = torch.tensor(TEXTS), model.num_text_tokens
    codes = torch.zeros(2, 0, dtype=torch.long)
    with torch.no_grad():
        for _ in range(model.image_seq_len):
            logits = model(text, codes)[:, -1, words:]
            codes = torch.cat([codes, logits.argmax(-1, keepdim=True)], 1)
        greedy, codes = codes, torch.randint(24, codes.shape)
        logits = model(text, codes)[:, DALLE["text_seq_len"] :, words:]
        nothing = model(text.clone(), codes, null_cond_prob=1.0)[:, DALLE["text_seq_len"] :, words:]
        pixels = vae.decode(greedy)
        photographs = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
        found = vae.get_codebook_indices(photographs)
    arrays = {f"weights/{key}": value for key, value in state(model).items()}
    return arrays | {
        "greedy": greedy.numpy(), "codes": codes.numpy(), "logits": logits.numpy(), "nothing": nothing.numpy(),
        "pixels": pixels.numpy(), "photographs": photographs.numpy(), "found": found.numpy(),
    }  # fmt: skip


def sber_package() -> None:
    """Its packages' own first lines import what current libraries no longer have; the modules do not need it."""
    spec = find_spec("rudalle")
    folder = Path((spec.submodule_search_locations if spec else None or [])[0])
    for name, place in (("rudalle", folder), ("rudalle.dalle", folder / "dalle")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(place)]


def sber(version: str) -> dict[str, np.ndarray]:
    from rudalle.dalle.model import DalleModel

    torch.manual_seed(5)
    model = DalleModel(device="cpu", hf_version=version, **SBER).eval()
    randomise(model)
    text, words, count = torch.tensor(TEXTS), SBER["vocab_size"], SBER["image_tokens_per_dim"] ** 2
    total = SBER["text_seq_length"] + count
    mask = torch.tril(torch.ones(2, 1, total, total))
    said = text
    with torch.no_grad():
        for _ in range(count):
            logits, _ = model(said, mask, use_cache=False, cache=None, return_loss=False)
            said = torch.cat([said, logits[:, -1, words:].argmax(-1, keepdim=True)], 1)
        greedy = said[:, SBER["text_seq_length"] :]
        said = torch.cat([text, torch.randint(24, greedy.shape)], 1)
        first = SBER["text_seq_length"] - (version == "v3")
        logits, _ = model(said, mask, use_cache=False, cache=None, return_loss=False)
    arrays = {f"weights/{key}": value for key, value in state(model).items()}
    codes = said[:, SBER["text_seq_length"] :]
    return arrays | {
        "greedy": greedy.numpy(),
        "codes": codes.numpy(),
        "logits": logits[:, first : first + count, words:].numpy(),
    }


def main() -> None:
    for name in STAND_INS:
        sys.modules.setdefault(name, MagicMock())
    torch.set_num_threads(1)
    arrays: dict[str, np.ndarray] = {}
    for name, more in LUCID.items():
        arrays |= {f"lucid/{name}/{key}": value for key, value in lucid(name, more).items()}
    sber_package()
    for version in ("v2", "v3"):
        arrays |= {f"sber/{version}/{key}": value for key, value in sber(version).items()}
    described = {
        "vae": VAE,
        "lucid": {name: DALLE | more for name, more in LUCID.items()},
        "sber": SBER,
        "texts": TEXTS,
    }
    arrays["described"] = np.frombuffer(json.dumps(described).encode(), np.uint8)
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    main()
