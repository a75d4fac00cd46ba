"""Our CLIP against goldens of the original implementation, from its own checkpoint layouts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vlrt.errors import VlrtError
from vlrt_export.checkpoints import open_checkpoint
from vlrt_export.clip_checkpoint import load_clip, sizes_from_shapes
from vlrt_export.clip_tokenizer import find_tokenizer
from vlrt_export.modules.clip import Clip, ImageEmbedding, TextEmbedding
from vlrt_export.modules.clip_resnet import ResNetSizes

GOLDEN = Path(__file__).parents[1] / "golden"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


formula = _load(GOLDEN / "clip_original.py")
golden = np.load(GOLDEN / "clip_original.npz")


def state_dict(name: str) -> dict[str, Tensor]:
    shapes = json.loads(golden[f"{name}/shapes"].tobytes())
    return {key: torch.from_numpy(formula.weight(key, tuple(shape))) for key, shape in shapes.items()}


def pixels(name: str) -> Tensor:
    size = formula.CONFIGS[name]["image_resolution"]
    return torch.from_numpy(formula.pictures(size).astype(np.float32))


def embeddings(model: Clip, name: str) -> tuple[Tensor, Tensor]:
    ids = torch.from_numpy(formula.token_ids())
    context, index = torch.zeros(len(ids), 1, 128), torch.full_like(ids, -1)
    with torch.no_grad():
        return ImageEmbedding(model)(pixels(name)), TextEmbedding(model)(ids, context, index)


@pytest.mark.parametrize("name", formula.CONFIGS)
def test_embeddings_and_logits_are_the_originals(name: str, tmp_path: Path) -> None:
    torch.save(state_dict(name), tmp_path / "model.pt")
    model = load_clip(open_checkpoint(tmp_path / "model.pt"))
    image, text = embeddings(model, name)
    logits = model.logit_scale.detach().exp() * image @ text.t()
    np.testing.assert_allclose(image.numpy(), golden[f"{name}/image"], atol=1e-5)
    np.testing.assert_allclose(text.numpy(), golden[f"{name}/text"], atol=1e-5)
    np.testing.assert_allclose(logits.numpy(), golden[f"{name}/logits"], atol=1e-4)


def test_goldens_tell_pictures_and_sentences_apart() -> None:
    for name in formula.CONFIGS:
        for kind in ("image", "text"):
            vectors = golden[f"{name}/{kind}"]
            gaps = np.abs(vectors[:, None] - vectors[None]).max(-1)[np.triu_indices(len(vectors), 1)]
            assert gaps.min() > 5e-3, (name, kind)


@pytest.mark.parametrize("name", formula.CONFIGS)
def test_architecture_is_read_from_shapes(name: str) -> None:
    config = formula.CONFIGS[name]
    sizes = sizes_from_shapes(state_dict(name))
    assert sizes.dimension == config["embed_dim"]
    assert sizes.vision.image_size == config["image_resolution"]
    assert (sizes.text.context, sizes.text.vocabulary) == (formula.CONTEXT, formula.VOCABULARY)
    if isinstance(sizes.vision, ResNetSizes):
        assert sizes.vision.blocks == config["vision_layers"]
        assert sizes.vision.heads == config["vision_width"] * 32 // 64
    else:
        assert sizes.vision.transformer.layers == config["vision_layers"]
        assert sizes.vision.transformer.heads == config["vision_width"] // 64


class Nested(nn.Module):
    """A tree of modules that owns tensors under dotted names, as a traced original does."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for head in dict.fromkeys(name.partition(".")[0] for name in state):
            inner = {name.partition(".")[2]: tensor for name, tensor in state.items() if name.partition(".")[0] == head}
            if "" in inner:
                self.register_buffer(head, inner[""])
            else:
                self.add_module(head, Nested(inner))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", formula.CONFIGS)
def test_torchscript_archive_in_half_precision(name: str, tmp_path: Path) -> None:
    halves = {key: tensor.half() if tensor.dim() >= 2 else tensor for key, tensor in state_dict(name).items()}
    numbers = {"input_resolution": 32, "context_length": formula.CONTEXT, "vocab_size": formula.VOCABULARY}
    module = Nested(halves | {key: torch.tensor(value) for key, value in numbers.items()})
    torch.jit.trace(module, torch.zeros(1)).save(str(tmp_path / "archive.pt"))
    torch.save(halves, tmp_path / "plain.pt")
    archive = open_checkpoint(tmp_path / "archive.pt")
    assert archive.layout == "torchscript"
    found = embeddings(load_clip(archive), name)
    expected = embeddings(load_clip(open_checkpoint(tmp_path / "plain.pt")), name)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_ids_are_the_originals(tmp_path: Path) -> None:
    stored: dict[str, Any] = json.loads((GOLDEN / "clip_original_tokens.json").read_text("utf-8"))
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(formula.merges_file())
    for given in (tmp_path, tmp_path / "bpe_simple_vocab_16e6.txt.gz"):
        found = find_tokenizer(None, str(given))
        spec = found.text_spec(formula.CONTEXT, stored["size"])
        for sentence, ids in stored["ids"].items():
            inner = found.tokenizer.encode(sentence, add_special_tokens=False).ids[: spec.context - 2]
            assert [spec.start_id, *inner, spec.end_id] == ids, sentence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.conv1.weight"), "is not CLIP: its tensors are"),
        (lambda s: s.pop("text_projection"), "not CLIP in OpenAI's layout"),
        (lambda s: s.pop("visual.ln_post.bias"), "lacks `visual.ln_post.bias`"),
        (lambda s: s.update({"visual.extra": torch.zeros(1)}), "has the unknown `visual.extra`"),
        (lambda s: s.update({"ln_final.weight": torch.zeros(3)}), r"shape \[3\], expected \[128\]"),
        (lambda s: s.update({"visual.conv1.weight": torch.zeros(3)}), "shapes are not CLIP's"),
    ],
)
def test_other_checkpoints_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    state = state_dict("vit")
    change(state)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(VlrtError, match=message):
        load_clip(open_checkpoint(tmp_path / "model.pt"))


def test_activation_of_a_state_dict_can_be_named(tmp_path: Path) -> None:
    torch.save(state_dict("vit"), tmp_path / "model.pt")
    checkpoint = open_checkpoint(tmp_path / "model.pt")
    quick, exact = (embeddings(load_clip(checkpoint, name), "vit")[0] for name in ("quick_gelu", "gelu"))
    assert (quick - exact).abs().max() > 1e-3
    with pytest.raises(VlrtError, match="`relu` is not one of"):
        load_clip(checkpoint, "relu")
