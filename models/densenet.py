"""DenseNet-BC (Huang et al., 2017), as in torchvision: each layer sees all before it."""

import re
from collections.abc import Sequence
from itertools import product
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxfmi.models.layers import (
    ConvNorm,
    Options,
    avg_pool,
    batch_norm,
    convolve,
    he_normal,
    max_pool,
)
from jaxfmi.taps import tag


class NormConv(nnx.Module):
    """Batch normalisation, ReLU, convolution: `[N, H, W, inputs] -> [N, H, W, outputs]`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, dtype, rngs: nnx.Rngs):
        self.norm = batch_norm(inputs, dtype=dtype, rngs=rngs)
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel),
            padding=kernel // 2,
            conv_general_dilated=convolve,
            use_bias=False,
            kernel_init=he_normal,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the convolution of the normalised and rectified `x`."""
        return self.conv(jax.nn.relu(self.norm(x)))


class DenseLayer(nnx.Module):
    """A 1×1 convolution to four times the growth, then a 3×3 one to the growth."""

    def __init__(self, inputs: int, growth: int, *, dtype, rngs: nnx.Rngs):
        self.conv1 = NormConv(inputs, 4 * growth, 1, dtype=dtype, rngs=rngs)
        self.conv2 = NormConv(4 * growth, growth, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, H, W, inputs] -> [N, H, W, growth]`: the new features alone."""
        return self.conv2(self.conv1(x))


class DenseBlock(nnx.Module):
    """Dense layers, each of which sees the input and what those before it added; no tags."""

    def __init__(self, inputs: int, growth: int, layers: int, *, dtype, rngs: nnx.Rngs):
        self.layers = nnx.List(
            DenseLayer(inputs + i * growth, growth, dtype=dtype, rngs=rngs) for i in range(layers)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, H, W, inputs] -> [N, H, W, inputs + layers · growth]`."""
        for layer in self.layers:
            x = jnp.concatenate([x, layer(x)], axis=-1)
        return x


class DenseNet(nnx.Module):
    """A densely connected network `[N, H, W, channels] -> [N, num_classes]`, in evaluation mode.

    `stem` is "imagenet" (7×7/2, max pool) or "cifar" (3×3 and no normalisation of its own), for
    small inputs. Tags: `stem` (before the max pool); `block1/0` ... (a dense layer's new features),
    `block1` (all of the block's features side by side), `transition1` (the transition's
    convolution, before its average pool), ..., `block4`, and `norm5`, the last normalisation after
    its ReLU.
    """

    def __init__(
        self,
        growth: int,
        depths: Sequence[int],
        width: int = 64,
        *,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        num_classes: int = 1000,
        channels: int = 3,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs | None = None,
    ):
        rngs = rngs or nnx.Rngs(0)
        common = {"dtype": dtype, "rngs": rngs}
        self.pool = stem == "imagenet"
        self.stem = (
            ConvNorm(channels, width, 7, stride=2, **common)
            if self.pool
            else ConvNorm(channels, width, 3, norm=False, bias=False, **common)
        )
        self.blocks, self.transitions = nnx.List(), nnx.List()
        for block, depth in enumerate(depths):
            if block > 0:
                self.transitions.append(NormConv(width, width // 2, 1, **common))
                width //= 2
            layers = (DenseLayer(width + i * growth, growth, **common) for i in range(depth))
            self.blocks.append(nnx.List(layers))
            width += depth * growth
        self.norm5 = batch_norm(width, **common)
        self.head = nnx.Linear(width, num_classes, **common)
        self.eval()

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits `[N, num_classes]` of `x` `[N, H, W, channels]`, of any size from 29 up."""
        return self.classify(self.features(x))

    def features(self, x: jax.Array) -> jax.Array:
        """All features of the last block side by side, `[N, h, w, K]`, of both signs."""
        return self.last_stage(self.early(x))

    def early(self, x: jax.Array) -> jax.Array:
        """What enters the last block."""
        x = tag(jax.nn.relu(self.stem(x)) if self.pool else self.stem(x), "stem")
        x = max_pool(x, 3, 2, padding=1) if self.pool else x
        for b, transition in enumerate(self.transitions, 1):
            x = tag(transition(self._block(x, b)), f"transition{b}")
            x = avg_pool(x, 2)
        return x

    def last_stage(self, x: jax.Array) -> jax.Array:
        """All features of the last block from what `early` gives."""
        return self._block(x, len(self.blocks))

    def classify(self, x: jax.Array) -> jax.Array:
        """The logits of the last block's features."""
        x = tag(jax.nn.relu(self.norm5(x)), "norm5")
        return self.head(jnp.mean(x, axis=(1, 2)))

    @property
    def maps(self) -> int:
        """The number of channels of `features`."""
        return self.head.in_features

    def stage_of_stride_1(self, rngs: nnx.Rngs) -> "DenseBlock":
        """The last block again, with weights of its own."""
        first, layers = self.blocks[-1][0], len(self.blocks[-1])
        inputs, growth = first.conv1.norm.num_features, first.conv2.conv.out_features
        return DenseBlock(inputs, growth, layers, dtype=first.conv1.conv.dtype, rngs=rngs)

    def _block(self, x: jax.Array, b: int) -> jax.Array:
        for i, layer in enumerate(self.blocks[b - 1]):
            x = jnp.concatenate([x, tag(layer(x), f"block{b}/{i}")], axis=-1)
        return tag(x, f"block{b}")

    def names(self) -> dict[str, dict[str, str]]:
        """Per convention, how files call each layer; timm's names are torchvision's.

        torchvision's own files are older than its names: they have `norm.1` for `norm1`.
        """
        names = {
            "stem.conv": "features.conv0",
            "stem.norm": "features.norm0",
            "norm5": "features.norm5",
            "head": "classifier",
        }
        for b, layers in enumerate(self.blocks):
            for i, n, part in product(range(len(layers)), (1, 2), ("norm", "conv")):
                theirs = f"features.denseblock{b + 1}.denselayer{i + 1}.{part}{n}"
                names[f"blocks.{b}.{i}.conv{n}.{part}"] = theirs
        for b, part in product(range(len(self.transitions)), ("norm", "conv")):
            names[f"transitions.{b}.{part}"] = f"features.transition{b + 1}.{part}"
        old = {
            ours: re.sub(r"(layer.*\.(norm|conv))", r"\1.", name) for ours, name in names.items()
        }
        return {"torchvision": names, "torchvision 2017": old}


def densenet121(**options: Unpack[Options]) -> DenseNet:
    """DenseNet-121 for 224×224 images; `options` as in `Options`."""
    return DenseNet(32, (6, 12, 24, 16), **options)


def densenet161(**options: Unpack[Options]) -> DenseNet:
    """DenseNet-161 for 224×224 images; `options` as in `Options`."""
    return DenseNet(48, (6, 12, 36, 24), 96, **options)


def densenet169(**options: Unpack[Options]) -> DenseNet:
    """DenseNet-169 for 224×224 images; `options` as in `Options`."""
    return DenseNet(32, (6, 12, 32, 32), **options)


def densenet201(**options: Unpack[Options]) -> DenseNet:
    """DenseNet-201 for 224×224 images; `options` as in `Options`."""
    return DenseNet(32, (6, 12, 48, 32), **options)


def densenet_bc(depth: int, growth: int, **options: Unpack[Options]) -> DenseNet:
    """DenseNet-BC for 32×32 images and 10 classes, of three blocks; `options` as in `Options`."""
    settings = Options(num_classes=10) | options
    return DenseNet(growth, ((depth - 4) // 6,) * 3, 2 * growth, stem="cifar", **settings)
