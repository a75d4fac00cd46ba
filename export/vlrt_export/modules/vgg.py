"""VGG-16 and VGG-19 image encoders: annotation vectors from the last convolution."""

from __future__ import annotations

from torch import Tensor, nn

CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""Convolutions in each of the five blocks (Simonyan and Zisserman, arXiv 1409.1556, table 1, D and E)."""

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """The convolutional part of VGG up to, not including, the last max-pool.

    Args:
        name: `vgg16` or `vgg19`.

    Source: Show, Attend and Tell (arXiv 1502.03044) section 4.3: at 224 pixels the regions are 14x14x512.
    State-dict names are torchvision's (`features.N.weight`).
    """

    channels = 512

    def __init__(self, name: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for count, width in zip(CONVOLUTIONS[name], _WIDTHS, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers[:-1])

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode photographs.

        Args:
            pixels: normalised RGB [N, 3, H, W], fp32.

        Returns:
            regions [N, h*w, 512] with h = H / 16, row-major.
        """
        features: Tensor = self.features(pixels)
        return features.flatten(2).transpose(1, 2)
