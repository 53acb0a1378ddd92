"""A network as a plain list of layers in numpy: values and gradients of what image networks hold.

The twins of relevance propagation walk such a list. `reference_net` has a smaller one; here layers
have strides, groups and dilation, and some hold lists of their own. One image [H,W,C], float64.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np


class Conv(NamedTuple):
    w: np.ndarray  # HWIO, I = input channels / groups
    b: Any = 0.0
    stride: int = 1
    padding: Any = 0  # a number, ((top, bottom), (left, right)), or "SAME" as XLA has it
    groups: int = 1
    dilation: int = 1


class Dense(NamedTuple):
    w: np.ndarray  # [in,out]
    b: Any = 0.0


class BatchNorm(NamedTuple):
    scale: Any
    shift: Any
    mean: Any
    var: Any
    eps: float = 1e-5


class Reflect(NamedTuple):
    """`size` rows and columns more on each side, mirrored at the outermost."""

    size: int


class Activation(NamedTuple):
    f: Callable
    slope: Callable  # its derivative


class MaxPool(NamedTuple):
    window: int = 2
    stride: int = 2
    padding: Any = 0  # with -inf


class AvgPool(NamedTuple):
    window: int = 2
    stride: int = 2
    padding: Any = 0  # with zeros, which count


class GlobalAvgPool(NamedTuple):
    """[h,w,k] -> [k]."""


class Flatten(NamedTuple):
    axes: tuple[int, ...] = (0, 1, 2)  # (2, 0, 1): in PyTorch's order


class Tag(NamedTuple):
    name: str


class Residual(NamedTuple):
    branch: Sequence
    shortcut: Sequence = ()


class Concat(NamedTuple):
    branches: Sequence[Sequence]


class Gate(NamedTuple):
    """x times branch(x), which is [k] or [h,w,k]."""

    branch: Sequence


RELU = Activation(lambda x: pos(x), lambda x: x > 0)


def leaky_relu(slope: float = 0.01) -> Activation:
    return Activation(lambda x: np.where(x > 0, x, slope * x), lambda x: np.where(x > 0, 1, slope))


def pos(a):
    return np.maximum(a, 0)


def neg(a):
    return np.minimum(a, 0)


def sdiv(p, q) -> np.ndarray:
    """p / q, and 0 where q is exactly 0."""
    return np.divide(p, q, out=np.zeros(np.broadcast_shapes(p.shape, q.shape)), where=q != 0)


# Windows: all that convolutions and pools know of space


def places(shape, window, stride, padding, dilation=1):
    """Pads of both axes; per tap of the window, in row-major order, the padded places it meets."""
    pads, slices = [], []
    for axis, (n, k) in enumerate(zip(shape, window, strict=False)):
        reach = dilation * (k - 1) + 1
        if padding == "SAME":
            total = max((-(-n // stride) - 1) * stride + reach - n, 0)
            pad = (total // 2, total - total // 2)
        else:
            pad = (padding, padding) if isinstance(padding, int) else padding[axis]
        count = (n + sum(pad) - reach) // stride + 1
        starts = [dilation * u for u in range(k)]
        pads.append(pad)
        slices.append([slice(s, s + stride * (count - 1) + 1, stride) for s in starts])
    return pads, [(i, j) for i in slices[0] for j in slices[1]]


def extract(x, *geometry, fill=0.0) -> np.ndarray:
    """[H,W,C] -> [h,w,taps,C]."""
    pads, taps = places(x.shape, *geometry)
    padded = np.pad(x, (*pads, (0, 0)), constant_values=fill)
    return np.stack([padded[tap] for tap in taps], 2)


def scatter(p, shape, *geometry) -> np.ndarray:
    """The transpose of `extract`: [h,w,taps,C] -> [H,W,C]."""
    pads, taps = places(shape, *geometry)
    padded = np.zeros((shape[0] + sum(pads[0]), shape[1] + sum(pads[1]), shape[2]))
    for t, tap in enumerate(taps):
        padded[tap] += p[:, :, t]
    (top, _), (left, _) = pads
    return padded[top : top + shape[0], left : left + shape[1]]


def geometry(layer):
    if isinstance(layer, Conv):
        return layer.w.shape[:2], layer.stride, layer.padding, layer.dilation
    return (layer.window, layer.window), layer.stride, layer.padding


def grouped(layer, w):
    """Kernel HWIO -> [taps, group, input of the group, output of the group]."""
    kh, kw, i, o = w.shape
    return w.reshape(kh * kw, i, layer.groups, o // layer.groups).swapaxes(1, 2)


def op(layer, x, w) -> np.ndarray:
    """The linear map of a convolution or dense layer, with another kernel and no bias."""
    if isinstance(layer, Dense):
        return x @ w
    p, kernel = extract(x, *geometry(layer)), grouped(layer, w)
    p = p.reshape(*p.shape[:3], layer.groups, -1)
    return np.einsum("hwtgi,tgio->hwgo", p, kernel, optimize=True).reshape(*p.shape[:2], -1)


def transpose(layer, s, w, shape) -> np.ndarray:
    if isinstance(layer, Dense):
        return s @ w.T
    s = s.reshape(*s.shape[:2], layer.groups, -1)
    p = np.einsum("hwgo,tgio->hwtgi", s, grouped(layer, w), optimize=True)
    return scatter(p.reshape(*p.shape[:3], -1), shape, *geometry(layer))


# Values and gradients


def norm_slope(layer: BatchNorm):
    return layer.scale / np.sqrt(layer.var + layer.eps)


def mirrored(layer: Reflect, x):
    """Which rows and columns of the input those of the output are."""
    places = (np.arange(-layer.size, n + layer.size) for n in x.shape[:2])
    return np.ix_(*(n - 1 - abs(n - 1 - abs(i)) for i, n in zip(places, x.shape, strict=False)))


def value(layer, x) -> np.ndarray:
    match layer:
        case Conv() | Dense():
            return op(layer, x, layer.w) + layer.b
        case BatchNorm():
            return (x - layer.mean) * norm_slope(layer) + layer.shift
        case Reflect():
            return x[mirrored(layer, x)]
        case Activation():
            return layer.f(x)
        case MaxPool():
            return extract(x, *geometry(layer), fill=-np.inf).max(2)
        case AvgPool():
            return extract(x, *geometry(layer)).mean(2)
        case GlobalAvgPool():
            return x.mean((0, 1))
        case Flatten():
            return x.transpose(layer.axes).reshape(-1)
        case Tag():
            return x
        case Residual():
            return forward(layer.branch, x)[-1] + forward(layer.shortcut, x)[-1]
        case Concat():
            return np.concatenate([forward(branch, x)[-1] for branch in layer.branches], -1)
        case Gate():
            return x * forward(layer.branch, x)[-1]
    raise TypeError(f"no layer of this network: {layer!r}")


def forward(layers, x) -> list[np.ndarray]:
    """[x, output of layer 0, output of layer 1, ...]."""
    return list(accumulate(layers, lambda v, layer: value(layer, v), initial=np.asarray(x, float)))


def gradient(layer, x, g) -> np.ndarray:
    """The vector-Jacobian product of one layer; ties of a max-pool go to the first, row-major."""
    match layer:
        case Conv() | Dense():
            return transpose(layer, g, layer.w, x.shape)
        case BatchNorm():
            return g * norm_slope(layer)
        case Reflect():
            out = np.zeros_like(x)
            np.add.at(out, mirrored(layer, x), g)
            return out
        case Activation():
            return g * layer.slope(x)
        case MaxPool():
            p = extract(x, *geometry(layer), fill=-np.inf)
            winner = np.arange(p.shape[2])[:, None] == p.argmax(2)[:, :, None]
            return scatter(winner * g[:, :, None], x.shape, *geometry(layer))
        case AvgPool():
            share = np.repeat(g[:, :, None] / layer.window**2, layer.window**2, 2)
            return scatter(share, x.shape, *geometry(layer))
        case GlobalAvgPool():
            return np.ones_like(x) * g / (x.shape[0] * x.shape[1])
        case Flatten():
            shuffled = g.reshape([x.shape[a] for a in layer.axes])
            return shuffled.transpose(np.argsort(layer.axes))
        case Residual():
            return gradients(layer.branch, x, g)[0] + gradients(layer.shortcut, x, g)[0]
        case Concat():
            branches = zip(layer.branches, split(layer, x, g), strict=True)
            return sum((gradients(b, x, part)[0] for b, part in branches), np.zeros_like(x))
        case Gate():
            gate = forward(layer.branch, x)[-1]
            of_gate = (g * x).sum(tuple(range(x.ndim - gate.ndim)))
            return g * gate + gradients(layer.branch, x, of_gate)[0]
    return g  # a tag


def gradients(layers, x, g) -> list[np.ndarray]:
    """Gradients of all of `forward(layers, x)`, from the gradient `g` of the last."""
    out = [np.asarray(g, float)]
    for layer, v in zip(layers[::-1], forward(layers, x)[-2::-1], strict=True):
        out.append(gradient(layer, v, out[-1]))
    return out[::-1]


def split(layer: Concat, x, r) -> list[np.ndarray]:
    """r at the output of a concatenation -> r at the outputs of its branches."""
    sizes = [forward(branch, x)[-1].shape[-1] for branch in layer.branches]
    return np.split(r, np.cumsum(sizes)[:-1], -1)
