"""GLIDE's noised CLIP: its two towers, and the gradient of their agreement with respect to the noisy picture.

The gradient is written out layer by layer instead of traced from autograd: tracing would keep every intermediate that
autograd wants, and ties the graph to how torch happens to decompose its derivatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MEANS = (122.77093945, 116.74601272, 104.09373519)
_DEVIATIONS = (68.50053285, 66.63215831, 70.32316309)
_EPSILON = 1e-12


@dataclass(frozen=True)
class NoisedClipSizes:
    """Sizes of both towers; the defaults are those of the published checkpoints.

    Args:
        image_size, patch_size: in pixels.
        vocabulary, context: of the text tower, whose tokenizer is CLIP's.
        dimension: of the common space.
        text_heads, text_layers, image_heads, image_layers, head_width: of the transformers.
        timesteps: rows of the image tower's table, one per timestep of the diffusion.
        scale: what a cosine is multiplied with.

    Raises:
        ValueError: patches that do not fit.
    """

    image_size: int = 64
    patch_size: int = 4
    vocabulary: int = 65536
    context: int = 77
    dimension: int = 512
    text_heads: int = 8
    text_layers: int = 12
    image_heads: int = 12
    image_layers: int = 12
    head_width: int = 64
    timesteps: int = 1000
    scale: float = 100.0

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"{self.image_size} pixels do not divide into patches of {self.patch_size}")


class Affine(nn.Module):
    """A linear layer whose weight [out, in] is called `w`, as in the checkpoints."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(outputs, inputs))
        self.b = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w, self.b)

    def backward(self, gradient: Tensor) -> Tensor:
        """Gradient with respect to the input."""
        return gradient @ self.w


class LayerNorm(nn.Module):
    """Layer norm whose gain and bias are called `g` and `b`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.empty(width))
        self.b = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.g.shape, self.g, self.b, 1e-5)

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Gradient with respect to the input `x`."""
        centred = x - x.mean(-1, keepdim=True)
        inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
        normed, scaled = centred * inverse, gradient * self.g
        along = (scaled * normed).mean(-1, keepdim=True)
        return inverse * (scaled - scaled.mean(-1, keepdim=True) - normed * along)


class AttentionBlock(nn.Module):
    """Self-attention on a normalised copy, added back."""

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        width = heads * head_width
        self.ln = LayerNorm(width)
        self.f_q, self.f_k, self.f_v = Affine(width, width), Affine(width, width, bias=False), Affine(width, width)
        self.f_c = Affine(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [N, L, W] to [N, L, W]; `mask` [L, L] is added to the scores."""
        _, _, value, weights = self._weights(self.ln(x), mask)
        return x + cast(Tensor, self.f_c(self._joined(weights @ value)))

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Gradient with respect to the input `x`, without a mask."""
        query, key, value, weights = self._weights(self.ln(x), None)
        mixed = self._split(self.f_c.backward(gradient))
        by_weight = mixed @ value.transpose(2, 3)
        by_score = weights * (by_weight - (by_weight * weights).sum(-1, keepdim=True)) * self._scale(x)
        inner = self.f_q.backward(self._joined(by_score @ key))
        inner = inner + self.f_k.backward(self._joined(by_score.transpose(2, 3) @ query))
        inner = inner + self.f_v.backward(self._joined(weights.transpose(2, 3) @ mixed))
        return gradient + self.ln.backward(x, inner)

    def _weights(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query, key, value = (self._split(layer(x)) for layer in (self.f_q, self.f_k, self.f_v))
        scores = query @ key.transpose(2, 3) * self._scale(x)
        return query, key, value, (scores if mask is None else scores + mask).softmax(-1)

    def _scale(self, x: Tensor) -> float:
        return 1 / math.sqrt(x.shape[-1] // self.heads)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    @staticmethod
    def _joined(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


class FeedForwardBlock(nn.Module):
    """Two linear layers with GELU between them on a normalised copy, added back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln = LayerNorm(width)
        self.f_1, self.f_2 = Affine(width, 4 * width), Affine(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.f_2(F.gelu(self.f_1(self.ln(x)))))

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Gradient with respect to the input `x`; GELU's slope is the normal distribution plus x times its density."""
        hidden = self.f_1(self.ln(x))
        below = 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        slope = below + hidden * torch.exp(-0.5 * hidden * hidden) / math.sqrt(2 * math.pi)
        inner = self.f_1.backward(self.f_2.backward(gradient) * slope)
        return gradient + self.ln.backward(x, inner)


class Block(nn.Module):
    """One layer of a tower."""

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        self.f_attn = AttentionBlock(heads, head_width)
        self.f_mlp = FeedForwardBlock(heads * head_width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return cast(Tensor, self.f_mlp(self.f_attn(x, mask)))

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Gradient with respect to the input `x`."""
        return self.f_attn.backward(x, self.f_mlp.backward(self.f_attn(x), gradient))


class Head(nn.Module):
    """From the one place that stands for the whole into the common space, [N, W] to [N, D]."""

    def __init__(self, width: int, dimension: int) -> None:
        super().__init__()
        self.ln = LayerNorm(width)
        self.f = Affine(width, dimension, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.f(self.ln(x)))

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Gradient with respect to the input `x`."""
        return self.ln.backward(x, self.f.backward(gradient))


class NoisedClipText(nn.Module):
    """Prompts to embeddings of length one.

    Source: reproduces ``TextEncoder`` and ``CLIPModel.text_embeddings`` of openai/glide-text2im.
    """

    def __init__(self, sizes: NoisedClipSizes, end_id: int) -> None:
        super().__init__()
        width = sizes.text_heads * sizes.head_width
        self.end_id = end_id
        self.w_voc = nn.Parameter(torch.empty(sizes.vocabulary, width))
        self.w_pos = nn.Parameter(torch.empty(sizes.context, width))
        self.blocks = nn.ModuleList(Block(sizes.text_heads, sizes.head_width) for _ in range(sizes.text_layers))
        self.output = Head(width, sizes.dimension)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map ids [N, L] int64, padded to the context, to [N, D]."""
        x = F.embedding(input_ids, self.w_voc) + self.w_pos
        mask = torch.full((x.shape[1], x.shape[1]), -1e10).triu(1)
        for block in self.blocks:
            x = block(x, mask)
        places = torch.arange(input_ids.shape[1])
        last = ((input_ids == self.end_id) * places).amax(1)
        index = last[:, None, None].expand(-1, 1, x.shape[2])
        return unit(self.output(x.gather(1, index).squeeze(1)))


class NoisedClipImage(nn.Module):
    """Noisy pictures and their timesteps to embeddings of length one.

    Source: reproduces ``ImageEncoder`` and ``CLIPModel.image_embeddings`` of openai/glide-text2im.
    """

    def __init__(self, sizes: NoisedClipSizes) -> None:
        super().__init__()
        width, patch = sizes.image_heads * sizes.head_width, sizes.patch_size
        self.w_t = nn.Parameter(torch.empty(sizes.timesteps, width))
        self.patch_proj = nn.Parameter(torch.empty(width, 3, patch, patch))
        self.w_pos = nn.Parameter(torch.empty(1 + (sizes.image_size // patch) ** 2, width))
        self.ln = LayerNorm(width)
        self.blocks = nn.ModuleList(Block(sizes.image_heads, sizes.head_width) for _ in range(sizes.image_layers))
        self.output = Head(width, sizes.dimension)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Map [N, 3, H, W] in −1 to 1 at timesteps [N] int64 to [N, D]."""
        x = self.ln(self.tokens(sample, timestep))
        for block in self.blocks:
            x = block(x)
        return unit(self.output(x[:, 0]))

    def tokens(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The timestep's token, then one for each patch: [N, 1 + P, W]."""
        means, deviations = (torch.tensor(values)[:, None, None] for values in (_MEANS, _DEVIATIONS))
        patches = F.conv2d(((sample + 1) * 127.5 - means) / deviations, self.patch_proj, stride=self.patch)
        first = F.embedding(timestep, self.w_t)[:, None]
        return torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1) + self.w_pos

    def tokens_backward(self, gradient: Tensor) -> Tensor:
        """Gradient [N, 3, H, W] with respect to the picture from that of the tokens."""
        deviations = torch.tensor(_DEVIATIONS)[:, None, None]
        side = math.isqrt(self.w_pos.shape[0] - 1)
        rows, _, width = gradient.shape
        patches = gradient[:, 1:].transpose(1, 2).reshape(rows, width, side, side)
        return F.conv_transpose2d(patches, self.patch_proj, stride=self.patch) * 127.5 / deviations

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.patch_proj.shape[-1]


class ClipGradient(nn.Module):
    """Gradient of the scaled cosine between a noisy picture and a text, with respect to the picture.

    Source: Nichol et al. (arXiv 2112.10741), section 2.4; reproduces ``CLIPModel.cond_fn``, at a strength of one.
    """

    def __init__(self, image: NoisedClipImage, scale: float) -> None:
        super().__init__()
        self.image, self.scale = image, scale

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """Gradient [N, 3, H, W] at the sample [N, 3, H, W], timestep [N] int64, for text embeddings [N, D]."""
        tower = self.image
        tokens = tower.tokens(sample, timestep)
        inputs = [tower.ln(tokens)]
        for block in tower.blocks:
            inputs.append(block(inputs[-1]))
        first = inputs.pop()[:, 0]
        embedding = tower.output(first)
        gradient = tower.output.backward(first, self.scale * _unit_backward(embedding, text))
        whole = F.pad(gradient[:, None], (0, 0, 0, tokens.shape[1] - 1))
        for block in reversed(tower.blocks):
            whole = cast(Block, block).backward(inputs.pop(), whole)
        return tower.tokens_backward(tower.ln.backward(tokens, whole))


def unit(x: Tensor) -> Tensor:
    """Vectors [N, D] at length one."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / (length + _EPSILON)


def _unit_backward(x: Tensor, gradient: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    along: Tensor = (x * gradient).sum(-1, keepdim=True) / (length + _EPSILON)
    return (gradient - x * along / length) / (length + _EPSILON)
