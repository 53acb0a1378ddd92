"""A small network in plain numpy, one layer at a time with its backward pass written by hand.

The twins of the gradient methods need gradients that owe nothing to JAX. A network is a list of
layers; `forward` keeps every value, `backward` walks back from a gradient of the output, with the
rule for ReLU as an argument. Arrays are [H,W,C] float64, kernels [kh,kw,in,out], dense [in,out].
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden" / "fgcam_golden.npz"

RELU_RULES: dict[str, Callable] = {
    "plain": lambda x, g: g * (x > 0),
    "deconvnet": lambda x, g: np.maximum(g, 0),
    "guided": lambda x, g: np.maximum(g, 0) * (x > 0),
}


class Layer(NamedTuple):
    name: str
    forward: Callable  # x -> y
    backward: Callable  # x, dy -> dx


def conv(kernel, bias) -> Layer:
    """y[i,j,o] = bias[o] + sum x[i+u-r, j+v-s, c] kernel[u,v,c,o]: stride 1, same size, zeros."""
    kh, kw = kernel.shape[:2]
    r, s = kh // 2, kw // 2

    def forward(x):
        h, w, _ = x.shape
        padded = np.pad(x, ((r, r), (s, s), (0, 0)))
        y = np.zeros((h, w, kernel.shape[3]))
        for i in range(h):
            for j in range(w):
                y[i, j] = bias + np.tensordot(padded[i : i + kh, j : j + kw], kernel, 3)
        return y

    def backward(x, g):
        h, w, c = x.shape
        dx = np.zeros((h + 2 * r, w + 2 * s, c))
        for i in range(h):
            for j in range(w):
                dx[i : i + kh, j : j + kw] += kernel @ g[i, j]
        return dx[r : r + h, s : s + w]

    return Layer("conv", forward, backward)


def batch_norm(scale, shift, mean, var, eps=1e-5) -> Layer:
    """y = scale (x - mean) / sqrt(var + eps) + shift, with stored statistics."""
    slope = scale / np.sqrt(var + eps)
    return Layer("batch_norm", lambda x: (x - mean) * slope + shift, lambda x, g: g * slope)


def relu() -> Layer:
    """y = max(x, 0); `backward` replaces this layer's own rule by the one it is given."""
    return Layer("relu", lambda x: np.maximum(x, 0), RELU_RULES["plain"])


def max_pool() -> Layer:
    """2x2, stride 2; the gradient goes to the first of equal maxima."""

    def forward(x):
        h, w, c = x.shape
        y = np.zeros((h // 2, w // 2, c))
        for i, j, k in np.ndindex(y.shape):
            y[i, j, k] = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, k].max()
        return y

    def backward(x, g):
        dx = np.zeros_like(x)
        for i, j, k in np.ndindex(g.shape):
            window = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, k]
            u, v = np.unravel_index(window.argmax(), window.shape)
            dx[2 * i + u, 2 * j + v, k] += g[i, j, k]
        return dx

    return Layer("max_pool", forward, backward)


def global_mean() -> Layer:
    """y[k] = mean over positions of x[:,:,k]."""
    return Layer(
        "global_mean",
        lambda x: x.mean((0, 1)),
        lambda x, g: np.ones_like(x) * g / (x.shape[0] * x.shape[1]),
    )


def flatten_chw() -> Layer:
    """[h,w,k] -> [k h w], PyTorch's order."""
    return Layer(
        "flatten_chw",
        lambda x: x.transpose(2, 0, 1).reshape(-1),
        lambda x, g: g.reshape(x.shape[2], *x.shape[:2]).transpose(1, 2, 0),
    )


def dense(kernel, bias) -> Layer:
    """y = x kernel + bias."""
    return Layer("dense", lambda x: x @ kernel + bias, lambda x, g: kernel @ g)


def forward(layers: list[Layer], x) -> list:
    """Every value on the way: [x, output of layer 0, output of layer 1, ...]."""
    values = [np.asarray(x, float)]
    for layer in layers:
        values.append(layer.forward(values[-1]))
    return values


def backward(layers: list[Layer], values: list, g, rule: str = "plain") -> list:
    """Gradients of all `values`, from the gradient `g` of the last one."""
    gradients = [np.asarray(g, float)]
    for layer, x in zip(layers[::-1], values[-2::-1], strict=True):
        pull = RELU_RULES[rule] if layer.name == "relu" else layer.backward
        gradients.append(pull(x, gradients[-1]))
    return gradients[::-1]


def score(layers: list[Layer], label: int) -> Callable:
    """x -> the logit of `label`."""
    return lambda x: forward(layers, x)[-1][label]


def score_gradient(layers: list[Layer], label: int, rule: str = "plain") -> Callable:
    """x -> d logit / dx (rule "plain"); guided backprop or deconvnet for the other ReLU rules.

    Guided: Springenberg et al. 2015. Deconvnet: Zeiler & Fergus 2014 (max-pool by its switches).
    """

    def gradient(x):
        values = forward(layers, x)
        return backward(layers, values, np.eye(len(values[-1]))[label], rule)[0]

    return gradient


def little_net(rng: np.random.Generator, channels=(3, 5, 4), classes=3) -> list[Layer]:
    """conv3x3 relu conv3x3 relu global-mean dense, random weights; the last map is values[4]."""
    c0, c1, c2 = channels
    normal = rng.standard_normal
    return [
        conv(normal((3, 3, c0, c1)) / 3, normal(c1) / 5),
        relu(),
        conv(normal((3, 3, c1, c2)) / 3, normal(c2) / 5),
        relu(),
        global_mean(),
        dense(normal((c2, classes)), normal(classes)),
    ]


def golden() -> dict[str, np.ndarray]:
    """The arrays of fgcam_golden.npz; skips the test that asks where the file is missing."""
    if not GOLDEN.exists():
        pytest.skip(f"no golden arrays: {GOLDEN.name} belongs in {GOLDEN.parent}")
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def golden_layers(arrays: dict[str, np.ndarray]) -> list[Layer]:
    """The golden VGG: layers 0..13 are its `features`, then flatten, dense, relu, dense."""

    def parameters(name, *fields):
        return [arrays[f"param/{name}.{field}"] for field in fields]

    def block(i):
        kernel, bias = parameters(f"features.{i}", "weight", "bias")
        fields = ("weight", "bias", "running_mean", "running_var")
        scale, shift, mean, var = parameters(f"features.{i + 1}", *fields)
        norm = batch_norm(scale, shift, mean, var)
        return [conv(kernel.transpose(2, 3, 1, 0), bias), norm, relu()]

    def linear(i):
        kernel, bias = parameters(f"classifier.{i}", "weight", "bias")
        return dense(kernel.T, bias)

    features = [*block(0), *block(3), max_pool(), *block(7), *block(10), max_pool()]
    return [*features, flatten_chw(), linear(0), relu(), linear(2)]
