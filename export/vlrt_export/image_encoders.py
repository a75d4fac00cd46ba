"""Image encoders of the captioners by name: module, preprocessing and the grid of regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from vlrt.errors import UsageError
from vlrt.manifest import ImageSpec
from vlrt_export.modules.efficientnet_lite import SIZES, EfficientNetLite
from vlrt_export.modules.googlenet import LAST_7, LAST_14, GoogLeNet
from vlrt_export.modules.resnet import ResNet101, from_torchvision
from vlrt_export.modules.vgg import CONVOLUTIONS, VGG

_CLASSIFIERS = ("classifier.", "fc.", "_fc.", "aux1.", "aux2.")
"""Where the published checkpoints keep what follows the last feature map."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder that can be built.

    Args:
        build: input size in pixels -> module from pixels [N, 3, H, H] to regions [N, S, C].
        image: the preprocessing its published weights were trained with.
        channels: C.
        stride: input pixels per region along a side, rounded up; 0 where the grid is fixed at 14x14.
        unused: first parts of the names that published checkpoints hold beyond the last feature map.
        rename: a published name -> the name here, or `None` where it is the same.
    """

    build: Callable[[int], nn.Module]
    image: ImageSpec
    channels: int
    stride: int
    unused: tuple[str, ...] = _CLASSIFIERS
    rename: Callable[[str], str | None] = lambda name: None

    def grid(self, size: int) -> tuple[int, int]:
        """Rows and columns of regions for a square input of `size` pixels."""
        side = -(-size // self.stride) if self.stride else 14
        return side, side

    def own_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's tensors out of a classification checkpoint, or out of one that holds the encoder alone."""
        return {self.rename(name) or name: tensors[name] for name in tensors if not name.startswith(self.unused)}


def encoder_names() -> list[str]:
    """All names that `encoder_choice` knows."""
    return [*CONVOLUTIONS, "googlenet", "resnet101", *SIZES]


def encoder_choice(name: str, *, pooled: bool = False) -> EncoderChoice:
    """The encoder of that name.

    Args:
        pooled: the captioner reads the mean of the regions only (Show and Tell): GoogLeNet then gives its last 7x7
            map, whose mean is the vector its classifier reads, else the finer 14x14 map to attend to.

    Raises:
        UsageError: unknown name.
    """
    if name in SIZES:
        build = partial(_efficientnet_lite, name)
        return EncoderChoice(build, _lite_image(SIZES[name].image_size), EfficientNetLite.channels, 32)
    if name in CONVOLUTIONS:
        return EncoderChoice(lambda size: VGG(name), imagenet_image(224), VGG.channels, 16)
    if name == "googlenet":
        last = LAST_7 if pooled else LAST_14
        image = ImageSpec((224, 224), (0.5,) * 3, (0.5,) * 3, scale=1 / 255)
        if pooled:
            return EncoderChoice(lambda size: GoogLeNet(last), image, 1024, 32)
        return EncoderChoice(lambda size: GoogLeNet(last), image, 832, 16, (*_CLASSIFIERS, "inception5"))
    if name == "resnet101":
        image = imagenet_image(256, "bilinear")
        return EncoderChoice(lambda size: ResNet101(size), image, ResNet101.channels, 0, rename=from_torchvision)
    raise UsageError(f"there is no image encoder `{name}`", f"one of {', '.join(encoder_names())}")


def imagenet_image(size: int, interpolation: Literal["bilinear", "bicubic"] = "bicubic") -> ImageSpec:
    """Stretched to a square, 0 to 1, ImageNet's mean and deviation."""
    return ImageSpec((size, size), _IMAGENET_MEAN, _IMAGENET_STD, scale=1 / 255, interpolation=interpolation)


def _lite_image(size: int) -> ImageSpec:
    return ImageSpec((size, size), (127.0,) * 3, (128.0,) * 3)


def _efficientnet_lite(name: str, size: int) -> nn.Module:
    return EfficientNetLite(SIZES[name])


def randomise(encoder: nn.Module, pixels: Tensor) -> None:
    """Random weights under which activations keep their scale through the depth, as trained ones would.

    Convolutions are drawn anew (He et al., arXiv 1502.01852). Each batch norm divides by the root mean square of what
    reaches it and subtracts nothing: removing the mean of nearly constant random maps would amplify rounding errors.

    Args:
        encoder: in eval mode.
        pixels: [N, 3, H, W] to measure on.
    """
    handles = []
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.02)
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(_measure))
    with torch.no_grad():
        encoder.eval()(pixels)
    for handle in handles:
        handle.remove()


def _measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
        norm.running_var.fill_(float(inputs[0].pow(2).mean()))
