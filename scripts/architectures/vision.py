"""Convolutional networks as torchvision and the field have them, and other models of images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.instance import Case, Instance, classes, mlp, normal, registering

INSTANCES: list[Instance] = []
instance = registering(INSTANCES, "vision by hand")


def labelled(size: int = 12, samples: int = 6, channels: int = 3) -> tuple[Tensor, Tensor]:
    return normal(samples, channels, size, size), classes(samples)


def classified(model: nn.Module, size: int = 12, loss: Any = "cross_entropy") -> Case:
    """Two unequal batches of labelled images."""
    x, y = labelled(size)
    return Case(model, [(x[:2], y[:2]), (x[2:], y[2:])], loss, (x, y))


def head(width: int, outputs: int = 3) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs)]


def conv_bn(inputs: int, outputs: int, *, stride: int = 1, groups: int = 1, act: Any = nn.ReLU) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), act())


class Residual(nn.Module):
    """x + f(x), or pooled where the sizes differ."""

    def __init__(self, f: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.f, self.shortcut = f, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.f(x)


@instance("ResNet")
def resnet() -> Case:
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        f = nn.Sequential(conv_bn(inputs, outputs, stride=stride), nn.Conv2d(outputs, outputs, 3, 1, 1))
        return nn.Sequential(Residual(f, nn.Conv2d(inputs, outputs, 1, stride)), nn.ReLU())

    return classified(nn.Sequential(conv_bn(3, 4), nn.MaxPool2d(2), block(4, 4, 1), block(4, 8, 2), *head(8)))


@instance("VGG")
def vgg() -> Case:
    layers = [nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, 1, 1), nn.ReLU(True)]
    classifier = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 3)]
    return classified(nn.Sequential(*layers, *classifier), loss=nn.CrossEntropyLoss(label_smoothing=0.1))


class SqueezeExcitation(nn.Module):
    def __init__(self, width: int, gate: nn.Module) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


@instance("MobileNetV3 (hardswish, hardsigmoid)")
def mobilenet_v3() -> Case:
    inverted = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.Hardswish(), conv_bn(8, 8, groups=8, act=nn.Hardswish),
        SqueezeExcitation(8, nn.Hardsigmoid()), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4),
    )  # fmt: skip
    return classified(nn.Sequential(conv_bn(3, 4, stride=2, act=nn.Hardswish), Residual(inverted), *head(4)))


@instance("MobileNetV2 (ReLU6)")
def mobilenet_v2() -> Case:
    f = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU6(), conv_bn(8, 8, groups=8, act=nn.ReLU6), nn.Conv2d(8, 4, 1))
    return classified(nn.Sequential(conv_bn(3, 4, stride=2, act=nn.ReLU6), Residual(f), *head(4)))


@instance("EfficientNet")
def efficientnet() -> Case:
    f = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.SiLU(), conv_bn(8, 8, groups=8, act=nn.SiLU), SqueezeExcitation(8, nn.Sigmoid()),
        nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    return classified(nn.Sequential(conv_bn(3, 4, stride=2, act=nn.SiLU), Residual(f), *head(4)))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(1e-2 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


@instance("ConvNeXt")
def convnext() -> Case:
    return classified(nn.Sequential(nn.Conv2d(3, 6, 4, 4), ConvNeXtBlock(6), *head(6)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = conv_bn(1, 4), conv_bn(4, 8)
        self.up, self.out = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down(x)
        return self.out(torch.cat([a, self.up(self.middle(F.max_pool2d(a, 2)))], 1))


@instance("U-Net (Dice and cross-entropy)")
def unet() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        logits, y = m(batch[0]), batch[1]
        p = logits.sigmoid()
        dice = 1 - (2 * (p * y).sum((1, 2, 3)) + 1) / ((p + y).sum((1, 2, 3)) + 1)
        return dice.mean() + F.binary_cross_entropy_with_logits(logits, y)

    x = normal(4, 1, 8, 8)
    y = (x.roll(1, 2) > 0).float()
    return Case(UNet(), [(x[:1], y[:1]), (x[1:], y[1:])], loss, (x, y))


class VNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv3d(1, 3, 3, 2, 1), nn.InstanceNorm3d(3, affine=True)
        self.up, self.out = nn.ConvTranspose3d(3, 3, 3, 2, 1, output_padding=1), nn.Conv3d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.leaky_relu(self.up(F.leaky_relu(self.norm(self.down(x))))))


@instance("V-Net (3-D, transposed with output_padding)")
def vnet() -> Case:
    x, y = normal(2, 1, 6, 6, 6), classes(2, 6, 6, 6, count=2)
    return Case(VNet(), [(x, y)], "cross_entropy")


@instance("3-D CNN of videos")
def video_cnn() -> Case:
    model = nn.Sequential(
        nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.AdaptiveAvgPool3d(1),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    return Case(model, [(normal(3, 3, 4, 8, 8), classes(3))], "cross_entropy")


class DeepLab(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 4, stride=2)
        self.branches = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=d, dilation=d) for d in (1, 2, 3)])
        self.pooled, self.out = nn.Conv2d(4, 4, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.stem(x)
        mean = self.pooled(F.adaptive_avg_pool2d(y, 1)).expand(-1, -1, *y.shape[2:])
        y = self.out(torch.cat([*(b(y) for b in self.branches), mean], 1).relu())
        return {"out": F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=False)}


@instance("DeepLab (a dict of outputs, ignored pixels)")
def deeplab() -> Case:
    x, y = normal(4, 3, 8, 8), classes(4, 8, 8)
    y[0, :3] = 255
    y[3, :, 2:5] = 255

    def loss(m: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(m(batch[0])["out"], batch[1], ignore_index=255)

    return Case(DeepLab(), [(x[:1], y[:1]), (x[1:], y[1:])], loss, (x, y))


class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.BatchNorm2d(4 + 2 * k), nn.ReLU(), nn.Conv2d(4 + 2 * k, 2, 3, 1, 1)) for k in range(3)]
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


@instance("DenseNet")
def densenet() -> Case:
    return classified(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), DenseBlock(), nn.AvgPool2d(2), *head(10)))


@instance("ShuffleNet")
def shufflenet() -> Case:
    layers = [nn.Conv2d(4, 4, 1, groups=2), nn.ChannelShuffle(2), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1, groups=4)]
    return classified(nn.Sequential(nn.Conv2d(3, 4, 3, 2), Residual(nn.Sequential(*layers)), *head(4)))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.tokens, self.channels = mlp(9, 8, 9, activation=nn.GELU), mlp(6, 8, 6, activation=nn.GELU)
        self.first, self.second, self.out = nn.LayerNorm(6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).mT
        y = y + self.tokens(self.first(y).mT).mT
        return self.out((y + self.channels(self.second(y))).mean(1))


@instance("MLP-Mixer")
def mixer() -> Case:
    return classified(Mixer())


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.cls = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(0.02 * torch.randn(1, 10, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True, activation="gelu")
        self.encoder, self.out = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).mT
        y = torch.cat([self.cls.expand(len(y), -1, -1), y], 1) + self.position
        return self.out(self.encoder(y)[:, 0])


@instance("ViT of torch's layers")
def vision_transformer() -> Case:
    return classified(VisionTransformer())


@instance("GroupNorm, InstanceNorm and LocalResponseNorm")
def norms() -> Case:
    layers = [
        nn.GroupNorm(2, 4),
        nn.Mish(),
        nn.Conv2d(4, 4, 3),
        nn.InstanceNorm2d(4),
        nn.ELU(),
        nn.LocalResponseNorm(2),
    ]
    return classified(nn.Sequential(nn.Conv2d(3, 4, 3, 2), *layers, *head(4)))


@instance("super-resolution (PixelShuffle, Charbonnier)")
def super_resolution() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        return ((m(batch[0]) - batch[1]).square() + 1e-3).sqrt().mean()

    model = nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), nn.PReLU(), nn.Conv2d(4, 4, 3, 1, 1), nn.PixelShuffle(2))
    return Case(model, [(normal(3, 1, 6, 6), normal(3, 1, 12, 12, seed=8))], loss)


class SegNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.out = nn.Conv2d(1, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, where = F.max_pool2d(self.down(x), 2, return_indices=True)
        return self.out(F.max_unpool2d(self.up(y).tanh(), where, 2))


@instance("SegNet (max_unpool2d)")
def segnet() -> Case:
    return Case(SegNet(), [(normal(3, 1, 6, 6), classes(3, 6, 6))], "cross_entropy")


class Involution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.out = nn.Conv2d(3, 9, 1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        patches = F.unfold(x, 3, padding=1).view(b, c, 9, h * w)
        mixed = (patches * self.kernel(x).tanh().view(b, 1, 9, h * w)).sum(2)
        return self.out(F.fold(mixed, (h, w), 1).mean((2, 3)))


@instance("involution (unfold, fold)")
def involution() -> Case:
    return classified(Involution(), 6)
