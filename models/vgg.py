"""VGG (Simonyan and Zisserman, 2015), with and without batch normalisation, as in torchvision."""

from collections.abc import Sequence
from typing import Unpack

import jax
from flax import nnx
from jax.typing import DTypeLike

from jaxfmi.models.layers import ConvNorm, Options, adaptive_avg_pool, max_pool
from jaxfmi.taps import tag

WIDTHS = (64, 128, 256, 512, 512)
GRID = 7


class VGG(nnx.Module):
    """VGG `[N, H, W, channels] -> [N, num_classes]`, in evaluation mode.

    `depths` counts the convolutions of each of the five blocks. Tags: the activation of every
    convolution, `relu1_1` ... `relu5_3` (or `relu5_4`); a max pool follows each block.
    """

    def __init__(
        self,
        depths: Sequence[int],
        *,
        norm: bool = False,
        dropout: float = 0.5,
        num_classes: int = 1000,
        channels: int = 3,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs | None = None,
    ):
        rngs = rngs or nnx.Rngs(0)
        self.blocks, inputs = nnx.List(), channels
        for depth, width in zip(depths, WIDTHS, strict=True):
            convs = nnx.List()
            for _ in range(depth):
                convs.append(
                    ConvNorm(inputs, width, 3, norm=norm, bias=True, dtype=dtype, rngs=rngs)
                )
                inputs = width
            self.blocks.append(convs)
        self.fc1 = nnx.LinearGeneral(
            (GRID, GRID, inputs), 4096, axis=(-3, -2, -1), dtype=dtype, rngs=rngs
        )
        self.fc2 = nnx.Linear(4096, 4096, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(4096, num_classes, dtype=dtype, rngs=rngs)
        self.eval()

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits `[N, num_classes]` of `x` `[N, H, W, channels]`, of any size from 32 up.

        The last pool's output is averaged over a 7×7 grid, as torchvision does for every size
        exactly; the paper's network is the one at 224×224, where the average does nothing.
        """
        return self.classify(self.features(x))

    def features(self, x: jax.Array) -> jax.Array:
        """The last activation `[N, H // 16, W // 16, 512]`, before its pool."""
        return self.last_stage(self.early(x))

    def early(self, x: jax.Array) -> jax.Array:
        """What enters the last block, whose first operation is a pool."""
        for b in range(1, len(self.blocks)):
            x = self._block(x if b == 1 else max_pool(x, 2, 2), b)
        return x

    def last_stage(self, x: jax.Array) -> jax.Array:
        """The last activation from what `early` gives."""
        return self._block(max_pool(x, 2, 2), len(self.blocks))

    def classify(self, x: jax.Array) -> jax.Array:
        """The logits of a last activation."""
        x = adaptive_avg_pool(max_pool(x, 2, 2), GRID)
        x = self.dropout(jax.nn.relu(self.fc1(x)))
        x = self.dropout(jax.nn.relu(self.fc2(x)))
        return self.head(x)

    @property
    def maps(self) -> int:
        """The number of channels of `features`."""
        return self.blocks[-1][-1].conv.out_features

    def stage_of_stride_1(self, rngs: nnx.Rngs) -> nnx.Sequential:
        """The last block again, with weights of its own and without its pool."""
        conv, norm = self.blocks[-1][0].conv, self.blocks[-1][0].norm is not None
        width, kinds = conv.out_features, {"norm": norm, "bias": True, "dtype": conv.dtype}
        convs = (ConvNorm(width, width, 3, **kinds, rngs=rngs) for _ in self.blocks[-1])
        return nnx.Sequential(*(layer for conv in convs for layer in (conv, jax.nn.relu)))

    def _block(self, x: jax.Array, b: int) -> jax.Array:
        for c, conv in enumerate(self.blocks[b - 1], 1):
            x = tag(jax.nn.relu(conv(x)), f"relu{b}_{c}")
        return x

    def names(self) -> dict[str, dict[str, str]]:
        """Per convention, how files call each layer: `features.N` counts ReLUs and pools too."""
        names, position = {}, 0
        for b, convs in enumerate(self.blocks):
            for c, conv in enumerate(convs):
                names[f"blocks.{b}.{c}.conv"] = f"features.{position}"
                names[f"blocks.{b}.{c}.norm"] = f"features.{position + 1}"
                position += 2 if conv.norm is None else 3
            position += 1
        dense = {"fc1": "classifier.0", "fc2": "classifier.3", "head": "classifier.6"}
        timm = {"fc1": "pre_logits.fc1", "fc2": "pre_logits.fc2", "head": "head.fc"}
        return {"torchvision": names | dense, "timm": names | timm}


def vgg11(**options: Unpack[Options]) -> VGG:
    """VGG-11 for 224×224 images; `options` as in `Options`."""
    return VGG((1, 1, 2, 2, 2), **options)


def vgg11_bn(**options: Unpack[Options]) -> VGG:
    """VGG-11 with batch normalisation for 224×224 images; `options` as in `Options`."""
    return VGG((1, 1, 2, 2, 2), norm=True, **options)


def vgg13(**options: Unpack[Options]) -> VGG:
    """VGG-13 for 224×224 images; `options` as in `Options`."""
    return VGG((2, 2, 2, 2, 2), **options)


def vgg13_bn(**options: Unpack[Options]) -> VGG:
    """VGG-13 with batch normalisation for 224×224 images; `options` as in `Options`."""
    return VGG((2, 2, 2, 2, 2), norm=True, **options)


def vgg16(**options: Unpack[Options]) -> VGG:
    """VGG-16 for 224×224 images; `options` as in `Options`."""
    return VGG((2, 2, 3, 3, 3), **options)


def vgg16_bn(**options: Unpack[Options]) -> VGG:
    """VGG-16 with batch normalisation for 224×224 images; `options` as in `Options`."""
    return VGG((2, 2, 3, 3, 3), norm=True, **options)


def vgg19(**options: Unpack[Options]) -> VGG:
    """VGG-19 for 224×224 images; `options` as in `Options`."""
    return VGG((2, 2, 4, 4, 4), **options)


def vgg19_bn(**options: Unpack[Options]) -> VGG:
    """VGG-19 with batch normalisation for 224×224 images; `options` as in `Options`."""
    return VGG((2, 2, 4, 4, 4), norm=True, **options)
