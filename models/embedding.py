"""Networks that embed pictures instead of classifying them: few-shot and contrastive learning's.

An embedding is compared with others, by a distance or an angle. It is not divided by its norm
here: an embedding that is can't be explained by its gradient, because scaling all activations does
not change it (see `jaxfmi.similarity`). Whoever compares takes the norms into account.

Convolutions pad by reflection unless told otherwise: with zeros, the maps of networks as small as
these peak at the border of the picture instead of on the object.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from jaxfmi.models.layers import ConvNorm, Padding, max_pool
from jaxfmi.taps import tag


class Conv4(nnx.Module):
    """Four blocks of a 3×3 convolution, batch normalisation, ReLU and perhaps a max pool 2×2.

    The network of matching networks and prototypical networks (Vinyals et al., 2016; Snell et al.,
    2017), whose published form has widths of 64, pools after every block, flattens the last map,
    and pads with zeros: `Conv4(flatten=True, padding="SYMMETRIC")`. Here the default is the mean
    over positions. The embedding has as many entries as the last block has maps, or `h w` times as
    many where it is flattened, which ties the network to one size of pictures.

    Tags: `block1`, `block2`, ... after each block's pool.

    Args:
        widths: maps of each block; there may be any number of blocks.
        pools: numbers of the blocks that end in a max pool, from 1.
        flatten: keep the positions of the last map apart.
        padding: of the convolutions.
        bias: whether convolutions have one. Batch normalisation makes it redundant, but published
            weights have it.
        channels: of the input.
        dtype: what is computed in (None: float32).
        rngs: where the initial parameters come from (None: `nnx.Rngs(0)`).

    Raises:
        ValueError: `pools` names a block that there is not.

    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 64, 64, 64),
        pools: Sequence[int] = (1, 2, 3, 4),
        *,
        flatten: bool = False,
        padding: Padding = "REFLECT",
        bias: bool = False,
        channels: int = 3,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs | None = None,
    ):
        rngs = rngs or nnx.Rngs(0)
        if not set(pools) <= set(range(1, len(widths) + 1)):
            raise ValueError(f"pools are among blocks 1 to {len(widths)}, got {tuple(pools)}")
        self.pools, self.flatten = tuple(pools), flatten
        common = {"padding": padding, "bias": bias, "dtype": dtype, "rngs": rngs}
        self.blocks = nnx.List(
            ConvNorm(a, b, 3, **common) for a, b in pairwise((channels, *widths))
        )
        self.eval()

    def features(self, x: jax.Array) -> jax.Array:
        """The last feature map `[N, h, w, K]`, after its pool if it has one."""
        for number, block in enumerate(self.blocks, 1):
            x = jax.nn.relu(block(x))
            x = tag(max_pool(x, 2, 2) if number in self.pools else x, f"block{number}")
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        """The embeddings `[N, E]` of `x` `[N, H, W, channels]`, not divided by their norms."""
        a = self.features(x)
        return a.reshape(len(a), -1) if self.flatten else a.mean((1, 2))

    def names(self) -> dict[str, dict[str, str]]:
        """How the files of Snell et al.'s program call each layer."""
        numbers = range(len(self.blocks))
        convs = {f"blocks.{i}.conv": f"encoder.{i}.0" for i in numbers}
        return {"protonet": convs | {f"blocks.{i}.norm": f"encoder.{i}.1" for i in numbers}}


class Block12(nnx.Module):
    """Three 3×3 convolutions around a 1×1 shortcut, then a leaky ReLU and a max pool 2×2."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        padding: Padding,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        common = {"padding": padding, "dtype": dtype, "rngs": rngs}
        shapes = pairwise((inputs, outputs, outputs, outputs))
        self.convs = nnx.List(ConvNorm(a, b, 3, **common) for a, b in shapes)
        # A kernel of one pixel needs no padding.
        self.shortcut = ConvNorm(inputs, outputs, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, H, W, inputs] -> [N, H // 2, W // 2, outputs]`."""
        y = x
        for conv in self.convs[:-1]:
            y = leaky(conv(y))
        return max_pool(leaky(self.convs[-1](y) + self.shortcut(x)), 2, 2)


def leaky(x: jax.Array) -> jax.Array:
    """Leaky ReLU with slope 0.1, as in the published ResNet-12."""
    return jax.nn.leaky_relu(x, 0.1)


class ResNet12(nnx.Module):
    """ResNet-12, the residual network of few-shot learning, as of MetaOptNet (Lee et al., 2019).

    Four blocks of 64, 160, 320 and 640 maps for pictures of 84×84, then the mean over 5×5
    positions: 640 entries, 12.4 million parameters. Recalled, without the paper's text. Two things
    differ from the published program: it drops units at random in training (DropBlock in the last
    two blocks), which is left out, and it pads with zeros (`padding="SYMMETRIC"`).

    The last activation is that of a leaky ReLU and has negative values: maps of it are signed.

    Tags: `block1` ... `block4`, after each block's pool. `padding`, `channels`, `dtype` and
    `rngs` as for `Conv4`.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 160, 320, 640),
        *,
        padding: Padding = "REFLECT",
        channels: int = 3,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs | None = None,
    ):
        rngs = rngs or nnx.Rngs(0)
        self.blocks = nnx.List(
            Block12(a, b, padding=padding, dtype=dtype, rngs=rngs)
            for a, b in pairwise((channels, *widths))
        )
        self.eval()

    def features(self, x: jax.Array) -> jax.Array:
        """The last feature map `[N, H // 16, W // 16, 640]`."""
        for number, block in enumerate(self.blocks, 1):
            x = tag(block(x), f"block{number}")
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        """The embeddings `[N, 640]` of `x` `[N, H, W, channels]`, not divided by their norms."""
        return self.features(x).mean((1, 2))

    def names(self) -> dict[str, dict[str, str]]:
        """How MetaOptNet's files call each layer."""
        names = {}
        for i, block in enumerate(self.blocks):
            ours, theirs = f"blocks.{i}", f"layer{i + 1}.0"
            names |= {
                f"{ours}.shortcut.conv": f"{theirs}.downsample.0",
                f"{ours}.shortcut.norm": f"{theirs}.downsample.1",
            }
            for j in range(len(block.convs)):
                names[f"{ours}.convs.{j}.conv"] = f"{theirs}.conv{j + 1}"
                names[f"{ours}.convs.{j}.norm"] = f"{theirs}.bn{j + 1}"
        return {"metaoptnet": names}


class Projection(nnx.Module):
    """SimCLR's head `W2 relu(W1 h + b1) + b2` (Chen et al., 2020, eq. for z in section 2.1).

    `[N, inputs] -> [N, outputs]`, not divided by the norm, which belongs to the loss. The paper
    writes it without biases; its program has batch normalisation in between, which is left out.
    """

    def __init__(
        self, inputs: int, hidden: int = 128, outputs: int = 64, *, rngs: nnx.Rngs | None = None
    ):
        rngs = rngs or nnx.Rngs(0)
        self.hidden = nnx.Linear(inputs, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        """Project embeddings."""
        return self.out(jax.nn.relu(self.hidden(h)))


class Projected(nnx.Module):
    """An embedding network with a head on it: `head(backbone(x))`.

    The head is for training; what is compared afterwards, and explained, is `backbone`. To explain
    the projection, embed with the whole: `lambda x: projected(x[None])[0]`.
    """

    def __init__(self, backbone: Any, head: Any):
        self.backbone, self.head = backbone, head

    def __call__(self, x: jax.Array) -> jax.Array:
        """The projections `[N, E]` of `x` `[N, H, W, channels]`."""
        return self.head(self.backbone(x))
