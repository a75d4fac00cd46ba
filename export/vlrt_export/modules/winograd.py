"""Convolutions of 3x3 by Winograd's minimal filtering, in operators that every engine has."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

_LEAST_CHANNELS = 64
"""Fewer channels on either side are faster as they are: the transforms then cost as much as the products."""

_LARGE_TILES = 320 * 960
"""Input times output channels up to which tiles are 4x4: their filters take four times the convolution's memory."""

_INPUT = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        *((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0)),
        *((0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1)),
    ),
}
_FILTER = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        *((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6)),
        *((1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
    ),
}
_OUTPUT = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}


class WinogradConv(nn.Module):
    """A convolution of 3x3 with 4 products for an output place (2.25 for tiles of 4x4) instead of 9.

    [N, C, H, W] to [N, D, H, W]: tiles are transformed by a convolution of one channel with fixed kernels, multiplied
    in as many matrix products, and transformed back by one more. Filters are stored transformed: engines that fold the
    transform when they load a graph need three times the memory for it.

    Args:
        conv: with stride 1 and padding 1; see `tile_of`.
        tile: rows and columns of an output tile, 2 or 4; 4 loses a digit of fp32.

    Source: Lavin and Gray (arXiv 1509.09308), section 4.1, F(2x2, 3x3) and F(4x4, 3x3).
    """

    windows: Tensor
    places: Tensor

    def __init__(self, conv: nn.Conv2d, tile: int) -> None:
        super().__init__()
        self.tile, self.bias = tile, conv.bias
        bt, g, at = (torch.tensor(m[tile], dtype=torch.float64) for m in (_INPUT, _FILTER, _OUTPUT))
        side = len(bt)
        self.register_buffer("windows", _pairs(bt).reshape(-1, 1, side, side).float(), persistent=False)
        self.register_buffer("places", _pairs(at).reshape(tile**2, -1).float(), persistent=False)
        # Double precision for the factors, not for the weights: those of a large layer would take gigabytes.
        filters = _pairs(g).reshape(side**2, 9).float() @ conv.weight.detach().reshape(-1, 9).t()
        self.filters = nn.Parameter(filters.reshape(side**2, *conv.weight.shape[:2]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        count, outputs = self.filters.shape[:2]
        whole = [bool(statically_known_true(size % self.tile == 0)) for size in (height, width)]
        # Rows and columns more where the size may not be a multiple; what they give is cut off again.
        below, right = (1 if known else self.tile for known in whole)
        rows = F.pad(x.reshape(-1, 1, height, width), (1, right, 1, below))
        tiles = F.conv2d(rows, self.windows, stride=self.tile)
        down, across = tiles.shape[2:]
        # All pictures of a batch side by side: the matrices of deep layers are large, and read once.
        columns = tiles.reshape(batch, channels, count, down * across).permute(2, 1, 0, 3).flatten(2)
        products = (self.filters @ columns).reshape(count, -1)
        places = (self.places @ products).reshape(self.tile**2 * outputs, batch, down * across).transpose(0, 1)
        y = _interleave(places.reshape(batch, -1, down, across), self.tile)
        y = y if self.bias is None else y + self.bias.view(-1, 1, 1)
        return y if all(whole) else y[:, :, :height, :width]


def tile_of(layer: nn.Module) -> int:
    """The tile with which a layer is computed fastest; 0 where it is not a convolution that `WinogradConv` computes."""
    if not isinstance(layer, nn.Conv2d) or min(layer.in_channels, layer.out_channels) < _LEAST_CHANNELS:
        return 0
    plain = layer.stride == (1, 1) and layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not plain or layer.kernel_size != (3, 3) or layer.padding != (1, 1):
        return 0
    return 4 if layer.in_channels * layer.out_channels <= _LARGE_TILES else 2


def _pairs(matrix: Tensor) -> Tensor:
    """Products of the entries of rows a and b at columns i and j: [a, b, i, j]."""
    return torch.einsum("ai,bj->abij", matrix, matrix)


def _interleave(x: Tensor, tile: int) -> Tensor:
    """Places of tiles [N, tile·tile·D, h, w] to [N, D, tile·h, tile·w]."""
    batch, channels, height, width = x.shape
    outputs = channels // tile**2
    if torch.onnx.is_in_onnx_export():
        attributes: dict[str, Any] = {"blocksize": tile, "mode": "DCR"}
        shape = (batch, outputs, tile * height, tile * width)
        return torch.onnx.ops.symbolic("DepthToSpace", [x], attributes, dtype=x.dtype, shape=shape, version=13)
    places = x.reshape(batch, tile, tile, outputs, height, width).permute(0, 3, 4, 1, 5, 2)
    return places.reshape(batch, outputs, tile * height, tile * width)
