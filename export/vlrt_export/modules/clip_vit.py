"""CLIP's vision transformer: patches and a class token, read off at the class token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlrt_export.modules.clip_transformer import Transformer, TransformerSizes


@dataclass(frozen=True)
class VisionTransformerSizes:
    """Side of the square image and of a patch in pixels, and the transformer."""

    image_size: int
    patch_size: int
    transformer: TransformerSizes

    @property
    def positions(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


class VisionTransformer(nn.Module):
    """Pixels [N, 3, H, W] to unnormalised embeddings [N, D].

    Args:
        sizes: image, patches and transformer.
        dimension: length of an embedding.

    Source: Radford et al. (arXiv 2103.00020), section 2.4; parameters are named as in openai/CLIP ``model.py``.
    """

    def __init__(self, sizes: VisionTransformerSizes, dimension: int) -> None:
        super().__init__()
        width, epsilon = sizes.transformer.width, sizes.transformer.epsilon
        self.conv1 = nn.Conv2d(3, width, sizes.patch_size, sizes.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(sizes.positions, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width, epsilon)
        self.transformer = Transformer(sizes.transformer)
        self.ln_post = nn.LayerNorm(width, epsilon)
        self.proj = nn.Parameter(torch.randn(width, dimension) * width**-0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        start = self.class_embedding.expand(patches.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([start, patches], 1) + self.positional_embedding)
        embedding: Tensor = self.ln_post(self.transformer.first(x)) @ self.proj
        return embedding
