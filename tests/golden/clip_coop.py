"""Makes ``clip_coop.npz`` with CoOp's own ``PromptLearner`` and ``TextEncoder`` around the original CLIP.

    python tests/golden/clip_coop.py PATH_OF_A_CHECKOUT_OF_COOP

The golden in the repository was made with github.com/KaiyangZhou/CoOp at ff61507, torch 2.13.0, ftfy 6.3.1. What that
code imports beside CLIP (dassl, torchvision) takes no part in prompts and is stood in for by empty modules.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

HERE = Path(__file__).parent
LABELS = ["dog", "the cat", "photo of_a dog"]
VECTORS = 5


def context(own: bool) -> NDArray[np.float32]:
    """Learned vectors by formula: [5, 128] for all labels, or [3, 5, 128] of each label's own."""
    shape = (len(LABELS), VECTORS, 128) if own else (VECTORS, 128)
    return (np.random.default_rng(11).random(shape) * 2 - 1).astype(np.float32)


def main(checkout: Path) -> None:
    original = _load(HERE / "clip_original.py", "clip_original")
    _stand_in_modules()
    sys.path.insert(0, str(checkout))
    from clip import clip  # type: ignore[import-not-found]
    from clip.model import CLIP  # type: ignore[import-not-found]
    from clip.simple_tokenizer import SimpleTokenizer  # type: ignore[import-not-found]

    coop = _load(checkout / "trainers" / "coop.py", "coop")
    vocabulary = HERE / "clip_coop_merges.txt.gz"
    vocabulary.write_bytes(original.merges_file())
    clip._tokenizer = coop._tokenizer = SimpleTokenizer(str(vocabulary))
    vocabulary.unlink()
    clip.tokenize = functools.partial(clip.tokenize, context_length=original.CONTEXT)

    model = CLIP(**{"vision_patch_size": None} | original.CONFIGS["vit"], **original.TEXT).eval()
    state = {k: torch.from_numpy(original.weight(k, tuple(t.shape))) for k, t in model.state_dict().items()}
    model.load_state_dict(state)
    arrays = {}
    for own in (False, True):
        for position in ("end", "middle", "front"):
            arrays[f"{'own' if own else 'all'}/{position}"] = _embeddings(coop, model, own, position)
    np.savez_compressed(HERE / "clip_coop.npz", **arrays)


def _embeddings(coop: Any, model: Any, own: bool, position: str) -> NDArray[np.float32]:
    settings = SimpleNamespace(N_CTX=VECTORS, CTX_INIT="", CSC=own, CLASS_TOKEN_POSITION=position)
    size = SimpleNamespace(SIZE=[model.visual.input_resolution])
    learner = coop.PromptLearner(SimpleNamespace(TRAINER=SimpleNamespace(COOP=settings), INPUT=size), LABELS, model)
    with torch.no_grad():
        learner.ctx.copy_(torch.from_numpy(context(own)))
        features = coop.TextEncoder(model)(learner(), learner.tokenized_prompts)
        found: NDArray[np.float32] = (features / features.norm(dim=-1, keepdim=True)).numpy()
    return found


def _stand_in_modules() -> None:
    class Registry:
        def register(self) -> Any:
            return lambda cls: cls

    names = {
        "dassl": {},
        "dassl.engine": {"TRAINER_REGISTRY": Registry(), "TrainerX": object},
        "dassl.metrics": {"compute_accuracy": None},
        "dassl.utils": {"load_pretrained_weights": None, "load_checkpoint": None},
        "dassl.optim": {"build_optimizer": None, "build_lr_scheduler": None},
        "torchvision": {},
        "torchvision.transforms": dict.fromkeys(("Compose", "Resize", "CenterCrop", "ToTensor", "Normalize")),
    }
    for name, members in names.items():
        module = ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module


def _load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        sys.exit(f"{path} is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]))
