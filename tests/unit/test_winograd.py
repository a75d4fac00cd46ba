"""Minimal filtering against torch's convolution, in torch and as a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from vlrt_export.bundle_writer import write_graph
from vlrt_export.graph import Graph
from vlrt_export.modules.winograd import WinogradConv, tile_of


def convolution(inputs: int, outputs: int, **changes: object) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, **{"kernel_size": 3, "padding": 1, **changes}).requires_grad_(False)  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("height", "width"), [(8, 12), (1, 1), (2, 3), (7, 9), (6, 5)])
@pytest.mark.parametrize(("tile", "limit"), [(2, 2e-6), (4, 4e-5)])
def test_it_is_the_convolution(tile: int, limit: float, height: int, width: int, bias: bool) -> None:
    conv = convolution(64, 80, bias=bias)
    x = torch.randn(2, 64, height, width)
    np.testing.assert_allclose(WinogradConv(conv, tile)(x), conv(x), atol=limit)


@pytest.mark.parametrize(
    ("inputs", "outputs", "changes", "tile"),
    [
        (64, 64, {}, 4),
        (960, 320, {}, 4),
        (640, 640, {}, 2),
        (63, 320, {}, 0),
        (320, 4, {}, 0),
        (64, 64, {"stride": 2}, 0),
        (64, 64, {"padding": 0}, 0),
        (64, 64, {"kernel_size": 1, "padding": 0}, 0),
        (64, 64, {"groups": 2}, 0),
        (64, 64, {"dilation": 2, "padding": 1}, 0),
        (64, 64, {"padding_mode": "circular"}, 0),
    ],
)
def test_which_layers_are_filtered(inputs: int, outputs: int, changes: dict[str, object], tile: int) -> None:
    with torch.device("meta"):
        made = nn.Conv2d(inputs, outputs, **{"kernel_size": 3, "padding": 1, **changes})  # type: ignore[arg-type]
    assert tile_of(made) == tile
    assert tile_of(nn.Linear(64, 64)) == 0


def test_the_graph_takes_every_size(tmp_path: Path) -> None:
    """Odd sizes too, where the axes do not say that they are multiples."""
    conv = convolution(64, 64)
    axes = {0: "rows", 2: "height", 3: "width"}
    module = WinogradConv(conv, 4).eval()
    spec = write_graph(
        Graph("conv", module, {"x": torch.randn(2, 64, 8, 12)}, ("y",), {"x": axes}, {"y": axes}), tmp_path
    )
    session = onnxruntime.InferenceSession(tmp_path / spec.file, providers=["CPUExecutionProvider"])
    for shape in ((1, 64, 4, 4), (3, 64, 5, 9), (2, 64, 1, 2)):
        x = torch.randn(*shape)
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], conv(x), atol=4e-5)
