"""CLIP: two towers into one space, each with a normalised output, and a learned temperature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlrt_export.modules.clip_resnet import ModifiedResNet, ResNetSizes
from vlrt_export.modules.clip_text import TextSizes, TextTransformer
from vlrt_export.modules.clip_vit import VisionTransformer, VisionTransformerSizes


@dataclass(frozen=True)
class ClipSizes:
    """Image tower, text tower, and length of an embedding."""

    vision: VisionTransformerSizes | ResNetSizes
    text: TextSizes
    dimension: int


class Clip(nn.Module):
    """Both towers and the temperature; parameters are named as in openai/CLIP, the text tower's under ``text.``.

    Source: Radford et al. (arXiv 2103.00020), figure 3.
    """

    def __init__(self, sizes: ClipSizes) -> None:
        super().__init__()
        self.sizes = sizes
        if isinstance(sizes.vision, ResNetSizes):
            self.visual: nn.Module = ModifiedResNet(sizes.vision, sizes.dimension)
        else:
            self.visual = VisionTransformer(sizes.vision, sizes.dimension)
        self.text = TextTransformer(sizes.text, sizes.dimension)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())


class ImageEmbedding(nn.Module):
    """Pixels [N, 3, H, W] to embeddings [N, D] of length one."""

    def __init__(self, model: Clip) -> None:
        super().__init__()
        self.visual = model.visual

    def forward(self, pixels: Tensor) -> Tensor:
        return _normalised(self.visual(pixels))


class TextEmbedding(nn.Module):
    """Ids and learned context (see `TextTransformer.forward`) to embeddings [N, D] of length one."""

    def __init__(self, model: Clip) -> None:
        super().__init__()
        self.text = model.text

    def forward(self, input_ids: Tensor, context: Tensor, context_index: Tensor) -> Tensor:
        return _normalised(self.text(input_ids, context, context_index))


def randomise(model: nn.Module, seed: int) -> None:
    """Fills a model with random weights of a spread that keeps different inputs apart through all layers.

    Args:
        seed: of torch's generator; the same seed gives the same weights.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, mean: float, deviation: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation + mean)

    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.dim() >= 2:
                fan_in = tensor.shape[0] if name.endswith("proj") else tensor[0].numel()
                normal(tensor, 0.0, 1.0 if "embedding" in name else fan_in**-0.5)
            elif tensor.dim() == 1:
                normal(tensor, 1.0 if name.endswith("weight") else 0.0, 0.2)


def _normalised(x: Tensor) -> Tensor:
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / length
