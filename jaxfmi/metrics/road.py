"""ROAD: remove pixels without leaving a trace of where they were, and see how the score changes.

A removed pixel becomes the weighted mean of its neighbours, which may be removed themselves: a
linear system with one unknown per removed pixel, solved here by conjugate gradients on the device.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg

from jaxfmi.chunks import chunk_map
from jaxfmi.explainer import Score, check_key, wide
from jaxfmi.metrics.metric import Metric, metric, part
from jaxfmi.metrics.ranking import count, ranks

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ITERATIONS = 2000  # of conjugate gradients; a few hundred is what a large hole takes


class Road(NamedTuple):
    """The score with ever more pixels removed."""

    shares: jax.Array  #: of the pixels that are removed, [n]
    morf: jax.Array  #: scores with the most relevant removed first, [n]
    lerf: jax.Array  #: scores with the least relevant removed first, [n]
    clean: jax.Array  #: score of the image
    combined: jax.Array  #: mean of (lerf - morf) / 2


@metric
def road_curve(
    score: Score,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    tolerance: float = 1e-5,
    chunk: int | None = 8,
) -> Metric:
    """ROAD (Rong, Leemann, Borisov, Kasneci and Kasneci, 2022), after pytorch-grad-cam's form.

    High ``combined`` is good: the score falls where the most relevant pixels go, and stays where
    the least relevant go. Exactly ``floor(share (H W - 1)) + 1`` pixels go, in the order of
    ``ranks``: as many as are at or above the percentile with which pytorch-grad-cam compares, which
    takes more where values tie, and draws its noise without a seed. Quantus reports the accuracy
    of a set of images, at the shares .01, .03 to .99. The paper's text was not available to us.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``.
      shares: of the pixels that are removed, each above 0 and below 1.
      noise: standard deviation of what is added to removed pixels, in the units of x.
      tolerance: relative, of the residual of the linear system.
      chunk: images at a time, for each one of a batch.

    Returns:
      ``(x [H, W, C], heatmap [H, W], *args, key) -> Road``.

    Raises:
      ValueError: no share, or one out of range; no key, unless noise is 0.
    """
    if not len(shares) or not all(0 < share < 1 for share in shares):
        raise ValueError(f"shares are of the pixels, each above 0 and below 1; got {shares}")

    def curve(x, heatmap, *args, key=None):
        key = check_key(key, "road") if noise else jax.random.key(0)
        counts = np.array([count(share, heatmap.size - 1) + 1 for share in shares])
        order = ranks(heatmap)
        orders = jnp.stack([order, heatmap.size - 1 - order])

        def at(task):
            key, which, n = task
            known = orders[which] >= n
            drawn = noise * jax.random.normal(key, x.shape, x.dtype)
            filled = impute(x, known, tolerance=tolerance)
            return score(jnp.where(known[..., None], x, filled + drawn), *args)

        which, n = np.repeat([0, 1], len(counts)), np.tile(counts, 2)
        keys = jax.random.split(key, len(n))
        scores = wide(chunk_map(at, (keys, jnp.asarray(which), jnp.asarray(n)), chunk))
        morf, lerf = scores.reshape(2, -1)
        fractions = jnp.asarray(counts / heatmap.size, scores.dtype)
        return Road(fractions, morf, lerf, wide(score(x, *args)), ((lerf - morf) / 2).mean())

    return curve


road = part(road_curve, "combined", "road")


def impute(x: jax.Array, known: jax.Array, *, tolerance: float = 1e-5) -> jax.Array:
    """Fill the unknown pixels of x [H, W, C] with the weighted means of their neighbours.

    Weights are 1/6 to the sides and 1/12 to the corners, in proportion at borders. The equations
    ``sum_q w_pq (u_p - u_q) = 0`` are symmetric and positive definite. The start is the mean of the
    known pixels. (Starting from a solution at half the size, and so on, saved a third of the time
    at the usual tolerance, and cost ten times the compilation.)

    Args:
      x: [H, W, C]; what is at unknown pixels does not matter.
      known: bool [H, W]; at least one pixel is known.
      tolerance: relative, of the residual.
    """
    unknown = (~known)[..., None].astype(x.dtype)
    sources = x * (1 - unknown)
    weight = _neighbours(jnp.ones((*known.shape, 1), x.dtype))
    solution, _ = cg(
        lambda u: unknown * (weight * u - _neighbours(u)),
        unknown * _neighbours(sources),
        x0=unknown * sources.sum((0, 1), keepdims=True) / known.sum(),
        tol=tolerance,
        atol=cast(float, tolerance * jnp.abs(sources).max()),  # ends where all sources are zeros
        maxiter=ITERATIONS,
        M=lambda residual: residual / weight,
    )
    return sources + solution


def _neighbours(v: jax.Array) -> jax.Array:
    """Sum the eight neighbours of every pixel of v [H, W, C] with their weights; zeros around."""
    total = v
    for axis in (0, 1):
        near = jnp.pad(total, [(1, 1) if a == axis else (0, 0) for a in range(3)])
        parts = (jax.lax.slice_in_dim(near, i, i + v.shape[axis], axis=axis) for i in range(3))
        before, here, after = parts
        total = before + 2 * here + after
    return (total - 4 * v) / 12
