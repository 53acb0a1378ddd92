"""MobileNet V1 (Howard et al., 2017) and V2 (Sandler et al., 2018), by torch or TensorFlow."""

from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxfmi.models.layers import ConvNorm, Options, Padding
from jaxfmi.taps import tag

V1 = (  # width, stride
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
V2 = (  # expansion, width, blocks, stride of the first
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


class MobileNetOptions(Options, total=False):
    """`Options`, and what differs between frameworks.

    width: the multiplier of all widths (1.0).
    padding: "SYMMETRIC" as in torch, or "SAME" as in TensorFlow, which differs at stride 2.
    norm: False for weights whose batch normalisation was folded into the convolutions.
    TensorFlow's weights have 1001 classes, the first of which is the background.
    """

    width: float
    padding: Padding
    norm: bool


class Separable(nnx.Module):
    """A depthwise 3×3 and a pointwise 1×1 convolution, after a widening 1×1 one or none.

    V1's block is `project(depthwise(x))`, with ReLU6 after both. V2's is
    `project(depthwise(expand(x)))`, linear at its end, added to `x` where the shapes agree.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        expansion: int = 1,
        linear: bool,
        padding: Padding,
        norm: bool,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        conv = partial(ConvNorm, padding=padding, norm=norm, dtype=dtype, rngs=rngs)
        hidden = inputs * expansion
        self.expand = conv(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = conv(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = conv(hidden, outputs, 1)
        self.linear = linear
        self.residual = linear and stride == 1 and inputs == outputs

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, H, W, inputs] -> [N, h, w, outputs]`."""
        y = jax.nn.relu6(self.expand(x)) if self.expand else x
        y = self.project(jax.nn.relu6(self.depthwise(y)))
        y = y if self.linear else jax.nn.relu6(y)
        return x + y if self.residual else y


class MobileNet(nnx.Module):
    """MobileNet `[N, H, W, channels] -> [N, num_classes]`, in evaluation mode; `version` 1 or 2.

    Tags of V1: `conv0`, `block1` ... `block13` (after ReLU6). Tags of V2: `stem`,
    `block1` ... `block17` (linear), and `head`, the last 1×1 convolution after its ReLU6.
    """

    def __init__(
        self,
        version: int,
        *,
        width: float = 1.0,
        padding: Padding = "SYMMETRIC",
        norm: bool = True,
        dropout: float = 0.2,
        num_classes: int = 1000,
        channels: int = 3,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs | None = None,
    ):
        rngs = rngs or nnx.Rngs(0)
        common = {"padding": padding, "norm": norm, "dtype": dtype, "rngs": rngs}
        self.version = version
        inputs = scaled(32, width)
        self.stem = ConvNorm(channels, inputs, 3, stride=2, **common)
        self.blocks = nnx.List()
        for expansion, outputs, stride in _blocks(version):
            outputs, kinds = scaled(outputs, width), {"linear": version == 2, **common}
            self.blocks.append(Separable(inputs, outputs, stride, expansion=expansion, **kinds))
            inputs = outputs
        outputs = scaled(1280, max(width, 1.0))
        self.last = ConvNorm(inputs, outputs, 1, **common) if version == 2 else None
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(
            outputs if self.last else inputs, num_classes, dtype=dtype, rngs=rngs
        )
        self.eval()

    def features(self, x: jax.Array) -> jax.Array:
        """The last feature map `[N, h, w, K]`."""
        x = tag(jax.nn.relu6(self.stem(x)), "stem" if self.last else "conv0")
        for number, block in enumerate(self.blocks, 1):
            x = tag(block(x), f"block{number}")
        return tag(jax.nn.relu6(self.last(x)), "head") if self.last else x

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits `[N, num_classes]` of `x` `[N, H, W, channels]`, of any size."""
        return self.head(self.dropout(jnp.mean(self.features(x), axis=(1, 2))))

    def names(self) -> dict[str, dict[str, str]]:
        """Per convention, how files call each layer."""
        timm = self._timm()
        tensorflow = [layer for layer in timm if not layer.endswith("norm")]
        counted = {
            layer: f"{'dw' if 'depthwise' in layer else 'conv'}{i:02}"
            for i, layer in enumerate(tensorflow)
        }
        names = {"timm": timm, "tensorflow": counted}
        return names | {"torchvision": self._torchvision()} if self.version == 2 else names

    def _timm(self) -> dict[str, str]:
        """The layers in the order of execution, in timm's words: blocks are grouped by width."""
        names = {"stem.conv": "conv_stem", "stem.norm": "bn1"}
        stages = (1, 2, 2, 6, 2) if self.version == 1 else [blocks for _, _, blocks, _ in V2]
        places = [f"blocks.{s}.{b}" for s, blocks in enumerate(stages) for b in range(blocks)]
        for i, (block, place) in enumerate(zip(self.blocks, places, strict=True)):
            inverted = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
            convs = inverted if block.expand else {"depthwise": "conv_dw", "project": "conv_pw"}
            for number, (ours, theirs) in enumerate(convs.items(), 1):
                names[f"blocks.{i}.{ours}.conv"] = f"{place}.{theirs}"
                names[f"blocks.{i}.{ours}.norm"] = f"{place}.bn{number}"
        last = {"last.conv": "conv_head", "last.norm": "bn2"} if self.last else {}
        return names | last | {"head": "classifier"}

    def _torchvision(self) -> dict[str, str]:
        names = {"stem.conv": "features.0.0", "stem.norm": "features.0.1"}
        for i, block in enumerate(self.blocks):
            place = f"features.{i + 1}.conv"
            inner = ["expand", "depthwise"] if block.expand else ["depthwise"]
            for j, ours in enumerate(inner):
                names[f"blocks.{i}.{ours}.conv"] = f"{place}.{j}.0"
                names[f"blocks.{i}.{ours}.norm"] = f"{place}.{j}.1"
            names[f"blocks.{i}.project.conv"] = f"{place}.{len(inner)}"
            names[f"blocks.{i}.project.norm"] = f"{place}.{len(inner) + 1}"
        last = {"last.conv": "features.18.0", "last.norm": "features.18.1"}
        return names | last | {"head": "classifier.1"}


def _blocks(version: int) -> list[tuple[int, int, int]]:
    """Expansion, width and stride of each block."""
    if version == 1:
        return [(1, width, stride) for width, stride in V1]
    return [
        (expansion, width, stride if i == 0 else 1)
        for expansion, width, blocks, stride in V2
        for i in range(blocks)
    ]


def scaled(width: int, multiplier: float) -> int:
    """`width * multiplier`, rounded to a multiple of 8 that is at least 8 and 90 % of it."""
    wanted = width * multiplier
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def mobilenet_v1(**options: Unpack[MobileNetOptions]) -> MobileNet:
    """MobileNet V1 for 224×224 images; `options` as in `MobileNetOptions`."""
    return MobileNet(1, **options)


def mobilenet_v2(**options: Unpack[MobileNetOptions]) -> MobileNet:
    """MobileNet V2 for 224×224 images; `options` as in `MobileNetOptions`."""
    return MobileNet(2, **options)
