"""Residual networks (He et al., 2016): those of ImageNet, as in torchvision, and those of CIFAR."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxfmi.models.layers import ConvNorm, Options, max_pool
from jaxfmi.taps import tag

Shortcut = Callable[..., nnx.Module]
Stem = Literal["imagenet", "cifar", "fine"]


class ResNetOptions(Options, total=False):
    """`Options`, and `stem`: "imagenet" (7×7/2, max pool), "cifar" (3×3), or "fine".

    "cifar" is for small inputs; "fine" is "imagenet" with stride 1, which doubles the size of all
    maps and takes four times the operations.
    """

    stem: Stem


class PadShortcut(nnx.Module):
    """Option A of the paper: every `stride`-th pixel, the new channels zero, half on each side."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int, dtype, rngs):
        self.extra, self.stride = (outputs - inputs) // 2, stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, H, W, inputs] -> [N, ceil(H / stride), ceil(W / stride), outputs]`."""
        sides = ((0, 0), (0, 0), (0, 0), (self.extra, self.extra))
        return jnp.pad(x[:, :: self.stride, :: self.stride], sides)


class Block(nnx.Module):
    """Two 3×3 convolutions (basic), or 1×1, 3×3, 1×1 to four times the width (bottleneck).

    The stride is that of the 3×3, as in torchvision ("v1.5"); in the paper's bottleneck it is the
    first 1×1's.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        *,
        bottleneck: bool,
        shortcut: Shortcut,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        outputs = 4 * width if bottleneck else width
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        widths = (inputs, *[width] * (len(kernels) - 1), outputs)
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        self.convs = nnx.List(
            ConvNorm(a, b, kernel, stride=s, dtype=dtype, rngs=rngs)
            for (a, b), kernel, s in zip(pairwise(widths), kernels, strides, strict=True)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            None if same else shortcut(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, H, W, inputs] -> [N, h, w, outputs]`, after the ReLU of the sum."""
        y = x
        for conv in self.convs[:-1]:
            y = jax.nn.relu(conv(y))
        return jax.nn.relu(self.convs[-1](y) + (self.shortcut(x) if self.shortcut else x))


class ResNet(nnx.Module):
    """A residual network `[N, H, W, channels] -> [N, num_classes]`, in evaluation mode.

    Tags: `stem` (before the max pool), and after every block `stage1/0`, `stage1/1`, ..., of which
    the last of a stage is called `stage1`.
    """

    def __init__(
        self,
        depths: Sequence[int],
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        bottleneck: bool = False,
        stem: Stem = "imagenet",
        shortcut: Shortcut = ConvNorm,
        num_classes: int = 1000,
        channels: int = 3,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs | None = None,
    ):
        rngs = rngs or nnx.Rngs(0)
        kernel, stride = {"imagenet": (7, 2), "cifar": (3, 1), "fine": (7, 1)}[stem]
        self.pool = stem != "cifar"
        self.stem = ConvNorm(channels, widths[0], kernel, stride=stride, dtype=dtype, rngs=rngs)
        self.stages, inputs = nnx.List(), widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = nnx.List()
            for stride in (1 if stage == 0 else 2, *[1] * (depth - 1)):
                kinds = {"bottleneck": bottleneck, "shortcut": shortcut}
                blocks.append(Block(inputs, width, stride, **kinds, dtype=dtype, rngs=rngs))
                inputs = 4 * width if bottleneck else width
            self.stages.append(blocks)
        self.head = nnx.Linear(inputs, num_classes, dtype=dtype, rngs=rngs)
        self.eval()

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits `[N, num_classes]` of `x` `[N, H, W, channels]`, of any size."""
        return self.classify(self.features(x))

    def features(self, x: jax.Array) -> jax.Array:
        """The last feature map `[N, h, w, K]`."""
        return self.last_stage(self.early(x))

    def early(self, x: jax.Array) -> jax.Array:
        """What enters the last stage."""
        x = tag(jax.nn.relu(self.stem(x)), "stem")
        x = max_pool(x, 3, 2, padding=1) if self.pool else x
        for s in range(len(self.stages) - 1):
            x = self._stage(x, s)
        return x

    def last_stage(self, x: jax.Array) -> jax.Array:
        """The last feature map `[N, h, w, K]` from what `early` gives."""
        return self._stage(x, len(self.stages) - 1)

    def classify(self, x: jax.Array) -> jax.Array:
        """The logits of a last feature map."""
        return self.head(jnp.mean(x, axis=(1, 2)))

    @property
    def maps(self) -> int:
        """The number of channels of `features`."""
        return self.head.in_features

    def stage_of_stride_1(self, rngs: nnx.Rngs) -> nnx.Sequential:
        """The last stage again, with weights of its own, at the size of what it is given."""
        first = self.stages[-1][0]
        conv = first.convs[0].conv
        inputs = (conv.in_features, *[self.maps] * (len(self.stages[-1]) - 1))
        kinds = {"bottleneck": len(first.convs) == 3, "shortcut": type(first.shortcut)}
        return nnx.Sequential(
            *(Block(c, conv.out_features, 1, **kinds, dtype=conv.dtype, rngs=rngs) for c in inputs)
        )

    def _stage(self, x: jax.Array, s: int) -> jax.Array:
        for b, block in enumerate(self.stages[s]):
            last = b == len(self.stages[s]) - 1
            x = tag(block(x), f"stage{s + 1}" if last else f"stage{s + 1}/{b}")
        return x

    def names(self) -> dict[str, dict[str, str]]:
        """Per convention, how files call each layer; timm's names are torchvision's."""
        names = {"stem.conv": "conv1", "stem.norm": "bn1", "head": "fc"}
        for s, stage in enumerate(self.stages):
            for b, block in enumerate(stage):
                ours, theirs = f"stages.{s}.{b}", f"layer{s + 1}.{b}"
                names |= {
                    f"{ours}.shortcut.conv": f"{theirs}.downsample.0",
                    f"{ours}.shortcut.norm": f"{theirs}.downsample.1",
                }
                for i in range(len(block.convs)):
                    names[f"{ours}.convs.{i}.conv"] = f"{theirs}.conv{i + 1}"
                    names[f"{ours}.convs.{i}.norm"] = f"{theirs}.bn{i + 1}"
        return {"torchvision": names, "akamaster": names | {"head": "linear"}}


def resnet18(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-18 for 224×224 images; `options` as in `ResNetOptions`."""
    return ResNet((2, 2, 2, 2), **options)


def resnet34(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-34 for 224×224 images; `options` as in `ResNetOptions`."""
    return ResNet((3, 4, 6, 3), **options)


def resnet50(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-50 (v1.5) for 224×224 images; `options` as in `ResNetOptions`."""
    return ResNet((3, 4, 6, 3), bottleneck=True, **options)


def resnet101(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-101 (v1.5) for 224×224 images; `options` as in `ResNetOptions`."""
    return ResNet((3, 4, 23, 3), bottleneck=True, **options)


def resnet152(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-152 (v1.5) for 224×224 images; `options` as in `ResNetOptions`."""
    return ResNet((3, 8, 36, 3), bottleneck=True, **options)


def _cifar(depth: int, options: Options) -> ResNet:
    """The paper's network of 6n + 2 layers, with shortcuts that have no parameters."""
    settings = Options(num_classes=10) | options
    depths = [(depth - 2) // 6] * 3
    return ResNet(depths, widths=(16, 32, 64), stem="cifar", shortcut=PadShortcut, **settings)


def cifar_resnet20(**options: Unpack[Options]) -> ResNet:
    """ResNet-20 for 32×32 images and 10 classes; `options` as in `Options`."""
    return _cifar(20, options)


def cifar_resnet32(**options: Unpack[Options]) -> ResNet:
    """ResNet-32 for 32×32 images and 10 classes; `options` as in `Options`."""
    return _cifar(32, options)


def cifar_resnet44(**options: Unpack[Options]) -> ResNet:
    """ResNet-44 for 32×32 images and 10 classes; `options` as in `Options`."""
    return _cifar(44, options)


def cifar_resnet56(**options: Unpack[Options]) -> ResNet:
    """ResNet-56 for 32×32 images and 10 classes; `options` as in `Options`."""
    return _cifar(56, options)


def cifar_resnet110(**options: Unpack[Options]) -> ResNet:
    """ResNet-110 for 32×32 images and 10 classes; `options` as in `Options`."""
    return _cifar(110, options)


def projected_resnet(depth: int, *, width: int = 16, **options: Unpack[Options]) -> ResNet:
    """The CIFAR network as LFI-CAM and ABN have it: 1×1 convolutions as shortcuts.

    From depth 44 on the blocks are bottlenecks, as many as there were basic ones, so that the
    network has 9n + 2 layers and "110" has 164 convolutions. `width` is that of the first of three
    stages.
    """
    widths, settings = (width, 2 * width, 4 * width), Options(num_classes=10) | options
    depths = [(depth - 2) // 6] * 3
    return ResNet(depths, widths=widths, bottleneck=depth >= 44, stem="cifar", **settings)
