"""Extremal perturbation: the mask of a given area that keeps the score highest, by descent.

A few masks that are differentiated, and change at every step: nothing for the engine of
``perturbation.py``, which streams many that are known beforehand, forward only.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfmi.chunks import looped
from jaxfmi.explainer import Explainer, Score, asked, explainer, wide
from jaxfmi.modules import probability
from jaxfmi.references import gaussian_matrix

LEVELS, SIGMA_MAX = 8, 20.0  # of the blur pyramid
COLDNESS = 20.0  # of the smooth maximum
RATE, MOMENTUM = 0.01, 0.9
WEIGHT, GROWTH = 300.0, 1.0035  # of the area's loss, and its factor per iteration


@explainer
def extremal_perturbation(
    score: Score,
    *,
    areas: float | Sequence[float] = (0.1,),
    variant: Literal["preserve", "delete", "dual"] = "preserve",
    iterations: int = 800,
    step: int = 7,
    sigma: float = 21.0,
    mirror: bool = True,
    smooth: float = 0.0,
) -> Explainer:
    """Extremal perturbation (Fong, Patrick and Vedaldi, 2019): the smooth mask that matters most.

    For every area a mask is found that covers this share and keeps the score as high
    as it can (``"preserve"``), or whose complement loses it (``"delete"``), or both (``"dual"``,
    the difference). What is not kept is blurred. The map is the sum of the masks, in [0, areas].

    The paper's text was not available to us; numbers and form are TorchRay's. A mask is the smooth
    maximum over a grid of parameters, each spread by exp(-2 max(0, d / sigma - 1/2)^2) over its
    distance d, and has a margin of sigma around the image. Descent is by 800 steps of momentum,
    with growing weight on the distance of the mask's sorted values from a step function. All
    parameters begin as 1, so that rounding decides the order of the first sort, and different
    programs end at somewhat different masks.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a class probability, which ``batched`` gives; it
        is differentiated.
      areas: shares of the mask with its margin (of 224 pixels and sigma 21 that is 1.4 times the
        share of the image), one or several, a mask for each; TorchRay's benchmarks sum
        (.025, .05, .1, .2).
      variant: as above.
      iterations: each a forward and a backward pass for every area (two for ``"dual"``).
      step: pixels from parameter to parameter.
      sigma: of a parameter's spread, in pixels.
      mirror: show the network the mirrored image in every second step, for a network that should
        not care; a network that does is then explained on both sides.
      smooth: blur the map by a Gaussian of this share of the shorter side; TorchRay's benchmarks
        have 0.09.

    Raises:
      ValueError: areas outside (0, 1), an unknown variant, or numbers out of range.
    """
    shares = (areas,) if isinstance(areas, int | float) else tuple(areas)
    if not shares or not all(0 < a < 1 for a in shares):
        raise ValueError(f"areas are shares of the mask, between 0 and 1; got {areas}")
    if variant not in ("preserve", "delete", "dual"):
        raise ValueError(f"variant is 'preserve', 'delete' or 'dual'; got {variant!r}")
    if min(iterations, step, sigma) < 1 or not isinstance(step, int) or smooth < 0:
        raise ValueError(
            "expected numbers of at least 1, step in whole pixels, and smooth of at least 0; got "
            f"{iterations=}, {step=}, {sigma=}, {smooth=}"
        )
    score = asked(score, probability)

    def explain(x, *args):
        pyramid = blur_pyramid(x)
        make, margin, shape = smooth_masks(x.shape[:2], step, sigma)

        def reward(mask, mirrored):
            def at(m):
                image = between(pyramid, m).astype(x.dtype)
                shown = jnp.where(mirrored, image[:, ::-1], image) if mirror else image
                return wide(score(shown, *args))

            kept = at(mask) if variant != "delete" else 0.0
            return kept - (at(1 - mask) if variant != "preserve" else 0.0)

        def loss(parameters, i, area):
            mask = make(parameters)
            away = WEIGHT * GROWTH**i * area_loss(mask, area)
            return away - reward(_crop(mask, (margin, margin), x.shape[:2]), i % 2 == 0)

        def find(area):
            parameters = _descend(
                lambda p, i: loss(p, i, area), jnp.ones(shape, pyramid.dtype), iterations
            )
            return _crop(make(parameters), (margin, margin), x.shape[:2])

        total = jax.vmap(find)(jnp.asarray(shares, pyramid.dtype)).sum(0)
        return _blur(total, smooth * min(x.shape[:2])) if smooth else total

    return explain


def smooth_masks(size: tuple[int, int], step: int, sigma: float):
    """Make ``parameters -> mask`` with a margin, the margin in pixels, and the parameters' shape.

    Parameters lie at every ``step``-th pixel of the image. A pixel is the mean of v = spread times
    parameter over the parameters of the cells around it, weighted by exp(20 v): nearly their
    maximum. Beyond the grid parameters are 0. The mask is clipped to [0, 1].
    """
    margin, reach = round(sigma), 1 + math.ceil(sigma / step)
    grid = tuple(-(-n // step) for n in size)
    before = -(-margin // step)  # cells of the margin
    cells = [before + -(-(n + margin) // step) for n in size]
    offsets = np.arange(-reach, reach + 1)
    away = np.arange(step)[:, None] - step * offsets  # [step, offsets], in pixels
    distance = np.hypot(away[:, None, :, None], away[None, :, None, :])
    spread = np.exp(-2 * np.maximum(0, distance / sigma - 0.5) ** 2)
    spread = spread.reshape(step, step, -1)
    start = [before * step - margin] * 2

    def make(parameters):
        ends = (reach + c - before - g for c, g in zip(cells, grid, strict=True))
        padded = jnp.pad(parameters, [(before + reach, end) for end in ends])
        near = jnp.stack(
            [
                padded[i : i + cells[0], j : j + cells[1]]
                for i, j in np.ndindex(len(offsets), len(offsets))
            ],
            -1,
        )
        v = jnp.einsum("yxo,ijo->yixjo", near, jnp.asarray(spread, near.dtype))
        mask = (v * jax.nn.softmax(COLDNESS * v, axis=-1)).sum(-1).clip(0, 1)
        mask = mask.reshape(cells[0] * step, cells[1] * step)
        return _crop(mask, start, [n + 2 * margin for n in size])

    return make, margin, grid


def area_loss(mask: jax.Array, area) -> jax.Array:
    """The mean squared distance of a mask's sorted values from a step with ``area`` of ones."""
    n = mask.size
    step = (jnp.arange(n) >= jnp.floor((1 - area) * n)).astype(mask.dtype)
    return ((jnp.sort(mask.ravel()) - step) ** 2).mean()


def blur_pyramid(x: jax.Array) -> jax.Array:
    """The image [8, H, W, C] under Gaussians from 20 pixels down to none."""
    x = wide(x)
    sigmas = SIGMA_MAX * (1 - np.arange(LEVELS) / (LEVELS - 1))
    return jnp.stack([_blur(x, sigma) if sigma else x for sigma in sigmas])


def between(pyramid: jax.Array, mask: jax.Array) -> jax.Array:
    """The image [H, W, C] between levels: blurred most where the mask [H, W] is 0, not where 1."""
    levels = jnp.arange(len(pyramid))[:, None, None]
    weights = jax.nn.relu(1 - jnp.abs(mask[None] * (len(pyramid) - 1) - levels))
    return (weights[..., None] * pyramid).sum(0)


def _descend(loss, start: jax.Array, iterations: int) -> jax.Array:
    """Momentum descent, dampened as much, with parameters kept in [0, 1]."""

    def step(state, i):
        parameters, velocity = state
        gradient = jax.grad(loss)(parameters, i)
        first = MOMENTUM * velocity + jnp.where(i == 0, 1.0, 1 - MOMENTUM) * gradient
        return (jnp.clip(parameters - RATE * first, 0, 1), first), None

    state = (start, jnp.zeros_like(start))
    return jax.lax.scan(looped(step), state, jnp.arange(iterations))[0][0]


def _blur(x: jax.Array, sigma: float) -> jax.Array:
    """A Gaussian over the two first axes, the border reflected."""
    rows, columns = (jnp.asarray(gaussian_matrix(n, sigma), x.dtype) for n in x.shape[:2])
    return jnp.einsum("ij,jk...,lk->il...", rows, x, columns, precision="highest")


def _crop(mask: jax.Array, start: Sequence[int], size: Sequence[int]) -> jax.Array:
    return mask[start[0] : start[0] + size[0], start[1] : start[1] + size[1]]
