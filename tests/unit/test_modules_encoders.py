"""Image encoders against independent computations of the same networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from vlrt.errors import UsageError
from vlrt_export.image_encoders import encoder_choice, encoder_names, randomise
from vlrt_export.modules.efficientnet_lite import SIZES, EfficientNetLite, SameConv2d, scaled_stages
from vlrt_export.modules.googlenet import LAST_7, LAST_14, GoogLeNet
from vlrt_export.modules.resnet import RESNET101_BLOCKS, ResNet101, adaptive_average, from_torchvision
from vlrt_export.modules.vgg import VGG


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def _random(encoder: nn.Module, size: int) -> nn.Module:
    randomise(encoder, torch.randn(2, 3, size, size))
    return encoder


class TestEfficientNetLite:
    def test_lite2_has_the_published_stages(self) -> None:
        stages = [
            (s.kernel, s.stride, s.expansion, s.channels, s.blocks) for s in scaled_stages(SIZES["efficientnet-lite2"])
        ]
        assert stages == [
            (3, 1, 1, 16, 1),
            (3, 2, 6, 24, 3),
            (5, 2, 6, 48, 3),
            (3, 2, 6, 88, 4),
            (5, 1, 6, 120, 4),
            (5, 2, 6, 208, 5),
            (3, 1, 6, 352, 1),
        ]

    @pytest.mark.parametrize(
        ("name", "channels", "blocks"),
        [
            ("efficientnet-lite0", (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
            ("efficientnet-lite1", (16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1)),
            ("efficientnet-lite3", (24, 32, 48, 96, 136, 232, 384), (1, 3, 3, 5, 5, 6, 1)),
            ("efficientnet-lite4", (24, 32, 56, 112, 160, 272, 448), (1, 4, 4, 6, 6, 8, 1)),
        ],
    )
    def test_the_other_sizes_scale(self, name: str, channels: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        stages = scaled_stages(SIZES[name])
        assert tuple(s.channels for s in stages) == channels
        assert tuple(s.blocks for s in stages) == blocks

    @pytest.mark.parametrize(
        ("size", "kernel", "stride", "before", "after"),
        [(260, 3, 2, 0, 1), (130, 3, 2, 0, 1), (65, 5, 2, 2, 2), (33, 3, 2, 1, 1), (17, 5, 1, 2, 2), (6, 5, 2, 1, 2)],
    )
    def test_same_padding_puts_the_odd_pixel_last(
        self, size: int, kernel: int, stride: int, before: int, after: int
    ) -> None:
        layer = SameConv2d(2, 3, kernel, stride, bias=False)
        x = torch.randn(1, 2, size, 9)
        across = _same(9, kernel, stride)
        expected = F.conv2d(F.pad(x, (*across, before, after)), layer.weight, None, stride)
        assert torch.equal(layer(x), expected)
        assert expected.shape[2] == -(-size // stride)

    def test_the_maps_of_lite2_are_those_of_the_card(self) -> None:
        encoder = EfficientNetLite(SIZES["efficientnet-lite2"]).eval()
        sizes = []
        for block in encoder._blocks:
            block.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
        regions = encoder(torch.randn(1, 3, 260, 260))
        assert list(dict.fromkeys(sizes)) == [130, 65, 33, 17, 9]
        assert regions.shape == (1, 81, 1280)

    def test_it_is_the_network_of_the_card_layer_by_layer(self) -> None:
        encoder = _random(EfficientNetLite(SIZES["efficientnet-lite0"]), 64)
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(encoder(x), _lite_by_hand(encoder.state_dict(), x), atol=1e-4, rtol=1e-4)


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _lite_by_hand(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Lite0 from the state dict alone; strides are where the published stages have them."""

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        kernel = weights[f"{conv}.weight"]
        groups = x.shape[1] // kernel.shape[1]
        margins = (*_same(x.shape[3], kernel.shape[3], stride), *_same(x.shape[2], kernel.shape[2], stride))
        y = F.conv2d(F.pad(x, margins), kernel, None, stride, groups=groups)
        scale = weights[f"{norm}.weight"] / torch.sqrt(weights[f"{norm}.running_var"] + 1e-3)
        shift = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
        return y * scale[:, None, None] + shift[:, None, None]

    x = layer(x, "_conv_stem", "_bn0", 2).clamp(0, 6)
    strided = {1, 3, 5, 11}
    for i in range(16):
        name = f"_blocks.{i}"
        y = layer(x, f"{name}._expand_conv", f"{name}._bn0").clamp(0, 6) if i else x
        y = layer(y, f"{name}._depthwise_conv", f"{name}._bn1", 2 if i in strided else 1).clamp(0, 6)
        y = layer(y, f"{name}._project_conv", f"{name}._bn2")
        x = x + y if y.shape == x.shape else y
    x = layer(x, "_conv_head", "_bn1").clamp(0, 6)
    return x.flatten(2).permute(0, 2, 1)


class TestVGG:
    @pytest.mark.parametrize(
        ("name", "places"),
        [
            ("vgg16", (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
            ("vgg19", (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)),
        ],
    )
    def test_names_are_torchvisions_and_the_layers_are_plain(self, name: str, places: tuple[int, ...]) -> None:
        encoder = _random(VGG(name), 64)
        weights = encoder.state_dict()
        assert sorted(weights) == sorted(f"features.{i}.{kind}" for i in places for kind in ("weight", "bias"))
        x = pixels = torch.randn(2, 3, 64, 64)
        for i, following in zip(places, (*places[1:], places[-1] + 2)):
            x = F.conv2d(x, weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], padding=1).relu()
            if following - i == 3:  # convolution, ReLU, and the pool between two blocks
                x = F.max_pool2d(x, 2)
        assert x.shape == (2, 512, 4, 4)
        torch.testing.assert_close(encoder(pixels), x.flatten(2).permute(0, 2, 1))

    def test_regions_at_224_pixels_are_the_papers(self) -> None:
        assert VGG("vgg16").eval()(torch.randn(1, 3, 224, 224)).shape == (1, 196, 512)


_GOOGLENET = {
    "3a": (64, 128, 32, 32),
    "3b": (128, 192, 96, 64),
    "4a": (192, 208, 48, 64),
    "4b": (160, 224, 64, 64),
    "4c": (128, 256, 64, 64),
    "4d": (112, 288, 64, 64),
    "4e": (256, 320, 128, 128),
    "5a": (256, 320, 128, 128),
    "5b": (384, 384, 128, 128),
}
"""Output channels of the four branches (Szegedy et al., table 1)."""


class TestGoogLeNet:
    @pytest.mark.parametrize(("last", "shape"), [(LAST_14, (1, 196, 832)), (LAST_7, (1, 49, 1024))])
    def test_feature_maps_at_224_pixels(self, last: str, shape: tuple[int, ...]) -> None:
        encoder = GoogLeNet(last).eval()
        assert encoder(torch.randn(1, 3, 224, 224)).shape == shape
        assert encoder.channels == shape[-1]

    def test_names_are_torchvisions(self) -> None:
        names = {
            name.removesuffix(".conv.weight") for name in GoogLeNet().state_dict() if name.endswith(".conv.weight")
        }
        branches = ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1")
        assert names == {"conv1", "conv2", "conv3"} | {f"inception{i}.{b}" for i in _GOOGLENET for b in branches}
        shapes = {name: tuple(t.shape) for name, t in GoogLeNet().state_dict().items()}
        for stage, channels in _GOOGLENET.items():
            ends = ("branch1", "branch2.1", "branch3.1", "branch4.1")
            assert tuple(shapes[f"inception{stage}.{b}.conv.weight"][0] for b in ends) == channels
        assert shapes["inception3a.branch3.1.conv.weight"][2:] == (3, 3)

    def test_it_is_the_network_of_the_paper_layer_by_layer(self) -> None:
        encoder = _random(GoogLeNet(), 70)
        x = torch.randn(2, 3, 70, 70)
        torch.testing.assert_close(encoder(x), _googlenet_by_hand(encoder.state_dict(), x), atol=1e-4, rtol=1e-4)


def _googlenet_by_hand(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    def layer(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.conv.weight"]
        y = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2)
        statistics = weights[f"{name}.bn.running_mean"], weights[f"{name}.bn.running_var"]
        return F.batch_norm(y, *statistics, weights[f"{name}.bn.weight"], weights[f"{name}.bn.bias"], eps=1e-3).relu()

    def pool(x: Tensor, kernel: int) -> Tensor:
        return F.max_pool2d(x, kernel, 2, ceil_mode=True)

    x = pool(layer(x, "conv1", 2), 3)
    x = pool(layer(layer(x, "conv2"), "conv3"), 3)
    for stage in _GOOGLENET:
        if stage in ("4a", "5a"):
            x = pool(x, 3 if stage == "4a" else 2)
        name = f"inception{stage}"
        pooled = F.max_pool2d(x, 3, 1, 1)
        branches = [layer(x, f"{name}.branch1"), layer(layer(x, f"{name}.branch2.0"), f"{name}.branch2.1")]
        branches += [layer(layer(x, f"{name}.branch3.0"), f"{name}.branch3.1"), layer(pooled, f"{name}.branch4.1")]
        x = torch.cat(branches, 1)
    return x.flatten(2).permute(0, 2, 1)


class TestResNet101:
    @pytest.mark.parametrize(("size", "bins"), [(8, 14), (14, 14), (20, 14), (7, 3), (1, 14)])
    def test_the_averaging_matrix_is_adaptive_pooling(self, size: int, bins: int) -> None:
        x = torch.randn(2, 3, size, size)
        axis = adaptive_average(size, bins)
        torch.testing.assert_close(axis @ x @ axis.T, F.adaptive_avg_pool2d(x, bins))

    def test_it_is_transformers_resnet_101_with_its_map_averaged_to_14x14(self) -> None:
        encoder = _random(ResNet101(image_size=96), 96)
        config = ResNetConfig(
            depths=list(RESNET101_BLOCKS), hidden_sizes=[256, 512, 1024, 2048], layer_type="bottleneck"
        )
        reference = ResNetModel(config).eval()
        reference.load_state_dict({_transformers_name(n): t for n, t in encoder.state_dict().items()})
        pixels = torch.randn(2, 3, 96, 96)
        expected = F.adaptive_avg_pool2d(reference(pixels).last_hidden_state, 14)
        torch.testing.assert_close(encoder(pixels), expected.flatten(2).permute(0, 2, 1), atol=1e-4, rtol=1e-4)

    def test_torchvisions_names_map_to_the_tutorials(self) -> None:
        assert from_torchvision("conv1.weight") == "resnet.0.weight"
        assert from_torchvision("bn1.running_var") == "resnet.1.running_var"
        assert from_torchvision("layer3.22.bn2.bias") == "resnet.6.22.bn2.bias"
        assert from_torchvision("fc.weight") is None


def _transformers_name(name: str) -> str:
    _, part, *rest = name.split(".")
    if part in ("0", "1"):
        return ".".join(["embedder.embedder", "convolution" if part == "0" else "normalization", *rest])
    block, layer, *rest = rest
    prefix = f"encoder.stages.{int(part) - 4}.layers.{block}"
    if layer == "downsample":
        kind, *rest = rest
        return ".".join([prefix, "shortcut", "convolution" if kind == "0" else "normalization", *rest])
    kind = "convolution" if layer.startswith("conv") else "normalization"
    return ".".join([prefix, "layer", str(int(layer[-1]) - 1), kind, *rest])


@pytest.mark.parametrize("name", encoder_names())
def test_grid_and_channels_are_what_the_encoder_gives(name: str) -> None:
    choice = encoder_choice(name)
    size = choice.image.size[0]
    rows, columns = choice.grid(size)
    with torch.device("meta"):
        encoder = choice.build(size).eval()
        assert encoder(torch.empty(1, 3, size, size)).shape == (1, rows * columns, choice.channels)


def test_an_unknown_encoder_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="no image encoder `alexnet`") as caught:
        encoder_choice("alexnet")
    assert "vgg16" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "published", "expected"),
    [
        ("vgg16", ["features.0.weight", "classifier.6.bias"], ["features.0.weight"]),
        ("googlenet", ["conv1.conv.weight", "inception5a.branch1.bn.bias", "aux1.fc1.weight"], ["conv1.conv.weight"]),
        ("resnet101", ["layer1.0.conv1.weight", "fc.weight"], ["resnet.4.0.conv1.weight"]),
        ("resnet101", ["resnet.4.0.conv1.weight"], ["resnet.4.0.conv1.weight"]),
        ("efficientnet-lite2", ["_conv_head.weight", "_fc.weight"], ["_conv_head.weight"]),
    ],
)
def test_published_classification_checkpoints_lose_their_classifier(
    name: str, published: list[str], expected: list[str]
) -> None:
    assert list(encoder_choice(name).own_tensors({stored: torch.zeros(1) for stored in published})) == expected
