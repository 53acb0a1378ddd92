"""A residual network in plain numpy: batches, BatchNorm in both modes, closed-form parameters.

Float64, apart from the library. Arrays are [B,h,w,C], kernels [kh,kw,in,out], dense [in,out].
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Norm(NamedTuple):
    scale: Any
    shift: Any
    mean: Any = 0.0
    var: Any = 1.0


class Block(NamedTuple):
    convolutions: list  # (kernel, Norm, stride) each
    shortcut: tuple | None  # the same, or the input itself


class Dense(NamedTuple):
    w: np.ndarray
    b: np.ndarray


def relu(x):
    return np.maximum(x, 0)


def conv(x, kernel, stride: int = 1) -> np.ndarray:
    """y_bijo = sum_uvc x_(b, s i + u - r, s j + v - r, c) k_uvco, zeros around, r = k // 2."""
    size, r = kernel.shape[0], kernel.shape[0] // 2
    h, w = ((n + 2 * r - size) // stride + 1 for n in x.shape[1:3])
    x, y = np.pad(x, ((0, 0), (r, r), (r, r), (0, 0))), 0.0
    for u, v in np.ndindex(size, size):
        rows, columns = slice(u, u + stride * h, stride), slice(v, v + stride * w, stride)
        y = y + np.einsum("bijc,co->bijo", x[:, rows, columns][:, :h, :w], kernel[u, v])
    return y


def batch_statistics(x) -> tuple:
    """Mean and biased variance per channel, over batch and positions."""
    mean = x.mean((0, 1, 2))
    return mean, ((x - mean) ** 2).mean((0, 1, 2))


def batch_norm(x, norm: Norm, training: bool) -> np.ndarray:
    """scale (x - mean) / sqrt(var + 1e-5) + shift, with the batch's statistics or stored ones."""
    mean, var = batch_statistics(x) if training else (norm.mean, norm.var)
    return norm.scale * (x - mean) / np.sqrt(var + 1e-5) + norm.shift


def conv_norm(x, layer, training: bool) -> np.ndarray:
    kernel, norm, *stride = layer
    return batch_norm(conv(x, kernel, *stride), norm, training)


def block(x, parts: Block, training: bool) -> np.ndarray:
    """ReLU(BN(conv(... ReLU(BN(conv(x))))) + shortcut)."""
    y = x
    for n, layer in enumerate(parts.convolutions):
        y = conv_norm(relu(y) if n else y, layer, training)
    return relu(y + (conv_norm(x, parts.shortcut, training) if parts.shortcut else x))


def stage(x, blocks: Sequence[Block], training: bool) -> np.ndarray:
    for parts in blocks:
        x = block(x, parts, training)
    return x


def dense(x, layer: Dense) -> np.ndarray:
    return x @ layer.w + layer.b


# Parameters, numbered t = 0, 1, ... in the order in which they are asked for


def closed_form(t: int, kind: str, shape: tuple) -> np.ndarray:
    """s = sin(.7 i + 1.3 t + .1 i^1.1), i in the order out, in, height, width."""
    i = np.arange(np.prod(shape), dtype=float)
    s = np.sin(0.7 * i + 1.3 * t + 0.1 * i**1.1).reshape(shape)
    if kind == "conv":
        return 1.4 * s * np.sqrt(2 / np.prod(shape[1:]))
    return {"dense": 0.5 * s, "scale": 1 + 0.2 * s, "vector": 0.1 * s}[kind]


def unwritten(t: int, kind: str, shape: tuple) -> np.ndarray:
    """Zeros that take no memory, for counting."""
    return np.broadcast_to(0.0, shape)


class Parameters:
    """Makes arrays by values(t, kind, shape), and knows how many and how large they were."""

    def __init__(self, values: Callable = closed_form):
        self.values, self.sizes = values, []

    def take(self, kind: str, *shape: int) -> np.ndarray:
        self.sizes.append(int(np.prod(shape)))
        return self.values(len(self.sizes) - 1, kind, shape)

    def conv(self, inputs: int, outputs: int, size: int) -> np.ndarray:
        return self.take("conv", outputs, inputs, size, size).transpose(2, 3, 1, 0)

    def norm(self, channels: int) -> Norm:
        return Norm(self.take("scale", channels), self.take("vector", channels))

    def conv_norm(self, inputs: int, outputs: int, size: int, stride: int = 1) -> tuple:
        return self.conv(inputs, outputs, size), self.norm(outputs), stride

    def dense(self, inputs: int, outputs: int) -> Dense:
        return Dense(self.take("dense", outputs, inputs).T, self.take("vector", outputs))

    def stage(self, inputs: int, width: int, n: int, stride: int, bottleneck: bool) -> list:
        """n blocks; the shortcut is a 1x1 convolution where stride or number of maps changes."""
        blocks, outputs = [], width * (4 if bottleneck else 1)
        for i in range(n):
            c, s = (outputs, 1) if i else (inputs, stride)
            if bottleneck:
                inner = [(c, width, 1, 1), (width, width, 3, s), (width, outputs, 1, 1)]
            else:
                inner = [(c, width, 3, s), (width, width, 3, 1)]
            layers = [self.conv_norm(*sizes) for sizes in inner]
            changes = s != 1 or c != outputs
            blocks.append(Block(layers, self.conv_norm(c, outputs, 1, s) if changes else None))
        return blocks
