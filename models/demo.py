"""The embedded model: a small network with attention that needs no download, for demos and tests.

Twenty classes, pictures of 64x64, and a map of its own (LFI-CAM). It was trained by
`jaxfmi.train.classifier`, on small pictures first (`first` in the file `weights/demo.json`) and
then, from there, on those of its own size: the file says how, on what, and how well it does. Every
convolution of its backbone pads by reflection: with zeros, the class maps of so small a network
peak at the border instead of on the object.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from jaxfmi.models.layers import Options
from jaxfmi.models.lfi_cam import LfiCam
from jaxfmi.models.preprocess import Preprocess
from jaxfmi.models.pretrained import load
from jaxfmi.taps import tag

__all__ = ["DemoNet", "Pretrained", "demo_model", "lfi_cam_demo"]

WEIGHTS = Path(__file__).parent / "weights"


class Pretrained(NamedTuple):
    """A model in eval mode, the names of its classes, and what turns a PIL image into its input."""

    model: nnx.Module
    classes: tuple[str, ...]
    preprocess: Preprocess


class ConvNorm(nnx.Module):
    """A convolution that pads by reflection, then batch normalisation: no bias of its own."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, rngs: nnx.Rngs):
        init = nnx.initializers.he_normal()
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel),
            strides=stride,
            padding="REFLECT" if kernel > 1 else "VALID",
            use_bias=False,
            kernel_init=init,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, inputs] -> [N, H / stride, W / stride, outputs]."""
        return self.norm(self.conv(x))


class Block(nnx.Module):
    """Two 3x3 convolutions around a shortcut, which is averaged 2x2 where the block halves."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, rngs: nnx.Rngs):
        self.stride = stride
        self.conv1 = ConvNorm(inputs, outputs, 3, stride, rngs=rngs)
        self.conv2 = ConvNorm(outputs, outputs, 3, rngs=rngs)
        self.shortcut = ConvNorm(inputs, outputs, 1, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, inputs] -> [N, H / stride, W / stride, outputs]."""
        y = self.conv2(nnx.relu(self.conv1(x)))
        window = (self.stride, self.stride)
        x = nnx.avg_pool(x, window, window) if self.stride > 1 else x
        return nnx.relu(y + (self.shortcut(x) if self.shortcut else x))


class DemoNet(nnx.Module):
    """A residual network whose last maps, at 1/8 of the picture, are pooled and mapped linearly.

    Tags: `stem` at 1/2 of the picture's size, then `block1`, `block2`, ... The sides of the
    picture must be multiples of 8.
    """

    def __init__(
        self,
        classes: int = 20,
        widths: Sequence[int] = (64, 128, 128, 128),
        strides: Sequence[int] = (2, 2, 1, 1),
        stem: int = 32,
        *,
        rngs: nnx.Rngs,
    ):
        inputs = (stem, *widths)
        self.stem = ConvNorm(3, stem, 5, 2, rngs=rngs)
        self.blocks = nnx.List(
            Block(*shape, rngs=rngs) for shape in zip(inputs, widths, strides, strict=False)
        )
        self.head = nnx.Linear(widths[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pictures [N, H, W, 3], normalised -> logits [N, classes]; raises as `features` does."""
        return self.classify(self.features(x))

    def features(self, x: jax.Array) -> jax.Array:
        """The last maps [N, H / 8, W / 8, K].

        Raises:
          ValueError: a side is not a multiple of 8.
        """
        if any(side % 8 for side in x.shape[-3:-1]):
            raise ValueError(f"the sides of a picture are multiples of 8, got {x.shape[-3:-1]}")
        x = tag(nnx.relu(self.stem(x)), "stem")
        for i, block in enumerate(self.blocks, 1):
            x = tag(block(x), f"block{i}")
        return x

    def classify(self, x: jax.Array) -> jax.Array:
        """The logits of last maps."""
        return self.head(jnp.mean(x, axis=(-3, -2)))

    @property
    def maps(self) -> int:
        """The number of channels of `features`."""
        return self.head.in_features


def lfi_cam_demo(**options: Unpack[Options]) -> LfiCam:
    """The embedded network with other weights: LFI-CAM on `DemoNet`, for 64×64 images.

    The last block is narrower than `DemoNet`'s own, so that the feature importance network fits
    into the two megabytes with it. `options` as in `Options`, for float32 and RGB.

    Raises:
      ValueError: another type or number of channels.
    """
    if options.get("dtype") is not None or options.get("channels", 3) != 3:
        raise ValueError(f"the embedded network computes in float32, on RGB; got {options}")
    rngs = options.get("rngs") or nnx.Rngs(0)
    net = DemoNet(options.get("num_classes", 20), (64, 128, 128, 72), rngs=rngs)
    return LfiCam(net, rngs=rngs)


def demo_model() -> Pretrained:
    """Return the embedded model: no download, 20 classes, any picture squashed to 64x64."""
    card = json.loads((WEIGHTS / "demo.json").read_text())
    model = nnx.eval_shape(lambda: lfi_cam_demo(num_classes=len(card["classes"])))
    load(model, WEIGHTS / "demo.safetensors").eval()
    options: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in card["preprocess"].items()
    }
    return Pretrained(model, tuple(card["classes"]), Preprocess(**options))
