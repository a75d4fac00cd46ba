"""Convolutions of 3x3 by Winograd's minimal filtering, in operators that every engine has."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

LEAST_CHANNELS = 64
"""Fewer channels on either side are faster as they are: the transforms then cost as much as the products."""

_BT = ((1.0, 0.0, -1.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, -1.0, 1.0, 0.0), (0.0, 1.0, 0.0, -1.0))
_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
_AT = ((1.0, 1.0, 1.0, 0.0), (0.0, 1.0, -1.0, -1.0))
_TILE, _STRIDE = 4, 2


class WinogradConv(nn.Module):
    """A convolution of 3x3 as 16 products per tile of 2x2 instead of 36: [N, C, H, W] to [N, D, H, W].

    Tiles are transformed by a convolution of one channel with 16 fixed kernels, multiplied in 16 matrix products, and
    transformed back by one more. The stored weights are those of the convolution; engines fold their transform when
    they load the graph. Larger tiles need fewer products, but lose a digit or two of fp32.

    Args:
        conv: with stride 1 and padding 1; see `is_winograd`.

    Source: Lavin and Gray (arXiv 1509.09308), section 4.1, F(2x2, 3x3).
    """

    tiles: Tensor
    filters: Tensor
    pixels: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        bt, g, at = (torch.tensor(matrix) for matrix in (_BT, _G, _AT))
        self.register_buffer(
            "tiles", torch.einsum("ai,bj->abij", bt, bt).reshape(-1, 1, _TILE, _TILE), persistent=False
        )
        self.register_buffer("filters", torch.einsum("ai,bj->abij", g, g).reshape(_TILE**2, 9), persistent=False)
        self.register_buffer("pixels", torch.einsum("ya,xb->yxab", at, at).reshape(_STRIDE**2, -1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        outputs = self.weight.shape[0]
        # One row and column more where the size may be odd; what they give is cut off again.
        even = [bool(statically_known_true(size % 2 == 0)) for size in (height, width)]
        below, right = (1 if known else 2 for known in even)
        rows = F.pad(x.reshape(-1, 1, height, width), (1, right, 1, below))
        tiles = F.conv2d(rows, self.tiles, stride=_STRIDE)
        down, across = tiles.shape[2:]
        # All pictures of a batch side by side: the matrices of deep layers are large, and read once.
        columns = tiles.reshape(batch, channels, _TILE**2, down * across).permute(2, 1, 0, 3).flatten(2)
        filters = (self.filters @ self.weight.reshape(-1, 9).t()).reshape(_TILE**2, outputs, channels)
        products = (filters @ columns).reshape(_TILE**2, -1)
        places = (self.pixels @ products).reshape(_STRIDE**2 * outputs, batch, down * across).transpose(0, 1)
        y = _interleave(places.reshape(batch, -1, down, across))
        y = y if self.bias is None else y + self.bias.view(-1, 1, 1)
        return y if all(even) else y[:, :, :height, :width]


def is_winograd(conv: nn.Module) -> bool:
    """Whether a layer is a convolution that `WinogradConv` computes, and faster."""
    if not isinstance(conv, nn.Conv2d) or min(conv.in_channels, conv.out_channels) < LEAST_CHANNELS:
        return False
    plain = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    return plain and conv.kernel_size == (3, 3) and conv.padding == (1, 1)


def _interleave(x: Tensor) -> Tensor:
    """Rows [N, 2·2·D, h, w] of the places of a tile to [N, D, 2h, 2w]."""
    batch, channels, height, width = x.shape
    outputs = channels // _STRIDE**2
    if torch.onnx.is_in_onnx_export():
        attributes: dict[str, Any] = {"blocksize": _STRIDE, "mode": "DCR"}
        shape = (batch, outputs, _STRIDE * height, _STRIDE * width)
        return torch.onnx.ops.symbolic("DepthToSpace", [x], attributes, dtype=x.dtype, shape=shape, version=13)
    places = x.reshape(batch, _STRIDE, _STRIDE, outputs, height, width).permute(0, 3, 4, 1, 5, 2)
    return places.reshape(batch, outputs, _STRIDE * height, _STRIDE * width)
