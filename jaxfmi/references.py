"""Reference images, and reference activations, that an image is compared with.

A reference is an array that broadcasts to the image [H, W, C], several of them [R, H, W, C], a
function ``x -> x0`` of those shapes, or one of the two types below. Which references the A-FMI
paper used is unknown; those here are the field's usual ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Random(NamedTuple):
    """A reference drawn anew for every call of the explainer, which then takes a key."""

    draw: Callable[[jax.Array, jax.Array], jax.Array]  #: (key, x [H, W, C]) -> x0


class AtLayer(NamedTuple):
    """A reference activation, made from that of the image; no reference image."""

    make: Callable[[jax.Array], jax.Array]  #: a [h, w, K] -> a0, or [R, h, w, K]


Reference = jax.Array | np.ndarray | Callable[[jax.Array], jax.Array] | Random | AtLayer | str


Baseline = float | jax.Array | np.ndarray | Callable[[jax.Array], jax.Array]
"""What replaces pixels: a number, an array that broadcasts to x, or a function ``x -> x0``."""


def replacement(baseline: Baseline, x: jax.Array) -> jax.Array:
    """Give what replaces x, in its shape and type."""
    value = baseline(x) if callable(baseline) else baseline
    return jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape)


def fill(value) -> Callable[[jax.Array], jax.Array]:
    """One value, or one per channel, in the units of x.

    Zero is black only where x is raw pixels; in normalised images it is the mean colour.
    """
    return lambda x: jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape)


def black(mean, std) -> Callable[[jax.Array], jax.Array]:
    """Pixel value 0 before a normalisation by ``mean`` and ``std`` (numbers, or [C])."""
    return fill(-np.asarray(mean) / np.asarray(std))


def white(mean, std) -> Callable[[jax.Array], jax.Array]:
    """Pixel value 1 before a normalisation by ``mean`` and ``std`` (numbers, or [C])."""
    return fill((1 - np.asarray(mean)) / np.asarray(std))


def blur(sigma: float = 20.0, radius: int | None = None) -> Callable[[jax.Array], jax.Array]:
    """The image under a Gaussian of ``sigma`` pixels, cut at 4 sigma, as SciPy does it.

    Or cut at ``radius`` pixels.

    At the border the image is reflected, the last pixel repeated (``d c b a | a b c d``).
    """

    def reference(x):
        rows, columns = (
            jnp.asarray(gaussian_matrix(n, sigma, radius), x.dtype) for n in x.shape[:2]
        )
        return jnp.einsum("ij,jkc,lk->ilc", rows, x, columns, precision="highest")

    return reference


def uniform(low: float, high: float) -> Random:
    """Independent uniform noise in every pixel and channel, in the units of x."""
    return Random(lambda key, x: jax.random.uniform(key, x.shape, x.dtype, low, high))


def gaussian(std: float) -> Random:
    """Independent Gaussian noise around 0 in every pixel and channel, in the units of x."""
    return Random(lambda key, x: std * jax.random.normal(key, x.shape, x.dtype))


def several(draw: Random, samples: int) -> Random:
    """``samples`` draws of a random reference at once."""
    return Random(lambda key, x: jax.vmap(draw.draw, (0, None))(jax.random.split(key, samples), x))


#: No activation at all, which in general no image produces: the reference of CAM and Grad-CAM.
zero_activation = AtLayer(jnp.zeros_like)


def constant_activation(vector=None) -> AtLayer:
    """The same activation everywhere: the mean over positions, or a given vector [K]."""
    if vector is None:
        return AtLayer(lambda a: jnp.broadcast_to(a.mean((-3, -2), keepdims=True), a.shape))
    return AtLayer(lambda a: jnp.broadcast_to(jnp.asarray(vector, a.dtype), a.shape))


def gaussian_matrix(n: int, sigma: float, radius: int | None = None) -> np.ndarray:
    """Give the matrix [n, n] that blurs n values, as ``blur`` does."""
    radius = int(4 * sigma + 0.5) if radius is None else radius
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    at = (np.arange(n)[:, None] + offsets) % (2 * n)
    at = np.minimum(at, 2 * n - 1 - at)  # reflected
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], at), weights / weights.sum())
    return matrix


NAMED = {
    "fill": fill(0.0),
    "blur": blur(),
    "zero_activation": zero_activation,
    "constant_activation": constant_activation(),
}
