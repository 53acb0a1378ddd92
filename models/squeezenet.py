"""SqueezeNet (Iandola et al., 2016), whose last convolution's output is a map per class."""

from collections.abc import Sequence
from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxfmi.models.layers import ConvNorm, Options, max_pool
from jaxfmi.taps import tag

# Squeeze and expand widths of fire2 to fire9.
FIRES = tuple((squeeze, 4 * squeeze) for squeeze in (16, 16, 32, 32, 48, 48, 64, 64))


class SqueezeNetOptions(Options, total=False):
    """`Options`, and the last convolution's `padding`: 0 as in torchvision, 1 as in Caffe's 1.0."""

    padding: int


class Fire(nnx.Module):
    """A 1×1 convolution that squeezes, then 1×1 and 3×3 ones side by side that expand."""

    def __init__(self, inputs: int, squeeze: int, expand: int, *, dtype, rngs: nnx.Rngs):
        conv = partial(ConvNorm, norm=False, dtype=dtype, rngs=rngs)
        self.squeeze = conv(inputs, squeeze, 1)
        self.expand1x1 = conv(squeeze, expand, 1)
        self.expand3x3 = conv(squeeze, expand, 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, H, W, inputs] -> [N, H, W, 2 expand]`, after the ReLU: the 1×1 half comes first."""
        x = jax.nn.relu(self.squeeze(x))
        halves = self.expand1x1(x), self.expand3x3(x)
        return jnp.concatenate([jax.nn.relu(half) for half in halves], axis=-1)


class SqueezeNet(nnx.Module):
    """SqueezeNet `[N, H, W, channels] -> [N, num_classes]`, in evaluation mode.

    `pools` names the fires that a max pool (3×3 at stride 2, ceil mode) comes before.
    Tags: `conv1`, `fire2` ... `fire9`, and `conv_final`, the class maps after their ReLU, whose
    mean is the logits.
    """

    def __init__(
        self,
        width: int,
        kernel: int,
        pools: Sequence[int],
        *,
        padding: int = 0,
        dropout: float = 0.5,
        num_classes: int = 1000,
        channels: int = 3,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs | None = None,
    ):
        rngs = rngs or nnx.Rngs(0)
        conv = partial(ConvNorm, norm=False, dtype=dtype, rngs=rngs)
        self.pools = tuple(pools)
        self.conv1 = conv(channels, width, kernel, stride=2, padding=0)
        inputs = (width, *(2 * expand for _, expand in FIRES))
        self.fires = nnx.List(
            Fire(i, *widths, dtype=dtype, rngs=rngs)
            for i, widths in zip(inputs[:-1], FIRES, strict=True)
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.conv_final = conv(inputs[-1], num_classes, 1, padding=padding)
        self.eval()

    def features(self, x: jax.Array) -> jax.Array:
        """The output `[N, h, w, 512]` of the last fire."""
        x = tag(jax.nn.relu(self.conv1(x)), "conv1")
        for number, fire in enumerate(self.fires, 2):
            x = max_pool(x, 3, 2, ceil_mode=True) if number in self.pools else x
            x = tag(fire(x), f"fire{number}")
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits `[N, num_classes]` of `x` `[N, H, W, channels]`, of any size from 21 up."""
        maps = jax.nn.relu(self.conv_final(self.dropout(self.features(x))))
        return jnp.mean(tag(maps, "conv_final"), axis=(1, 2))

    def names(self) -> dict[str, dict[str, str]]:
        """Per convention, how files call each layer; fire9 follows a pool in version 1.0 only."""
        torchvision = {"conv1.conv": "features.0", "conv_final.conv": "classifier.1"}
        compression = {"conv1.conv": "conv1", "conv_final.conv": "conv_final"}
        position = 2
        for i, number in enumerate(range(2, 10)):
            position += 1 + (number in self.pools and number > 2)
            for ours, theirs, caffe in (
                ("squeeze", "squeeze", "conv1x1_1"),
                ("expand1x1", "expand1x1", "conv1x1_2"),
                ("expand3x3", "expand3x3", "conv3x3_2"),
            ):
                torchvision[f"fires.{i}.{ours}.conv"] = f"features.{position}.{theirs}"
                compression[f"fires.{i}.{ours}.conv"] = f"fire{number}.{caffe}"
        return {"torchvision": torchvision, "deep-compression": compression}


def squeezenet1_0(**options: Unpack[SqueezeNetOptions]) -> SqueezeNet:
    """SqueezeNet 1.0 for 224×224 (Caffe: 227×227) images; `options` as in `SqueezeNetOptions`."""
    return SqueezeNet(96, 7, (2, 5, 9), **options)


def squeezenet1_1(**options: Unpack[SqueezeNetOptions]) -> SqueezeNet:
    """SqueezeNet 1.1 for 224×224 images; `options` as in `SqueezeNetOptions`."""
    return SqueezeNet(64, 3, (2, 4, 6), **options)
