"""The tiny networks that tests explain: one architecture in NNX and in linen, and the golden VGG.

The NNX and the linen network have the same parameters, so that they must get the same heatmaps.
They hold what explainers stumble over: batch normalisation, a strided convolution, a residual
sum, an inner ``jit``, a ReLU that is a maximum, several tags, odd sizes that differ, and tags that
are no layers. The part behind "block" is linear, that behind "down" is not.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import reference_net as net
from flax import linen as nn
from flax import nnx
from reference_sise import g3_kernel

from jaxfmi import tag
from jaxfmi.modules import functional

HEIGHT, WIDTH, CHANNELS, CLASSES = 15, 11, 3, 5
LAYER_SIZE = (8, 6)


class TinyNnx(nnx.Module):
    def __init__(self, dtype=None):
        rngs, options = nnx.Rngs(0), {"dtype": dtype, "rngs": nnx.Rngs(1)}
        self.conv0 = nnx.Conv(CHANNELS, 6, (3, 3), **options)
        self.norm0 = nnx.BatchNorm(6, **options)
        self.conv1 = nnx.Conv(6, 8, (3, 3), strides=2, **options)
        self.norm1 = nnx.BatchNorm(8, **options)
        self.conv2 = nnx.Conv(8, 8, (3, 3), **options)
        self.norm2 = nnx.BatchNorm(8, **options)
        self.dense = nnx.Linear(8, CLASSES, **options)
        _randomise(self, rngs)
        self.eval()

    def __call__(self, x):
        return _forward(self, x, nnx.jit)


class TinyLinen(nn.Module):
    dtype: jnp.dtype | None = None

    def setup(self):
        options = {"dtype": self.dtype}
        norm = functools.partial(nn.BatchNorm, use_running_average=True, **options)
        self.conv0, self.norm0 = nn.Conv(6, (3, 3), **options), norm()
        self.conv1, self.norm1 = nn.Conv(8, (3, 3), strides=2, **options), norm()
        self.conv2, self.norm2 = nn.Conv(8, (3, 3), **options), norm()
        self.dense = nn.Dense(CLASSES, **options)

    def __call__(self, x):
        return _forward(self, x, nn.jit)


def _forward(net, x, jit):
    def branch(net, x):
        return net.norm2(net.conv2(x))

    x = tag(jax.nn.relu(net.norm0(net.conv0(x))), "stem")
    x = tag(jnp.maximum(net.norm1(net.conv1(x)), 0), "down")
    x = tag(jax.jit(jax.nn.relu)(x + jit(branch)(net, x)), "block")
    return net.dense(tag(x.mean((1, 2)), "pooled"))


def _randomise(net: nnx.Module, rngs: nnx.Rngs) -> None:
    """Statistics, scales and biases that matter, instead of zeros and ones."""
    for name, norm in vars(net).items():
        if name.startswith("norm"):
            shape = norm.mean.shape
            norm.mean[...] = 0.2 * jax.random.normal(rngs.params(), shape)
            norm.var[...] = jax.random.uniform(rngs.params(), shape, minval=0.5, maxval=1.5)
            norm.scale[...] = jax.random.uniform(rngs.params(), shape, minval=0.5, maxval=1.5)
        if not name.startswith("_") and hasattr(norm, "bias"):
            norm.bias[...] = 0.2 * jax.random.normal(rngs.params(), norm.bias.shape)


def tiny(kind: str, dtype=None):
    """A model for ``class_score``: an NNX module, or a linen module and the same variables."""
    with jax.enable_x64(False):  # the same random numbers wherever it is made
        model = TinyNnx(dtype)
    if kind == "nnx":
        return model
    collections = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    return TinyLinen(dtype), {
        k: nnx.to_pure_dict(nnx.state(model, v)) for k, v in collections.items()
    }


def mapped(model, change):
    """The model ``(f, params)`` with every array of parameters passed through ``change``."""
    apply, params = functional(model)
    return apply, jax.tree.map(change, params)


def widened(model):
    """The model in float64; to be used where that is enabled."""
    return mapped(model, lambda p: jnp.asarray(p, jnp.float64))


def transposed(model):
    """The model for transposed images: the same numbers, height and width swapped."""
    return mapped(model, lambda p: p.swapaxes(0, 1) if p.ndim == 4 else p)


def images(n: int, seed: int = 0) -> jax.Array:
    """Random images [n, 15, 11, 3]."""
    shape = (n, HEIGHT, WIDTH, CHANNELS)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def pooled_score(w, bias=0.3):
    """A score with weights [K] that is linear in the tag "a": average pooling, a dense layer."""
    return lambda a: tag(a, "a").mean((0, 1)) @ w + bias


# The golden VGG of shared/golden, as a plain function


def golden_model(arrays):
    """The model ``(f, params)`` of the golden arrays; tags "0" to "13" name its ``features``."""
    return golden_apply, {
        name.removeprefix("param/"): jnp.asarray(value)
        for name, value in arrays.items()
        if name.startswith("param/")
    }


def golden_apply(p, x):
    for i in (0, 3, 7, 10):
        x = tag(jax.nn.relu(_conv_norm(p, x, i)), str(i + 2))
        if i in (3, 10):
            x = tag(nnx.max_pool(x, (2, 2), (2, 2)), str(i + 3))
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    for i in (0, 2):
        x = jax.nn.relu(x) if i else x
        x = x @ p[f"classifier.{i}.weight"].T + p[f"classifier.{i}.bias"][None]
    return x


def _conv_norm(p, x, i):
    layout = ("NHWC", "OIHW", "NHWC")
    x = jax.lax.conv_general_dilated(
        x, p[f"features.{i}.weight"], (1, 1), "SAME", dimension_numbers=layout
    )
    fields = ("weight", "bias", "running_mean", "running_var")
    conv_bias = p[f"features.{i}.bias"][None, None, None]
    scale, shift, mean, var = (p[f"features.{i + 1}.{f}"][None, None, None] for f in fields)
    return (x + conv_bias - mean) * (scale / jnp.sqrt(var + 1e-5)) + shift


# The golden model of SISE and of the metrics, in JAX


def g3_model(x):
    """G3 `[N, 32, 32, 3] -> [N, 5]`, tags "tap0" to "tap2" and "features"; made for float64."""
    for l in range(3):
        kernel, bias = g3_kernel(l)
        x = jax.vmap(lambda x: _conv(x, kernel))(x) + bias[None, None, None]
        x = nnx.max_pool(tag(jax.nn.relu(x), f"tap{l}"), (2, 2), (2, 2))
    i, o = np.indices((16, 5))
    return (
        tag(x, "features").mean((1, 2)) @ (2 * np.sin(0.5 + 1.1 * o + 0.9 * i))
        + 0.1 * np.arange(5)[None]
    )


# A network in both languages: the numpy layers of reference_net, and the same score in JAX


class Twins(NamedTuple):
    layers: list  #: conv, norm, relu, conv, relu, max pool, flatten, dense, relu, dense; 3 classes
    score: Callable  #: the same in JAX, (x [6, 8, 2], label), tags "relu0", "relu1", "pool"
    biases: list  #: what conv and norm add together, and what the second conv adds


def twins(seed=0, relu=jax.nn.relu) -> Twins:
    """To be made and used where float64 is enabled."""
    normal = np.random.default_rng(seed).standard_normal
    k0, b0, k1, b1 = normal((3, 3, 2, 4)) / 3, normal(4), normal((3, 3, 4, 5)) / 4, normal(5) / 3
    scale, shift, mean, var = *normal((3, 4)), normal(4) ** 2 + 0.5
    w0, c0, w1, c1 = normal((60, 7)) / 6, normal(7) / 3, normal((7, 3)), normal(3)
    slope = scale / np.sqrt(var + 1e-5)
    norm = net.batch_norm(scale, shift, mean, var)
    stem = [net.conv(k0, b0), norm, net.relu(), net.conv(k1, b1), net.relu(), net.max_pool()]
    head = [net.flatten_chw(), net.dense(w0, c0), net.relu(), net.dense(w1, c1)]

    def score(x, label):
        x = (_conv(x, k0) + b0[None, None] - mean[None, None]) * slope[None, None]
        x = tag(relu(x + shift[None, None]), "relu0")
        x = tag(relu(_conv(x, k1) + b1[None, None]), "relu1")
        x = tag(nnx.max_pool(x, (2, 2), (2, 2)), "pool").transpose(2, 0, 1).ravel()
        return (relu(x @ w0 + c0) @ w1 + c1)[label]

    return Twins([*stem, *head], score, [(b0 - mean) * slope + shift, b1])


def _conv(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    kernel = jnp.asarray(kernel, x.dtype)
    y = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=layout)
    return y[0]
